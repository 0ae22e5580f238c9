"""The update through other namespaces: what it asks of a library, and that it asks no other."""

import warnings
from types import SimpleNamespace

import array_api_compat
import numpy as np
import pytest

from gravity_core import gradient_term, max_abs_grad, max_step_grad, trace, update


class Recorder:
    """A namespace that records the names that are looked up and found."""

    def __init__(self, xp):
        self._xp, self.names = xp, set()

    def __getattr__(self, name):
        value = getattr(self._xp, name)
        if not name.startswith("__"):
            self.names.add(name)
        return value


@pytest.mark.parametrize(
    ("dtype", "names"),
    [
        ("float32", {"max", "maximum", "min", "float32"}),
        ("float64", {"max", "maximum", "min", "float32"}),
        ("float16", {"max", "maximum", "min", "float32", "astype"}),
    ],
)
def test_names_used_from_the_namespace(dtype, names):
    """Another array library needs these names and operators."""
    xp = Recorder(np)
    g = np.ones(3, dtype)
    trace(g, g, 1, xp=xp)
    assert xp.names == names


class WithoutKeepdims:
    """A namespace like paddle's: its reductions call the argument keepdim."""

    float32, maximum = np.float32, staticmethod(np.maximum)
    max, min = (staticmethod(lambda x, f=f: f(x)) for f in (np.max, np.min))

    @staticmethod
    def astype(x, dtype):
        return x.astype(dtype)


def test_a_namespace_without_keepdims():
    grad, v = np.asarray([1.0, -2.0], np.float32), np.ones(2, np.float32)
    expected = update(grad, v, t=1)
    assert np.array_equal(update(grad, v, t=1, xp=WithoutKeepdims), expected)
    assert trace(grad, v, 1, xp=WithoutKeepdims).m == 0.5


class ReducesAllOverNoAxes(SimpleNamespace):
    """A namespace like torch's: a reduction over no axes is one over all."""

    float32, maximum = np.float32, staticmethod(np.maximum)
    max, min = (
        staticmethod(lambda x, f=f, axis=None, **kept: f(x, axis=axis or None, **kept))
        for f in (np.max, np.min)
    )


def test_no_axes_reduce_nothing():
    g = np.asarray([1.0, -2.0])
    assert max_abs_grad(g, axes=(), xp=ReducesAllOverNoAxes()).tolist() == [1, 2]


class Foreign(SimpleNamespace):
    """A namespace that cannot be inferred, and with dtypes that are not NumPy's."""

    __name__ = "array_api_compat.torch"
    float32 = object()
    max, min, maximum = staticmethod(np.max), staticmethod(np.min), staticmethod(np.maximum)

    @classmethod
    def astype(cls, x, dtype):
        assert not isinstance(dtype, str)  # only keras.ops takes names
        return x.astype(np.float32 if dtype is cls.float32 else dtype)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_only_the_given_namespace_is_used(monkeypatch, dtype):
    grad, v, t = np.asarray([1, -2], dtype), np.ones(2, dtype), np.asarray(1, np.float32)
    calls = [
        lambda **xp: update(grad, v, t, **xp),
        lambda **xp: trace(grad, v, 1, **xp).m,
        lambda **xp: trace(grad, v, 1, **xp).zeta,
        lambda **xp: max_step_grad(grad, **xp),
        lambda **xp: max_abs_grad(grad, axes=(0,), **xp),
        lambda **xp: max_abs_grad(grad, axes=(), **xp),
        lambda **xp: gradient_term(grad, **xp),
    ]
    expected = [call() for call in calls]

    def refuse(*arguments, **kinds):
        raise AssertionError("neither the arrays nor NumPy must be asked")

    monkeypatch.setattr(array_api_compat, "array_namespace", refuse)
    monkeypatch.setattr(np, "errstate", refuse)  # torch.compile cannot trace through it
    for call, want in zip(calls, expected, strict=True):
        got = call(xp=Foreign())
        assert got.dtype == want.dtype
        assert got.tolist() == want.tolist()


def test_overflow_and_division_by_zero_are_silent():
    """Warnings are errors here; each of the four kinds is caused once."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert max_step_grad(np.zeros(2)) == np.inf  # division by zero
        assert max_step_grad(np.full(2, 5e-324)) == np.inf  # overflow of a quotient
        assert gradient_term(np.asarray([1e200])) == 0  # overflow of s·s
        assert np.isnan(gradient_term(np.asarray([np.inf]))).all()  # inf / inf
