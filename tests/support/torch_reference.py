"""The NumPy reference for one parameter of gravity_torch, with its certified bound."""

import numpy as np
import pytest
import torch

import gravity_core


def to_numpy(x):
    """Return a copy of a tensor, complex numbers as pairs of reals."""
    x = x.detach().resolve_conj()
    x = torch.view_as_real(x) if x.is_complex() else x
    if x.dtype == torch.bfloat16:
        ml_dtypes = pytest.importorskip("ml_dtypes", reason="NumPy has bfloat16 from ml_dtypes")
        return x.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16).copy()
    return x.numpy().copy()


class Reference:
    """Steps one parameter with `gravity_core.update`, as the reference for a torch parameter.

    Args:
        p: the parameter before its first step.
        std: σ.
        seed: as given to the optimizer.
        index: the parameter's position among all.
        options: beta, weight_decay, maximize, first_step.
    """

    def __init__(self, p, std, seed, index, **options):
        self.w = to_numpy(p)
        shape = (*p.shape, 2) if p.is_complex() else p.shape
        self.v = gravity_core.initial_velocity(shape, self.w.dtype, std=std, seed=seed, index=index)
        self.steps, self.first_step = 0, options.pop("first_step", 1)
        self.maximize = options.pop("maximize", False)
        self.options = {"beta": 0.9, "weight_decay": 0.0} | options
        self.bound = gravity_core.ErrorBound(self.w)

    def step(self, grad, lr):
        """Step with a gradient, as `to_numpy` gives it."""
        g, t = -grad if self.maximize else grad, self.steps + self.first_step
        v = np.asarray(gravity_core.update(g, self.v, t, beta=self.options["beta"]))
        wide = self.w.astype(np.promote_types(self.w.dtype, np.float32))
        decay = lr * self.options["weight_decay"]
        shrunk = wide - decay * wide if decay else wide
        w = np.asarray(shrunk - lr * v.astype(wide.dtype), self.w.dtype)
        self.bound.step(g, self.v, v, self.w, w, t=t, learning_rate=lr, **self.options)
        self.w, self.v, self.steps = w, v, self.steps + 1

    def check(self, p, state, *, exact=False):
        """Assert that every element of V and W is within twice the bound, or equal if `exact`."""
        assert state["step"] == self.steps
        for name, got, expected, limit in (
            ("V", state["velocity"], self.v, self.bound.v),
            ("W", p, self.w, self.bound.w),
        ):
            got = to_numpy(got).astype(np.float64)
            assert got.shape == expected.shape
            distance = np.abs(got - expected.astype(np.float64))
            outside = ~(distance <= (0 * limit if exact else 2 * limit))
            assert not outside.any(), (
                f"{name} of {tuple(p.shape)} {p.dtype} after {self.steps} steps is off by up to "
                f"{(distance[outside] / limit[outside]).max():.3g} times the bound"
            )


class Calls(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts operations, without views.

    A copy between lists counts once for each tensor, or once in all if their strides are equal.
    """

    number = 0
    looks = torch.ops.aten._local_scalar_dense.default, torch.ops.prim.device.default

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        lists = [arg for arg in args if isinstance(arg, (list, tuple))]
        if func is torch.ops.aten._foreach_copy_.default:
            alike = all(x.stride() == y.stride() for x, y in zip(*lists, strict=True))
            self.number += 1 if alike else len(lists[0])
        elif not func.is_view and func not in self.looks:
            self.number += 1
        return out
