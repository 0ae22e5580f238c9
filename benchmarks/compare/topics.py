"""The text of the character models: Python's help on its own language. Each release has another."""

import hashlib


def topics() -> str:
    """Return the text."""
    from pydoc_data.topics import topics as found

    return "".join(found[name] for name in sorted(found))


def topics_md5() -> str:
    """Return its checksum, for the report."""
    return hashlib.md5(topics().encode(), usedforsecurity=False).hexdigest()
