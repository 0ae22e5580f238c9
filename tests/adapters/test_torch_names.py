"""gravity_torch without the private names of torch, which a release may remove."""

import ast
import contextlib
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="gravity_torch needs torch")

import gravity_core  # noqa: E402
import gravity_torch  # noqa: E402
from tests.support.limits import HANG  # noqa: E402
from tests.support.torch_reference import Reference, to_numpy  # noqa: E402

CHECKS = ["_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"]
# The owner of each name; a version of torch may have only one of the two checks.
NAMES = {
    "_use_grad_for_differentiable": importlib.import_module("torch.optim.optimizer"),
    **dict.fromkeys(CHECKS, torch.optim.Optimizer),
}
# Only the underscore marks these as private: torch's own optimizers and many others use them.
LISTS = {
    *("_foreach_abs", "_foreach_max", "_foreach_norm", "_foreach_neg", "_foreach_copy_"),
    *("_foreach_add_", "_foreach_sub_", "_foreach_mul", "_foreach_mul_", "_foreach_div"),
}


ONE_OR_ALL = [["_use_grad_for_differentiable"], CHECKS, list(NAMES)]


@pytest.fixture(params=ONE_OR_ALL, ids=["grad", "checks", "all"])
def without(request, monkeypatch):
    """Yield gravity_torch, imported with a torch that lacks the names."""
    for name in request.param:
        monkeypatch.delattr(NAMES[name], name, raising=False)
    with reimported() as module:
        yield module


@contextlib.contextmanager
def reimported():
    def ours():
        return {n: m for n, m in sys.modules.items() if n.partition(".")[0] == "gravity_torch"}

    before = ours()
    try:
        for name in before:
            del sys.modules[name]
        yield importlib.import_module("gravity_torch")
    finally:
        for name in ours():
            del sys.modules[name]
        sys.modules.update(before)


def check(module, step=None, dtype=torch.float32, sizes=((3, 4), (20_000,), ()), **options):
    """Step a few parameters, and compare every element with the reference."""
    generator = torch.Generator().manual_seed(0)
    ps = [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in sizes]
    references = [Reference(p, 0.1, 0, i, weight_decay=0.1) for i, p in enumerate(ps)]
    optimizer = module.Gravity(ps, weight_decay=0.1, **options)
    step = step(optimizer) if step else optimizer.step
    for _ in range(3):
        for p in ps:
            p.grad = torch.randn(p.shape, generator=generator).to(dtype)
        step()
        for p, reference in zip(ps, references, strict=True):
            reference.step(to_numpy(p.grad), 0.1)
            reference.check(p, optimizer.state[p], exact=options.get("foreach") is False)


@pytest.mark.parametrize("options", [{}, {"foreach": False}, {"capturable": True}], ids=str)
def test_a_step(without, options):
    check(without, **options)


def test_a_compiled_step():
    """The test runs in its own process, because compiled graphs look up modules by name."""
    code = f"import {__name__} as t; t.check_a_compiled_step_without_the_names()"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code]
    subprocess.run(command, cwd=root, env=environment, check=True, timeout=HANG)


def check_a_compiled_step_without_the_names():
    for name, owner in NAMES.items():
        if hasattr(owner, name):
            delattr(owner, name)
    with reimported() as module:
        check(module, lambda optimizer: torch.compile(optimizer.step, backend="aot_eager"))


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("mode", [False, True])
def test_a_step_records_gradients_only_if_differentiable(without, differentiable, mode):
    start = torch.ones(3, requires_grad=True)
    p = start.clone() if differentiable else start
    p.grad = torch.ones(3)
    optimizer = without.Gravity([p], differentiable=differentiable)
    with torch.set_grad_enabled(mode):
        optimizer.step()
        assert torch.is_grad_enabled() is mode
    if differentiable:
        (gradient,) = torch.autograd.grad(p.sum(), start)
        assert gradient.tolist() == [1, 1, 1]
    else:
        assert p.is_leaf
        assert not optimizer.state[p]["velocity"].requires_grad


def test_a_graph_captures_capturable_steps_only(without, monkeypatch):
    capturing = True
    device = torch.device("cuda")
    stream = type("Stream", (), {"is_capturing": lambda self: capturing})()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: device)
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda: stream)
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match=r"^Attempting CUDA graph capture of step.*is False"):
        without.Gravity([p]).step()
    assert p.tolist() == [1, 1, 1]
    check(without, capturable=True)
    capturing = False
    check(without)


def test_a_compiler_without_special_treatment_of_init_group(monkeypatch):
    """torch.compile runs a method of this name uncompiled. Otherwise it traces the method."""
    from torch._dynamo.variables.optimizer import OptimizerVariable

    call, followed = OptimizerVariable.call_method, []

    def call_method(self, tx, name, args, kwargs):
        if name != "_init_group":
            return call(self, tx, name, args, kwargs)
        followed.append(name)
        return super(OptimizerVariable, self).call_method(tx, name, args, kwargs)

    monkeypatch.setattr(OptimizerVariable, "call_method", call_method)
    torch._dynamo.reset()
    try:
        check(gravity_torch, lambda optimizer: torch.compile(optimizer.step, backend="aot_eager"))
    finally:
        torch._dynamo.reset()  # otherwise later graphs would break in the same places
    assert followed


def names_in(source):
    """Return the names that a module defines, and all private names in it."""
    nodes = list(ast.walk(ast.parse(source)))
    made = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    made |= {
        node.id
        for node in nodes
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)
    }
    found = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    found |= {
        node.value for node in nodes if isinstance(node, ast.Constant)
    }  # arguments of getattr
    for node in nodes:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [alias.name for alias in node.names] + [getattr(node, "module", "")]
            found |= {part for module in modules for part in module.split(".")}
    private = {x for x in found if isinstance(x, str) and re.fullmatch(r"_[a-z]\w*", x)}
    return made, private


def test_there_are_no_other_private_names():
    paths = list(Path(gravity_torch.__file__).parent.glob("*.py"))
    made, private = set(), set()
    for path in paths:
        made_here, private_here = names_in(path.read_text(encoding="utf-8"))
        made, private = made | made_here, private | private_here
    ours = made | {path.stem for path in [*paths, *Path(gravity_core.__file__).parent.glob("*.py")]}
    of_python = {"_replace", "_getframe"}
    in_other_tests = {"_fsdp_flattened", "_is_zerotensor"}
    assert private - ours - of_python == set(NAMES) | LISTS | in_other_tests
