"""How an extra is installed today, for every hint in an error message.

With a release on PyPI, `FORM` becomes "pip install 'gravity-optimizer[{extra}]'"; a test finds the
pages that must follow.
"""

FORM = "pip install '.[{extra}]' in a clone of gravity-optimizer"


def install(extra: str) -> str:
    """Return the command that installs an extra."""
    return FORM.format(extra=extra)
