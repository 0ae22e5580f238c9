"""Mutants of the adapters, for mutants.py: each is a copy of the code with one change in a file.

mutmut's own mutants are functions that choose one of many bodies when they are called. Compilers
and tracers of frameworks would not see through that. So this takes mutmut's operators only, and
applies them to all functions, with or without decorators.
"""

import difflib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import libcst as cst
import libcst.matchers as m
import pytest
from mutmut.mutation.mutators import mutation_operators

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[1]
# For each test the seconds that it takes, and the functions that it calls.
Calls = dict[str, tuple[float, list[str]]]
# Seconds, and how many times as long as without a change: what takes longer hangs, and is killed.
LONGEST, LONGER = 3600, 5
# What a process may import before it forks. TensorFlow does not survive that.
WARM = {"gravity_torch": ["torch", "numba"], "gravity_jax": ["jax", "optax"], "gravity_tf": []}
# The tests nearest to each module, the cheapest first: names of files in tests/adapters, or
# after the name of another folder.
NEAREST = {
    "gravity_torch": {
        "_distributed": "torch_shared torch_flattened torch_distributed torch_distributed_state",
        "_fused": "torch_shared torch_paths torch_fused_states torch_fused",
        "_fused_cpu": "torch_shared torch_paths torch_fused_states torch_fused",
        "_fused_cuda": "torch_fused_cuda",
        "_items": "torch torch_tensors torch_faults torch_compiled torch_paths",
        "_memory": "torch_shared torch_tensors torch_faults torch_fused_states torch_paths "
        "torch_fused",
        "_multi_tensor": "torch torch_shared torch_tensors torch_compiled torch_paths",
        "_multi_tensor_gpu": "torch torch_shared torch_faults torch_memory torch_paths",
        "_numba_kernels": "torch_paths torch_fused_states torch_fused",
        "_options": "torch_options torch_numbers torch_groups torch_velocity_std torch "
        "torch_schedulers torch_faults",
        "_paths": "torch torch_shared torch_tensors torch_faults torch_memory torch_compiled "
        "torch_paths torch_fused",
        "_single_tensor": "torch torch_tensors torch_paths",
        "_state_checks": "torch_state torch_numbers torch_faults torch_fused_states "
        "torch_checkpoint torch_compiled",
        "_tensors": "torch_shared torch_tensors torch_state torch_paths torch_distributed",
        "_torch_private": "torch_names torch_flattened torch_compiled torch_ecosystem",
        "_triton_kernels": "torch_fused_cuda",
        "_velocity": "torch_state torch_tensors torch_velocity_std torch_distributed",
        "backend": "conformance/versions replay",
        "diagnosis": "torch_diagnosis",
        "optimizer": "torch_groups torch_options torch_state torch_velocity_std torch torch_faults "
        "torch_names torch_checkpoint torch_ecosystem torch_flattened",
        "state": "torch_state torch_faults export_import torch_distributed_state",
    },
    "gravity_jax": {
        "_leaves": "jax_structure jax_numbers jax_leaves jax",
        "_reduction": "jax jax_sharding jax_maximum",
        "_structure": "jax_structure jax_leaves jax jax_maximum",
        "_velocity": "jax_numbers jax_leaves jax_optax jax jax_sharding",
        "backend": "conformance/versions replay",
        "state": "jax_state export_import jax_sharding",
        "transform": "jax_structure jax_numbers jax_leaves jax_optax jax jax_maximum "
        "jax_transformations jax_sharding jax_libraries",
    },
    "gravity_tf": {
        "_rates": "keras_rates keras_state keras_hand_over keras",
        "_tensors": "keras keras_dtypes keras_rates keras_state keras_faults tf keras_backends",
        "backend": "conformance/versions replay",
        "optimizer": "keras keras_rates keras_state keras_faults keras_base_class keras_dtypes "
        "tf_faults tf",
        "state": "keras_hand_over keras_state keras_rates export_import",
    },
}

MODULES = [f"{package}.{name}" for package, names in NEAREST.items() for name in names]
found = {f"{path.parent.name}.{path.stem}" for path in ROOT.glob("adapters/*/*.py")}
if forgotten := {name for name in found if not name.endswith("__init__")} - {*MODULES}:
    sys.exit(f".ci/adapter_mutants.py: enter the nearest tests of {', '.join(sorted(forgotten))}")


class _Changes(cst.CSTVisitor):
    """Finds what the operators make of each node in a function."""

    def __init__(self) -> None:
        self.path: list[str] = []
        self.functions = 0
        self.found: list[tuple[str, cst.CSTNode, cst.CSTNode]] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, (cst.FunctionDef, cst.ClassDef)):
            self.path.append(node.name.value)
            self.functions += isinstance(node, cst.FunctionDef)
        if isinstance(node, (cst.Annotation, cst.Decorator)):
            return False
        if m.matches(node, m.Call(m.Name("len") | m.Name("isinstance"))):  # as in mutmut
            return False
        if self.functions:
            for kind, operator in mutation_operators:
                if isinstance(node, kind):
                    self.found += [(".".join(self.path), node, new) for new in operator(node)]
        return True

    def on_leave(self, node: cst.CSTNode) -> None:
        if isinstance(node, (cst.FunctionDef, cst.ClassDef)):
            self.path.pop()
            self.functions -= isinstance(node, cst.FunctionDef)


class Mutant:
    """A module with one change."""

    def __init__(
        self, module: str, tree: cst.Module, function: str, old: cst.CSTNode, new: cst.CSTNode
    ) -> None:
        self.module, self.function = module, f"{module}.{function}"
        self._tree, self._old, self._new = tree, old, new

    @property
    def code(self) -> str:
        """The whole module."""
        return self._tree.deep_replace(self._old, self._new).code

    def change(self) -> tuple[str, str, str]:
        """Return the function, and the lines that the change takes out and puts in."""
        both = self._tree.code.splitlines(), self.code.splitlines()
        lines = list(difflib.unified_diff(*both, n=0, lineterm=""))[2:]
        out, into = (
            " ".join(line[1:].strip() for line in lines if line[0] == sign) for sign in "-+"
        )
        return self.function, out, into


def path(module: str) -> Path:
    """Return the file of a module, such as gravity_torch._memory."""
    return Path("adapters", *module.split(".")).with_suffix(".py")


def mutants(module: str) -> list[Mutant]:
    """Return all mutants of a module."""
    tree = cst.parse_module((ROOT / path(module)).read_text(encoding="utf-8"))
    tree.visit(changes := _Changes())
    return [Mutant(module, tree, *found) for found in changes.found]


def nearest_tests(module: str) -> list[str]:
    """Return the paths of the nearest test files, the cheapest first."""
    package, name = module.split(".")
    parted = (test.rpartition("/") for test in NEAREST[package][name].split())
    return [f"tests/{folder or 'adapters'}/test_{stem}.py" for folder, _, stem in parted]


class _Runner:
    """A copy of the project, and one process for each framework that runs tests in it."""

    def __init__(self, python: str) -> None:
        self.python = python
        self.scratch = tempfile.TemporaryDirectory()
        self.folder = Path(self.scratch.name)
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.writes = 0
        ignored = shutil.ignore_patterns("__pycache__")
        for part in ("gravity_core", "gravity_conformance", "adapters", "tests", "docs"):
            shutil.copytree(ROOT / part, self.folder / part, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", self.folder)
        if (triton := ROOT / ".venv-triton").exists():
            (self.folder / triton.name).symlink_to(triton)

    def __enter__(self) -> "_Runner":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            process.communicate()
        self.scratch.cleanup()

    def status(
        self,
        package: str,
        tests: Sequence[str],
        limit: int = LONGEST,
        first: Sequence[str] | None = None,
    ) -> int:
        """Run test files, some tests first, until one fails, and return pytest's status.

        Without `first`, what the tests call is noted, in calls.json.
        """
        if package not in self.processes:
            self.processes[package] = subprocess.Popen(
                [self.python, str(ROOT / ".ci/warm_pytest.py"), *WARM[package]],
                cwd=self.folder,
                env=os.environ
                | {
                    "HYPOTHESIS_PROFILE": "mutants",
                    "PYTHONPATH": f"{self.folder}{os.pathsep}{self.folder / 'adapters'}",
                    "PYTHONUTF8": "1",
                },
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        process = self.processes[package]
        arguments = ["-x", "-q", "--no-header", "-p", "no:cacheprovider", *tests]
        print(json.dumps([limit, first, *arguments]), file=process.stdin, flush=True)
        return int(process.stdout.readline())

    def write(self, module: str, code: str) -> None:
        """Write a module. Its time differs from that of all before, for the caches of bytecode."""
        file = self.folder / path(module)
        file.write_text(code, encoding="utf-8")
        self.writes += 1
        os.utime(file, (self.writes, self.writes))

    def survives(self, mutant: Mutant, calls: Calls) -> bool:
        """Return whether the tests pass with a mutant."""
        tests = nearest_tests(mutant.module)
        # First those that call the function, the quickest ones of each file. The others may call it
        # in a process of their own, or when they are collected.
        own = {name: call for name, call in calls.items() if name.split("::")[0] in tests}
        limit = int(60 + LONGER * sum(seconds for seconds, _ in own.values()))
        first = sorted(
            (name for name, (_, functions) in own.items() if mutant.function in functions),
            key=lambda name: (tests.index(name.split("::")[0]), own[name][0]),
        )
        package, _ = mutant.module.split(".")
        self.write(mutant.module, mutant.code)
        status = self.status(package, tests, limit, first)
        self.write(mutant.module, (ROOT / path(mutant.module)).read_text(encoding="utf-8"))
        if status in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED):
            raise SystemExit(f"no tests ran:\n{self.output()}")
        return status == 0

    def output(self) -> str:
        """Return the end of what the last tests have printed."""
        return (self.folder / "output.txt").read_text(encoding="utf-8")[-4000:]

    def calls(self, package: str, test: str) -> Calls:
        """Return what the tests of a file call; exit if one fails without a change."""
        if self.status(package, [test]):
            raise SystemExit(f"{test} fails without a change:\n{self.output()}")
        found: Calls = json.loads((self.folder / "calls.json").read_text(encoding="utf-8"))
        return found


def survive(chosen: Sequence[Mutant], jobs: int, python: str) -> Iterator[bool]:
    """Yield for each mutant whether the tests nearest to it pass all the same.

    Args:
        chosen: the mutants.
        jobs: how many are tested at a time.
        python: an interpreter with pytest and the frameworks.
    """
    files = {(m.module.split(".")[0], test) for m in chosen for test in nearest_tests(m.module)}
    with ExitStack() as stack:
        idle: SimpleQueue[_Runner] = SimpleQueue()
        for _ in range(jobs):
            idle.put(stack.enter_context(_Runner(python)))

        def with_runner(do: Callable[..., T], *arguments: Any) -> T:
            runner = idle.get()
            try:
                return do(runner, *arguments)
            finally:
                idle.put(runner)

        pool = stack.enter_context(ThreadPoolExecutor(jobs))
        found = [pool.submit(with_runner, _Runner.calls, *pair) for pair in sorted(files)]
        calls = {name: call for future in found for name, call in future.result().items()}
        yield from pool.map(lambda m: with_runner(_Runner.survives, m, calls), chosen)
