"""Run a command of the benchmarks as `gravity` runs its own."""

from typing import NoReturn

import click

from gravity_conformance._click import status_of
from gravity_conformance._status import run


def end_with(program: str, command: click.Command) -> NoReturn:
    """Run a command of click, and end the process with a status of `gravity_conformance`."""
    run(program, lambda: status_of(program, command))
