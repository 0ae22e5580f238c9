"""Tests of Triton's kernels without a GPU, each in one of two processes of their own.

Triton decides when it is imported whether kernels are interpreted or compiled. Besides, Triton 3.7
crashes a process that has imported TensorFlow, and torch._dynamo imports any Triton that it finds.
So where torch comes without Triton, as for CPUs, only these processes get one, from a folder:

    pip install --no-deps --target .venv-triton -c constraints.txt triton
"""

import concurrent.futures
import functools
import importlib
import importlib.util
import multiprocessing
import os
import sys
from pathlib import Path

import pytest

from tests.support.limits import HANG

FOLDER = Path(__file__).parents[2] / ".venv-triton"

_tests = {}


def skip_module_without_triton():
    """Skip a test module, without importing Triton here."""
    if importlib.util.find_spec("triton") is None and not (FOLDER / "triton").is_dir():
        pytest.skip(f"Triton is not installed, nor in {FOLDER.name}", allow_module_level=True)


def interpreted(test):
    """Run a test in a process whose kernels are interpreted, on the memory of the CPU."""
    return _elsewhere(test, interpret=True)


def compiling(test):
    """Run a test in a process that can compile kernels for any GPU."""
    return _elsewhere(test, interpret=False)


def _elsewhere(test, *, interpret):
    _tests[test.__module__, test.__qualname__] = test

    @functools.wraps(test)
    def run(*args, **kwargs):
        call = _process(interpret).submit(_call, test.__module__, test.__qualname__, args, kwargs)
        return call.result(timeout=HANG)

    return run


@functools.cache
def _process(interpret):
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(1, context, _start, [interpret])


def _start(interpret):
    os.environ |= {"TRITON_INTERPRET": "1" if interpret else "0", "OMP_NUM_THREADS": "1"}
    sys.path.append(str(FOLDER))


def _call(module, name, args, kwargs):
    importlib.import_module(module)  # registers its tests
    return _tests[module, name](*args, **kwargs)
