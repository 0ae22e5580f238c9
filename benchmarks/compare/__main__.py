"""Entry point of `python -m benchmarks.compare`: errors are one line, as in `gravity`."""

import sys

import click

from benchmarks.compare.command import cli
from gravity_conformance._status import COULD_NOT, complain, run

PROGRAM = "compare"


def _command() -> int:
    try:
        with cli.make_context("python -m benchmarks.compare", sys.argv[1:]) as context:
            return int(cli.invoke(context) or 0)
    except click.exceptions.Exit as stop:  # of --help
        return stop.exit_code
    except click.ClickException as error:
        complain(f"{PROGRAM}: {error.format_message()}")
        return COULD_NOT


if __name__ == "__main__":
    run(PROGRAM, _command)
