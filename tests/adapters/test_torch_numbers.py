"""One number has one meaning, at every entrance."""

import copy
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="gravity_torch needs torch")

import gravity_core  # noqa: E402
from gravity_core import State  # noqa: E402
from gravity_torch import Gravity, diagnose, export_state, import_state  # noqa: E402

NUMBERS = [np.float32(0.3), Fraction(3, 10), Decimal("0.3"), np.longdouble("0.3"), np.asarray(0.3)]
REAL = [torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64]


def parameter(dtype=torch.float32):
    p = torch.nn.Parameter(torch.ones(3, dtype=dtype))
    p.grad = torch.ones(3, dtype=dtype)
    return p


def entrances(name, value):
    """Yield the options of a group that got a number on each way."""
    yield Gravity([parameter()], **{name: value})
    yield Gravity([{"params": [parameter()], name: value}])
    optimizer = Gravity([parameter()])
    optimizer.add_param_group({"params": [parameter()], name: value})
    optimizer.param_groups.pop(0)
    yield optimizer
    optimizer = Gravity([parameter()])
    optimizer.param_groups[0][name] = value
    optimizer.step()
    yield optimizer
    state_dict = copy.deepcopy(Gravity([parameter()]).state_dict())
    state_dict["param_groups"][0][name] = value
    optimizer = Gravity([parameter()])
    optimizer.load_state_dict(state_dict)
    yield optimizer


@pytest.mark.parametrize("value", NUMBERS, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("name", ["lr", "alpha", "beta", "weight_decay"])
def test_a_number_is_what_the_user_wrote(name, value):
    for optimizer in entrances(name, value):
        found = optimizer.param_groups[0][name]
        assert type(found) is float
        assert found == 0.3
    core = gravity_core.hyperparameters.velocity_std(0.3 if name == "lr" else 0.1)
    if name == "lr":
        assert Gravity([parameter()], lr=value).param_groups[0]["velocity_std"] == core


@pytest.mark.parametrize("value", [0.05, 1e-9, 1 / 3])
@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_an_imported_rate_keeps_its_value(dtype, value):
    optimizer = Gravity([parameter()], lr=torch.tensor(1, dtype=dtype))
    import_state(optimizer, State(1, [np.zeros(3, np.float32)], {"learning_rate": value}))
    assert export_state(optimizer).hyperparameters["learning_rate"] == value
    lr = optimizer.param_groups[0]["lr"]
    assert float(lr) == pytest.approx(value, rel=1e-6)
    assert lr.dtype == (
        torch.float64 if value == 1 / 3 or dtype == torch.float64 else torch.float32
    )


@pytest.mark.filterwarnings("ignore:ComplexHalf support")
def test_a_bfloat16_rate_and_complex32_parameters():
    p = parameter()
    optimizer = Gravity([p], lr=torch.tensor(0.5, dtype=torch.bfloat16))
    optimizer.step()
    assert export_state(optimizer).hyperparameters["learning_rate"] == 0.5
    q = parameter(torch.complex32)
    optimizer = Gravity([q])
    optimizer.step()
    with pytest.raises(ValueError, match=r"velocities\[0\] must have a dtype .* 'complex32'"):
        export_state(optimizer)
    assert diagnose(optimizer)[0].max_abs_grad == 1


@pytest.mark.parametrize("options", [{}, {"foreach": False}, {"foreach": True}], ids=str)
def test_a_rate_in_fake_tensor_mode(options):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        p = parameter()
        optimizer = Gravity([p], lr=torch.tensor(0.3), **options)
        optimizer.step()
        optimizer.step()
        assert optimizer.param_groups[0]["velocity_std"] == 0.01 / 0.3
        unknown = torch.rand(())
        with pytest.raises(ValueError, match="lr must have a value, or velocity_std must be given"):
            Gravity([p], lr=unknown)
        Gravity([p], lr=unknown, velocity_std=0.1, **options)


@pytest.mark.parametrize("name", ["alpha", "beta", "weight_decay", "velocity_std", "derived_std"])
def test_a_tensor_without_a_value_is_no_option(name):
    nothing = torch.tensor(1.0, device="meta")
    w = torch.nn.Parameter(torch.ones(3))
    optimizer = Gravity([w])
    state = optimizer.state_dict()
    state["param_groups"][0][name] = nothing
    with pytest.raises(ValueError, match=f"^{name} must be"):
        optimizer.load_state_dict(state)
    if name != "derived_std":
        with pytest.raises(ValueError, match=f"^{name} must be"):
            Gravity([w], **{name: nothing})
