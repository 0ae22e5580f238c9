"""σ, the standard deviation of V₀, in gravity_torch: its origin and its range."""

import copy
import warnings

import pytest

torch = pytest.importorskip("torch", reason="gravity_torch needs torch")

from gravity_torch import Gravity, diagnose, export_state  # noqa: E402
from gravity_torch import optimizer as optimizer_module  # noqa: E402
from tests.support.torch_helpers import (  # noqa: E402
    assert_same,
    give_gradients,
    parameters,
    run,
    values,
)


@pytest.mark.parametrize("rest", [{"velocity_std": 0.0}, {"alpha": 0.0}], ids=str)
def test_a_group_that_is_meant_to_start_from_rest_does_not_use_up_the_warning(rest):
    a, b = parameters((3,), (3,))
    with pytest.warns(UserWarning, match="lr is 0 at construction") as record:
        Gravity([{"params": [a], **rest}, {"params": [b]}], lr=0.0)
    assert len(record) == 1


def test_code_without_a_module_name():
    """`exec`, `timeit` with globals, and configuration files run code without `__name__`."""
    for lr, warned in ((0.1, 0), (0.0, 1)):
        names = {"Gravity": Gravity, "params": parameters((3,)), "lr": lr}
        with warnings.catch_warnings(record=True) as record:
            warnings.simplefilter("always")
            exec(compile("optimizer = Gravity(params, lr=lr)", "of a user", "exec"), names)
        assert [warning.filename for warning in record] == ["of a user"] * warned


def test_the_caller_is_looked_up_for_warnings_only(monkeypatch):
    monkeypatch.setattr(optimizer_module, "level_of_user", lambda: pytest.fail("looked up"))
    (p,) = parameters((3,))
    for arguments in ({}, {"lr": 0.0, "velocity_std": 0.1}, {"lr": 0.0, "alpha": 0.0}):
        Gravity([p], **arguments)


OVERFLOWS = [
    ({"lr": 1e-7}, "lr must not be so small that alpha / lr overflows float16 .* got 1e-07"),
    ({"lr": torch.tensor(1e-7)}, "lr must not be so small .* float16 .* got 1e-07"),
    (
        {"velocity_std": 2e4},
        r"velocity_std must be in \[0, 15100\] for V_0 in float16, got 20000.0",
    ),
    # Equal to alpha / lr, but given.
    ({"lr": 5e-7, "velocity_std": 0.01 / 5e-7}, "^velocity_std must be in "),
]


@pytest.mark.parametrize(("arguments", "message"), OVERFLOWS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.complex32])
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")
def test_an_overflowing_v0_is_refused(arguments, message, dtype):
    whole, half = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3).to(dtype))
    with pytest.raises(ValueError, match=message):
        Gravity([half], **arguments)
    optimizer = Gravity([whole], **arguments)
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": iter([half])})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(("arguments", "message"), OVERFLOWS)
def test_an_overflowing_v0_is_refused_before_any_change(arguments, message):
    """The parameters became float16 after the construction of the optimizer."""
    first, changed, late = parameters((3,), (1000,), (3,))
    optimizer = Gravity([{"params": [first, late]}, {"params": [changed]}], **arguments)
    run(optimizer, [first], [0])
    changed.data = changed.data.half()
    give_gradients([first, changed, late], 1)
    before = copy.deepcopy([optimizer.state[first], *values([first, changed, late])])
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    after = [optimizer.state[first], *values([first, changed, late])]
    assert_same([*before[0].values(), *before[1:]], [*after[0].values(), *after[1:]])
    assert late not in optimizer.state
    with pytest.raises(ValueError, match=message):
        export_state(optimizer, group=1)
    changed.grad, changed.data = None, changed.data.float()
    run(optimizer, [first, changed, late], [1])


def test_a_refused_group_can_be_corrected():
    there, p, other = parameters((1,), (3,), (3,))
    optimizer, half = Gravity([there]), torch.nn.Parameter(torch.ones(3).half())
    for wrong, right in ((half, half), (there, p)):
        group = {"params": [wrong], "lr": 1e-7}
        with pytest.raises(ValueError, match=r"overflows|more than one parameter group"):
            optimizer.add_param_group(group)
        assert len(optimizer.param_groups) == 1
        assert group == {"params": [wrong], "lr": 1e-7}
        group |= {"lr": 0.1, "params": [right]}
        optimizer.add_param_group(group)
        assert optimizer.param_groups.pop()["velocity_std"] == 0.01 / 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):  # the refused call did not give the warning
            with pytest.raises(UserWarning, match="starts from rest"):
                optimizer.add_param_group({"params": [other], "lr": 0.0})


def test_a_frozen_parameter_needs_no_v0():
    frozen = torch.nn.Parameter(torch.ones(3).half(), requires_grad=False)
    (p,) = parameters((3,))
    run(Gravity([p, frozen], lr=1e-7), [p], [0])


def test_a_large_standard_deviation_is_compiled_once():
    from torch._dynamo.testing import CompileCounter

    counter, (p,) = CompileCounter(), parameters((3,))
    optimizer = Gravity([p], lr=1e-7)
    step = torch.compile(optimizer.step, backend=counter)
    for number in range(3):
        give_gradients([p], number)
        step()
    assert counter.frame_count == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_other_dtypes_hold_a_v0_that_overflows_float16(dtype):
    (p,) = parameters((1000,), dtype=dtype)
    optimizer = Gravity([p], lr=1e-7)
    run(optimizer, [p], [0])
    assert optimizer.state[p]["velocity"].isfinite().all()


@pytest.mark.parametrize("scheduled", [1e-6, 0.0])
@pytest.mark.parametrize("arguments", [{"lr": 0.2}, {"lr": 0.0, "velocity_std": 0.05}], ids=str)
def test_the_scheduled_rate_of_a_checkpoint_does_not_set_sigma(scheduled, arguments):
    """The receiving optimizer keeps the σ of its construction, for any current rate."""
    begun, late = parameters((3,), (1000,))
    foreign = {
        "state": {0: {"v": torch.zeros(3)}},
        "param_groups": [{"lr": scheduled, "initial_lr": 0.1, "t": 500, "params": [0, 1]}],
    }
    optimizer = Gravity([begun, late], **arguments)
    std = optimizer.param_groups[0]["velocity_std"]
    optimizer.load_state_dict(foreign)  # without a warning
    assert optimizer.param_groups[0]["lr"] == scheduled
    assert optimizer.param_groups[0]["velocity_std"] == std == pytest.approx(0.05)
    late.grad = torch.zeros_like(late)
    optimizer.step()
    assert optimizer.state[late]["velocity"].abs().max() < 5 * std


@pytest.mark.parametrize("scheduled", [1e-6, 0.0])
def test_a_pickle_without_velocity_std_uses_the_initial_rate(scheduled):
    (p,) = parameters((3,))
    state = copy.deepcopy(Gravity([p], lr=scheduled, velocity_std=1.0).__getstate__())
    del state["defaults"]["velocity_std"], state["param_groups"][0]["velocity_std"]
    state["param_groups"][0]["initial_lr"] = 0.2
    old = Gravity.__new__(Gravity)
    old.__setstate__(state)
    assert old.param_groups[0]["velocity_std"] == 0.01 / 0.2


def test_the_standard_deviation_is_a_constant_to_autograd():
    """W₁ = W₀ − η (β̂ V₀ + (1 − β̂) ζ), and V₀ = (α/η) z counts as a constant."""
    gradients = []
    for std in (None, 0.01 / 0.25):
        lr = torch.tensor(0.25, dtype=torch.float64, requires_grad=True)
        p = torch.ones(3, dtype=torch.float64, requires_grad=True).clone()
        p.grad = torch.zeros(3, dtype=torch.float64)
        optimizer = Gravity([p], lr=lr, velocity_std=std, differentiable=True)
        optimizer.step()
        gradients += torch.autograd.grad(p.sum(), lr)
        v = optimizer.state[p]["velocity"]
        # each side sums three numbers
        assert abs(gradients[-1] + v.sum()) <= 6 * 2.0**-53 * v.abs().sum()
        assert v.any()
    assert gradients[0] == gradients[1]


# What is given and what is derived


def stds(optimizer):
    return [group["velocity_std"] for group in optimizer.param_groups]


WAYS = {
    "groups": lambda optimizer: optimizer.param_groups,
    "copies": lambda optimizer: [dict(group) for group in optimizer.param_groups],
    "dicts": lambda optimizer: [{"params": optimizer.param_groups[0]["params"]}],
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("old", [0.001, 10.0])
def test_a_group_of_another_optimizer_gets_its_own_sigma(way, old):
    (p,) = parameters((3,))
    groups = WAYS[way](Gravity([{"params": [p]}], lr=old))
    for group in groups:
        group["lr"] = 1.0
    assert stds(Gravity(groups)) == [0.01]
    for group in groups:
        group["lr"] = 0.5
    assert stds(Gravity(groups)) == [0.02]


def test_a_dict_for_two_optimizers():
    group = {"params": parameters((3,))}
    assert stds(Gravity([group], lr=0.001)) == [10.0]
    del group["lr"]
    assert stds(Gravity([group], lr=1.0)) == [0.01]


def test_a_copy_of_a_live_group_joins_its_optimizer():
    p, q = parameters((3,), (3,))
    optimizer = Gravity([p], lr=0.001)
    run(optimizer, [p], [0])
    optimizer.add_param_group(dict(optimizer.param_groups[0], params=[q], lr=1.0))
    assert stds(optimizer) == [10.0, 0.01]


def test_a_given_sigma_goes_along_with_its_group():
    (p,) = parameters((3,))
    optimizer = Gravity([p], lr=0.001, velocity_std=0.0)
    for lr in (1.0, 0.0):
        assert stds(Gravity([dict(optimizer.param_groups[0], lr=lr)])) == [0.0]
    given = dict(Gravity([p]).param_groups[0], lr=1.0, velocity_std=0.3)
    assert stds(Gravity([given])) == [0.3]
    given["lr"] = 0.5
    assert stds(Gravity([given])) == [0.3]


def test_a_checkpoint_keeps_what_is_derived(tmp_path):
    p, q = parameters((3,), (3,))
    torch.save(Gravity([p], lr=0.001).state_dict(), tmp_path / "checkpoint")
    resumed = Gravity([q], lr=0.5)
    resumed.load_state_dict(torch.load(tmp_path / "checkpoint", weights_only=True))
    assert stds(resumed) == [10.0]
    for optimizer in (resumed, copy.deepcopy(resumed)):
        assert stds(Gravity([dict(optimizer.param_groups[0], lr=1.0)])) == [0.01]
        optimizer.param_groups[0]["lr"] = 1.0
        with pytest.warns(UserWarning, match="velocity_std=0.01"):
            run(optimizer, optimizer.param_groups[0]["params"], [0])


def test_a_checkpoint_of_an_older_version_has_a_given_sigma():
    """It has velocity_std alone."""
    p, q = parameters((3,), (3,))
    state = Gravity([p], lr=0.001).state_dict()
    del state["param_groups"][0]["derived_std"]
    resumed = Gravity([q], lr=0.5)
    resumed.load_state_dict(state)
    resumed.param_groups[0]["lr"] = 1.0
    assert stds(resumed) == [10.0]
    run(resumed, [q], [0])  # without a warning


def test_sigma_is_derived_again_from_none():
    p, q = parameters((3,), (3,))
    optimizer = Gravity([{"params": [p]}, {"params": [q]}], lr=0.001)
    for group in optimizer.param_groups:
        group |= {"lr": 0.5, "velocity_std": None}
    run(optimizer, [p, q], [0])
    assert stds(optimizer) == [0.02, 0.02]


# The rate of the first step


def assert_warns_once(optimizer, params):
    """Assert that the first step warns here, in this file, and that no later step does."""
    give_gradients(params, 0)
    with pytest.warns(UserWarning, match="^lr is .* at the first step") as record:
        optimizer.step()
    assert len(record) == 1
    assert record[0].filename == __file__
    run(optimizer, params, [1])
    return str(record[0].message)


@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize("options", [{}, {"foreach": False}, {"capturable": True}], ids=str)
def test_a_rate_that_sigma_is_not_derived_from(tensor, options):
    """fastai constructs with 0.001, and sets the rate of the training later."""
    params = parameters((3, 4), (4,))
    optimizer = Gravity([{"params": [p]} for p in params], lr=0.001, **options)
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(0.4) if tensor else 0.4
    message = assert_warns_once(optimizer, params)
    assert "lr is 0.4 at the first step" in message
    assert "was derived from 0.001, its value at construction: 10; pass" in message
    assert "pass velocity_std=0.025 for one that fits, or construct with that lr" in message


@pytest.mark.parametrize("alpha", [0.0, 0.001, 0.1])
def test_an_alpha_that_is_set_later_does_not_change_the_rate_of_the_start(alpha):
    """σ comes from the alpha and the lr of the construction; only that lr counts here."""
    (p,) = parameters((3,))
    optimizer = Gravity([p], lr=0.05)
    optimizer.param_groups[0]["alpha"] = alpha
    run(optimizer, [p], [0])  # a warning is an error
    optimizer = Gravity([p], lr=0.05)
    optimizer.param_groups[0] |= {"alpha": alpha, "lr": 1.0}
    assert "derived from 0.05, its value at construction: 0.2" in assert_warns_once(optimizer, [p])


def test_a_late_first_step_of_a_parameter():
    p, late = parameters((3,), (3,))
    optimizer = Gravity([p, late], lr=0.01)
    run(optimizer, [p], [0])
    optimizer.param_groups[0]["lr"] = 0.5
    run(optimizer, [p], [1])
    assert_warns_once(optimizer, [p, late])


@pytest.mark.parametrize("lr", [0.0, 1e-3, 0.1, 1.0])  # not more than ten times 0.1
@pytest.mark.parametrize("arguments", [{}, {"lr": torch.tensor(0.1)}, {"velocity_std": 10.0}])
def test_rates_without_a_warning(lr, arguments):
    (p,) = parameters((3,))
    optimizer = Gravity([p], **arguments)
    optimizer.param_groups[0]["lr"] = lr
    run(optimizer, [p], [0])
    optimizer.param_groups[0]["lr"] = 50.0
    run(optimizer, [p], [1])


def test_a_start_from_rest_has_no_second_warning():
    (p,) = parameters((3,))
    with pytest.warns(UserWarning, match="starts from rest"):
        optimizer = Gravity([p], lr=0.0)
    optimizer.param_groups[0]["lr"] = 1.0
    run(optimizer, [p], [0])


def test_a_compiled_first_step_warns():
    (p,) = parameters((3,))
    optimizer = Gravity([p], lr=0.001)
    optimizer.param_groups[0]["lr"] = 0.4
    give_gradients([p], 0)
    with pytest.warns(UserWarning, match="^lr is .* at the first step"):
        torch.compile(optimizer.step, backend="eager")()


def test_an_export_gives_no_warning():
    (p,) = parameters((3,))
    optimizer = Gravity([p], lr=0.001)
    optimizer.param_groups[0]["lr"] = 0.4
    assert export_state(optimizer).hyperparameters["velocity_std"] == 10.0


def test_an_alpha_of_another_meaning():
    """pytorch_optimizer's WSAM has an alpha of 9, and hands its groups to the optimizer."""
    p, q = parameters((3,), (3,))
    groups = [{"params": [p], "alpha": 9.0, "rho": 0.05}, {"params": [q], "alpha": 9.0}]
    with pytest.warns(UserWarning, match=r"alpha is 9.0, .* by about 25.5; .* pass velocity_std"):
        optimizer = Gravity(groups, lr=0.5)
    assert stds(optimizer) == [18.0, 18.0]
    assert stds(Gravity([dict(groups[0], velocity_std=0.02)], lr=0.5)) == [0.02]  # no warning
    later = Gravity([p], lr=0.5)
    later.param_groups[0]["alpha"] = 9.0
    run(later, [p], [0])
    assert stds(later) == [0.02]
    v = later.state[p]["velocity"]
    assert v.abs().max() < 5


def test_wsam():
    other = pytest.importorskip("pytorch_optimizer", reason="pytorch_optimizer has WSAM")
    model = torch.nn.Linear(3, 1)
    arguments = {"base_optimizer": Gravity, "lr": 0.5}
    with pytest.warns(UserWarning, match=r"alpha is 9\.0"):
        other.WSAM(model, model.parameters(), **arguments)
    optimizer = other.WSAM(model, model.parameters(), velocity_std=0.02, **arguments)
    for half in (optimizer.first_step, optimizer.second_step):
        model(torch.ones(4, 3)).square().mean().backward()
        half(zero_grad=True)
    assert stds(optimizer) == [0.02]
    plain = Gravity(model.parameters(), lr=0.5, velocity_std=0.02)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    plain.step()
    for p in model.parameters():
        difference = optimizer.base_optimizer.state[p]["velocity"] - plain.state[p]["velocity"]
        assert difference.abs().max() < 1  # (1 − β̂) ζ


def test_groups_of_one_sigma_have_a_first_rate_each():
    a, b = parameters((3,), (3,))
    groups = [{"params": [a], "lr": 0.1, "alpha": 0.05}, {"params": [b], "lr": 1.0, "alpha": 0.5}]
    optimizer = Gravity(groups)
    assert len({group["velocity_std"] for group in optimizer.param_groups}) == 1
    optimizer.param_groups[0]["lr"] = 5.0
    a.grad = torch.ones(3)
    with pytest.warns(UserWarning, match="lr is 5 at the first step, .* derived from 0.1, "):
        optimizer.step()


@pytest.mark.parametrize("call", [None, export_state, diagnose])
def test_what_does_not_step_leaves_std_underived(call):
    """The user sets σ to None, and corrects the rate after a refused step, or an export."""
    p, q = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = Gravity([p, q], lr=0.1, velocity_std=0.5)
    (group,) = optimizer.param_groups
    group["velocity_std"] = None
    before = dict(group)
    p.grad = torch.zeros(3)
    if call is None:
        q.grad, q.data = torch.zeros(3), torch.ones(2)
        with pytest.raises(ValueError, match=r"p\.grad must have the shape"):
            optimizer.step()
    else:
        call(optimizer)
    assert group == before
    q.data, group["lr"] = torch.ones(3), 0.01
    optimizer.step()
    assert group["velocity_std"] == 0.01 / 0.01
