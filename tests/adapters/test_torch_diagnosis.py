"""gravity_torch.diagnose."""

import copy

import pytest

torch = pytest.importorskip("torch", reason="gravity_torch needs torch")

from gravity_torch import Gravity, diagnose  # noqa: E402
from tests.support.torch_helpers import assert_same, give_gradients, network, values  # noqa: E402


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.complex64])
def test_the_rows_are_those_of_the_parameters_with_a_gradient(dtype):
    model = network().to(dtype)
    first, *rest = model.named_parameters()
    last = rest.pop()[1]
    optimizer = Gravity(
        [{"params": [first], "first_step": 0}, {"params": rest}, {"params": [("last", last)]}],
        lr=torch.tensor(0.1),
    )
    params = list(model.parameters())
    give_gradients(params, 0, scale=10.0)
    params[1].grad = None
    optimizer.step()
    before = values(params), copy.deepcopy(optimizer.state_dict())
    rows = diagnose(optimizer).rows
    assert [row.name for row in rows] == ["0.weight", "2.weight", "last"]
    assert rows[0].max_abs_grad == params[0].grad.abs().max()
    assert [round(row.v0_move, 4) for row in rows] == [0.0192, 0.0283, 0.0283]
    assert all("take the mean of the loss" in row.advice for row in rows)
    after = values(params), optimizer.state_dict()
    assert_same(before[0], after[0])
    for i, state in before[1]["state"].items():
        assert_same(state.values(), after[1]["state"][i].values())


def test_a_fine_tuning_with_v0():
    """V₀ moves every weight by 0.028, more than the weights of a wide layer."""
    model = torch.nn.Linear(2000, 2)
    for std, advised in ((None, True), (0.0, False)):
        optimizer = Gravity(model.parameters(), lr=0.01, velocity_std=std)
        for p in model.parameters():
            p.grad = torch.full_like(p, 0.1)
        table = str(diagnose(optimizer))
        assert ("pass velocity_std=0" in table) == advised
        assert "0 (2, 2000)" in table
