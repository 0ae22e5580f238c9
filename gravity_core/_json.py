"""Reading JSON that others wrote: what says one thing twice, or nests without end, is refused."""

import json
from collections import Counter
from typing import Any


def loads(text: str, **options: Any) -> Any:
    """Return what `json.loads` does.

    Args:
        text: of JSON.
        **options: of `json.loads`.

    Raises:
        ValueError: if it is no JSON, is nested too deeply, or has a key twice in one object.

    Example:
        >>> loads('{"t": 1}')
        {'t': 1}
        >>> loads('{"t": 1, "t": 7}')
        Traceback (most recent call last):
        ...
        ValueError: the key 't' appears twice in one object
    """
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates, **options)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r} appears twice in one object")
    return found
