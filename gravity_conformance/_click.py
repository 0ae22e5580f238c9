"""Run a command of click: what it was asked wrongly is one line, and its status is 2."""

import sys

import click

from gravity_conformance._guard import clean
from gravity_conformance._status import COULD_NOT, complain

_LONGEST = 2000  # characters of a complaint


def status_of(program: str, command: click.Command) -> int:
    """Run a command with the arguments of the process, and return its status.

    `command.main` would end with status 1 where the reader closes the pipe.
    """
    try:
        with command.make_context(program, sys.argv[1:]) as context:
            return int(command.invoke(context) or 0)
    except click.exceptions.Exit as stop:  # of --help and --version
        return stop.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return COULD_NOT
    except click.ClickException as error:
        complain(f"{program}: {clean(error.format_message(), _LONGEST)}")
        return COULD_NOT
