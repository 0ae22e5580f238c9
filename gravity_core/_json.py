"""Read untrusted JSON: repeated keys and excessive nesting raise errors."""

import json
from collections import Counter
from typing import Any


def loads(text: str, **options: Any) -> Any:
    """Parse JSON like `json.loads`, with stricter checks.

    Args:
        text: the JSON text.
        **options: passed to `json.loads`.

    Raises:
        ValueError: if the text is not JSON, is nested too deeply, or repeats a key in an object.

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
        key = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {key!r} appears twice in one object")
    return found
