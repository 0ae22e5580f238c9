"""JSON of unknown origin."""

import pytest

from gravity_core import _json


def test_an_object_without_repeated_keys_is_read():
    assert _json.loads('{"a": {"t": 1}, "t": 2}') == {"a": {"t": 1}, "t": 2}


def test_options_reach_the_parser():
    assert _json.loads("[1.5, 2]", parse_float=str) == ["1.5", 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "b": {"t": 1, "u": 0, "t": 1}}', "the key 't' appears twice in one object"),
        ('{"a": 1, "b": 2, "b": 3, "b": 4}', "the key 'b' appears twice in one object"),
        ("[" * 100_000, "it is nested too deeply"),
    ],
    ids=["inside", "three", "deep"],
)
def test_what_a_parser_may_take_differently_is_refused(text, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        _json.loads(text)
