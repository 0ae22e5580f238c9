"""A short run of the fuzzer of State files; `tests/hostile/state_files.py` says what it tries."""

import tracemalloc
from random import Random

import pytest

from gravity_core import _npz
from tests.hostile import state_files


def test_spoilt_files_are_refused_or_read_as_what_they_are(tmp_path):
    tracemalloc.start()
    try:
        counts = state_files.run(Random(0), tmp_path, most=600)
    finally:
        tracemalloc.stop()
    assert sum(counts.values()) == 600
    kinds = {kind.__name__ for kind in state_files.DAMAGE + state_files.STRANGE}
    for outcome, expected in (("refused", kinds), ("read", kinds - {"truncations"})):
        found = {key.split()[0] for key in counts if key.endswith(f": {outcome}")}
        assert found <= expected
        assert outcome == "read" or found == kinds
    assert len([key for key in counts if key.endswith("read")]) > 10


def test_the_fuzzer_finds_what_is_not_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(_npz, "_check_sum", lambda stored, checksum: None)
    with pytest.raises(AssertionError, match=r"^(flips|truncations|edits_of_\w+) of "):
        state_files.run(Random(0), tmp_path, most=2000)


def test_killed_saves(tmp_path):
    counts = state_files.run_kills(Random(0), tmp_path, most=2)
    assert sum(counts.values()) == 2
