"""Numbers that JSON has not."""

import math
from typing import Any


def finite(value: Any) -> Any:
    """Replace what JSON has no number for by its name, however deep it lies in lists and dicts.

    Example:
        >>> finite({"worst": [1.0, float("inf")]})
        {'worst': [1.0, 'inf']}
    """
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
