"""Entry point of the console script ``gravity``, and of ``python -m gravity_conformance``."""

import importlib.util
import io
import os
import sys

_NEEDS = ("click", "rich", "matplotlib", "sklearn")


def main() -> None:
    """Run the command line; every error of use is one line and exit status 2."""
    try:
        _main()
    except KeyboardInterrupt:
        print("gravity: interrupted; no report was written", file=sys.stderr)
        sys.exit(130)


def _main() -> None:
    # TensorFlow greets on stderr at import; what it says is of no use to this command's users.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # A terminal or pipe that has no β must not turn a passing run into a failure.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    # `gravity conform` draws only if it is asked to, and needs no data; nor do the others.
    needs = ("click", "rich") if {"conform", "vectors", "versions"} & {*sys.argv[1:2]} else _NEEDS
    for name in needs:
        if importlib.util.find_spec(name) is None:
            needed = "pip install 'gravity-optimizer[cli]'"
            print(f"gravity: the command line needs {name}: {needed}", file=sys.stderr)
            sys.exit(2)
    import click

    from gravity_conformance.cli import cli

    try:
        cli.main(prog_name="gravity", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        print(f"gravity: {error.format_message()}", file=sys.stderr)
        sys.exit(2)
    except click.Abort:  # what click makes of KeyboardInterrupt
        raise KeyboardInterrupt from None


if __name__ == "__main__":
    main()
