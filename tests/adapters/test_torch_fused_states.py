"""The kernels of `fused=True` on a CPU and states that are not what they were, or never right."""

import ast
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="gravity_torch needs torch")
pytest.importorskip("numba", reason="fused=True needs numba")

from gravity_torch import Gravity, _fused, _numba_kernels  # noqa: E402
from tests.support.programs import printed_words  # noqa: E402
from tests.support.torch_helpers import assert_same, parameters  # noqa: E402

PATHS = [{"foreach": False}, {"foreach": True}, {}]


def step(optimizer, params, number=0):
    generator = torch.Generator().manual_seed(number)
    for p in params:
        grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        p.grad = torch.empty_like(p).copy_(grad)  # in the parameter's order
    optimizer.step()


def cast(velocity, memory):
    velocity.data = memory.view(torch.bfloat16)[: velocity.numel()].view(velocity.shape)


def transpose(velocity, memory):
    velocity.t_()


def swap(velocity, memory):
    velocity.data = velocity.data.t()


@pytest.mark.parametrize("change", [cast, transpose, swap])
def test_a_velocity_that_changes_in_place_is_seen(change):
    """The address stays the same, and so does the tensor."""
    results = []
    for options in PATHS:
        (p,) = parameters((6, 6))
        memory = torch.zeros(36)
        optimizer = Gravity([p], **options)
        step(optimizer, [p])
        state = optimizer.state[p]
        state["velocity"] = memory.view(6, 6).copy_(state["velocity"])
        step(optimizer, [p], 1)
        change(state["velocity"], memory)
        memory[18:] *= 2  # outside of the velocity in the half type
        step(optimizer, [p], 2)
        results.append([p.detach(), memory])
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


@pytest.mark.parametrize("shape", [(2,), (3, 2), (6, 6)], ids=str)
@pytest.mark.parametrize("options", PATHS, ids=str)
def test_a_velocity_of_another_shape_in_the_old_memory_is_refused(options, shape):
    """Where the velocity has two strides, they are those of the parameter."""
    p = torch.nn.Parameter(torch.ones(3, 2).t())
    optimizer = Gravity([p], **options)
    step(optimizer, [p])
    memory = torch.zeros(64)
    velocity = optimizer.state[p]["velocity"] = memory.as_strided((2, 3), (1, 2))
    step(optimizer, [p], 1)
    velocity.data = memory.as_strided(shape, (1, 2)[: len(shape)])
    before = p.detach().clone(), memory.clone()
    with pytest.raises(ValueError, match="velocity must have the shape of its parameter"):
        step(optimizer, [p], 2)
    assert_same(before, [p.detach(), memory])
    assert optimizer.state[p]["step"] == 2


@pytest.mark.parametrize("value", [-5.0, float("nan"), float("inf")])
@pytest.mark.parametrize("options", PATHS, ids=str)
def test_a_counter_without_a_number_of_steps_is_refused_before_anything_moves(options, value):
    params = parameters((3,), (4,), (5,))
    params[1] = torch.nn.Parameter(params[1].detach().double())
    optimizer = Gravity([{"params": [p]} for p in params], **options)
    step(optimizer, params)
    optimizer.state[params[2]]["step"].fill_(value)
    before = [p.detach().clone() for p in params]
    with pytest.raises(ValueError, match=rf"^step in the state must be .* got {value}$"):
        step(optimizer, params)
    assert_same(before, [p.detach() for p in params])
    assert [optimizer.state[p]["step"].item() for p in params[:2]] == [1, 1]


def test_a_kernel_that_cannot_be_compiled_moves_nothing(monkeypatch):
    params = parameters((3,), (4,))
    params[1] = torch.nn.Parameter(params[1].detach().double())
    optimizer = Gravity(params)
    step(optimizer, params)
    own, before = _numba_kernels.compiled, [p.detach().clone() for p in params]

    def compiled(function):
        if function is _numba_kernels.float64:
            raise RuntimeError("no memory for the compiler")
        return own(function)

    monkeypatch.setattr(_numba_kernels, "compiled", compiled)
    with pytest.raises(RuntimeError, match="no memory for the compiler"):
        step(optimizer, params)
    assert_same(before, [p.detach() for p in params])
    assert [optimizer.state[p]["step"].item() for p in params] == [1, 1]


def test_parameters_with_one_counter_have_the_same_t():
    results = []
    for options in PATHS:
        params = parameters((3,), (3,))
        optimizer = Gravity(params, **options)
        step(optimizer, params)
        optimizer.state[params[1]]["step"] = optimizer.state[params[0]]["step"]
        step(optimizer, params, 1)
        results.append([p.detach() for p in params])
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


@pytest.mark.parametrize("error", [ImportError, AttributeError])
def test_a_compiler_that_cannot_be_imported(monkeypatch, error):
    """The default takes foreach; fused=True says what is wrong."""

    def imported(device_type):
        raise error("numba needs another NumPy")

    monkeypatch.setattr(_fused, "_imported", imported)
    _fused.runner.cache_clear()
    try:
        (p,), (q,) = parameters((3,)), parameters((3,))
        step(Gravity([p]), [p])
        step(Gravity([q], foreach=False), [q])
        assert_same([p], [q])
        with pytest.raises(RuntimeError, match=r"^`fused=True` on cpu: numba needs another NumPy$"):
            step(Gravity([p], fused=True), [p])
        assert_same([p], [q])
    finally:
        _fused.runner.cache_clear()


def test_the_file_of_the_kernels_has_all_that_they_use():
    """numba's cache on the disk notices changes of this file only."""
    source = Path(_numba_kernels.__file__).read_text(encoding="utf-8")
    imports = [x for x in ast.walk(ast.parse(source)) if isinstance(x, ast.ImportFrom | ast.Import)]
    modules = {getattr(x, "module", None) or x.names[0].name for x in imports}
    assert not any(module.startswith("gravity") for module in modules)


@pytest.mark.slow
@pytest.mark.parametrize("disabled", ["0", "1"])
def test_a_spoilt_cache_or_a_disabled_compiler_is_no_error(disabled, tmp_path):
    code = (
        "import torch, gravity_torch\n"
        "p = torch.nn.Parameter(torch.ones(3)); p.grad = torch.ones(3)\n"
        "gravity_torch.Gravity([p], velocity_std=0.0).step(); print(p.tolist())"
    )
    environment = {"NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_DISABLE_JIT": disabled}
    printed = set()
    for _ in range(1 if disabled == "1" else 2):
        printed.add(tuple(printed_words(code, **environment)))
        files = list(tmp_path.rglob("*.nb?"))
        assert bool(files) == (disabled == "0")
        for file in files:
            file.write_bytes(file.read_bytes()[:100])
    assert len(printed) == 1
