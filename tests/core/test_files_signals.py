"""Signals that come while files are moved to their places."""

import errno
import os
import signal

import pytest

from gravity_core import _files


def names(folder):
    return sorted(p.name for p in folder.iterdir())


class ToldError(Exception):
    """A signal came."""


@pytest.mark.parametrize(
    "sent",
    [
        [signal.SIGINT],
        [signal.SIGTERM],
        [signal.SIGHUP, signal.SIGHUP],
        [signal.SIGTERM, signal.SIGINT],
        [signal.SIGALRM, signal.SIGINT, signal.SIGUSR1],
    ],
)
@pytest.mark.parametrize("fails", [False, True])
def test_what_asks_the_process_to_end_waits_until_all_files_are_moved(
    tmp_path, monkeypatch, sent, fails
):
    """Each signal is then delivered once, whatever the first of them raises."""
    replace, told = os.replace, []

    def handler(number, frame):
        told.append((number, names(tmp_path)))
        raise ToldError

    def interrupted(a, b):
        for number in sent:
            signal.raise_signal(number)
        replace(a, b)
        if fails and b.endswith("b"):
            raise OSError(errno.EIO, "The disk fails")

    monkeypatch.setattr(os, "replace", interrupted)
    before = {number: signal.signal(number, handler) for number in sent}
    try:
        with pytest.raises(ToldError):
            _files.write({tmp_path / n: lambda f: f.write(b"new") for n in "ab"})
        assert {signal.getsignal(number) for number in sent} == {handler}
    finally:
        for number, handled in before.items():
            signal.signal(number, handled)
    assert sorted(number for number, _ in told) == sorted({*sent})
    # Of an error, the second file is left, as its move was done when it was raised.
    left = [name for _, found in told for name in found if not name.startswith(".")]
    assert left == (["b"] if fails else ["a", "b"]) * len(told)


def test_handlers_are_back_although_one_that_is_back_raises(tmp_path, monkeypatch):
    """As of a signal that comes between two of them."""
    numbers, real, raised = (signal.SIGALRM, signal.SIGINT), signal.signal, []
    before = {number: real(number, lambda number, frame: None) for number in numbers}
    handlers = {number: signal.getsignal(number) for number in numbers}

    def restore(number, handler):
        real(number, handler)
        if handler in handlers.values() and not raised:
            raised.append(number)
            raise ToldError

    monkeypatch.setattr(signal, "signal", restore)
    try:
        with pytest.raises(ToldError):
            _files.write({tmp_path / "a": lambda file: file.write(b"new")})
        assert {number: signal.getsignal(number) for number in numbers} == handlers
    finally:
        for number, handled in before.items():
            real(number, handled)
    assert raised
    assert (tmp_path / "a").read_bytes() == b"new"
