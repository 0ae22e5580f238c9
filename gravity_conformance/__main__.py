"""Entry point of the console script ``gravity``, and of ``python -m gravity_conformance``."""

import os

from gravity_conformance._caller import without_current_folder, without_settings

_NEEDS = ("click", "rich")


def main() -> None:
    """Run the command line; `gravity_conformance._status` has its exit statuses."""
    from gravity_conformance._status import run

    run("gravity", _command)


def _command() -> int:
    import importlib.util

    from gravity_conformance._status import CouldNotError
    from gravity_core._install import install

    without_settings()
    for name in _NEEDS:
        if importlib.util.find_spec(name) is None:
            raise CouldNotError(f"the command line needs {name}: {install('cli')}")
    from gravity_conformance._click import status_of
    from gravity_conformance.cli import cli

    if "_GRAVITY_COMPLETE" in os.environ:  # a shell asks how a word may go on
        cli.main(prog_name="gravity")
    return status_of("gravity", cli)


if __name__ == "__main__":
    without_current_folder()
    main()
