"""Run a command of the benchmarks: what it was asked wrongly is one line, and its status is 2."""

import sys
from typing import NoReturn

import click

from gravity_conformance._guard import clean
from gravity_conformance._status import COULD_NOT, complain, run

_LONGEST = 2000  # characters of a complaint


def end_with(program: str, command: click.Command) -> NoReturn:
    """Run a command of click, and end the process with a status of `gravity_conformance`."""

    def status() -> int:
        try:
            with command.make_context(program, sys.argv[1:]) as context:
                return int(command.invoke(context) or 0)
        except click.exceptions.Exit as stop:  # of --help
            return stop.exit_code
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            return COULD_NOT
        except click.ClickException as error:
            complain(f"{program}: {clean(error.format_message(), _LONGEST)}")
            return COULD_NOT

    run(program, status)
