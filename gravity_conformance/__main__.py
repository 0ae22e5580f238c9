"""Entry point of the console script ``gravity``, and of ``python -m gravity_conformance``."""

import os
import sys

from gravity_conformance._caller import without_current_folder, without_settings

_NEEDS = ("click", "rich")
_LONGEST = 2000  # characters of a complaint


def main() -> None:
    """Run the command line; `gravity_conformance._status` has its exit statuses."""
    from gravity_conformance._status import run

    run("gravity", _command)


def _command() -> int:
    import importlib.util

    from gravity_conformance._status import COULD_NOT, CouldNotError, complain

    without_settings()
    for name in _NEEDS:
        if importlib.util.find_spec(name) is None:
            needed = "pip install 'gravity-optimizer[cli]'"
            raise CouldNotError(f"the command line needs {name}: {needed}")
    import click

    from gravity_conformance._guard import clean
    from gravity_conformance.cli import cli

    if "_GRAVITY_COMPLETE" in os.environ:  # a shell asks how a word may go on
        cli.main(prog_name="gravity")
    try:
        # Not by cli.main, which ends with status 1 where the reader closes the pipe.
        with cli.make_context("gravity", sys.argv[1:]) as context:
            return int(cli.invoke(context) or 0)
    except click.exceptions.Exit as stop:  # of --help and --version
        return stop.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return COULD_NOT
    except click.ClickException as error:
        complain(f"gravity: {clean(error.format_message(), _LONGEST)}")
        return COULD_NOT


if __name__ == "__main__":
    without_current_folder()
    main()
