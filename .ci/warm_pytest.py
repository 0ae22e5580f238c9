"""Run pytest again and again in forks of one process, which has imported a framework already.

    python warm_pytest.py torch numba

Each line of the input is a JSON list: a limit in seconds, the names of tests that run first, or
null, and the arguments of pytest. The answer is a line with the status of the fork, negative for a
signal. In the working folder, output.txt is its output. After null, calls.json has for each test
the seconds that it took, and the functions that it called.
"""

import contextlib
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import pytest


def main() -> None:
    """Answer the lines of the input."""
    # The working folder has the code under test and the tests, and no line of this imports the
    # code. The first module has the settings that precede the import of a framework.
    sys.path.insert(0, os.getcwd())
    for name in ("tests.conftest", *sys.argv[1:]):
        importlib.import_module(name)
    for line in sys.stdin:
        limit, first, *arguments = json.loads(line)
        if not (fork := os.fork()):
            _run(limit, first, arguments)
        _, status = os.waitpid(fork, 0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(fork, signal.SIGKILL)  # what the tests have started and left
        print(os.waitstatus_to_exitcode(status), flush=True)


def _run(limit: int, first: list[str] | None, arguments: list[str]) -> None:
    status: int = pytest.ExitCode.INTERNAL_ERROR
    try:
        os.setsid()
        signal.alarm(limit)  # ends the process, whatever it is doing
        with open(os.devnull) as nothing, open("output.txt", "w") as output:
            os.dup2(nothing.fileno(), 0)
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        # conftest.py and plugins of pytest, which are imported already, need no rewriting.
        arguments += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
        status = pytest.main(arguments, [_Calls() if first is None else _First(first)])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


class _First:
    """A plugin of pytest that runs some tests first."""

    def __init__(self, names: list[str]) -> None:
        self.places = {name: place for place, name in enumerate(names)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: self.places.get(item.nodeid, len(self.places)))


class _Calls:
    """A plugin of pytest that writes calls.json."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[float, list[str]]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        codes: set[Any] = set()

        def note(frame: Any, event: str, _: Any) -> None:
            if event == "call":
                codes.add(frame.f_code)

        start = time.perf_counter()
        threading.setprofile(note)
        sys.setprofile(note)
        try:
            return (yield)
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
            # As in `adapter_mutants.Mutant`: the file without its suffix, and the qualified name.
            here = os.path.join(os.getcwd(), "adapters", "")
            names = {
                code.co_filename.removeprefix(here).removesuffix(".py").replace(os.sep, ".")
                + "."
                + code.co_qualname.replace(".<locals>", "")
                for code in codes
                if code.co_filename.startswith(here)
            }
            self.found[item.nodeid] = time.perf_counter() - start, sorted(names)

    def pytest_sessionfinish(self) -> None:
        with open("calls.json", "w") as file:
            json.dump(self.found, file)


if __name__ == "__main__":
    main()
