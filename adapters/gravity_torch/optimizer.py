"""Gravity as a `torch.optim.Optimizer`.

Guarantees: the state needs no global random numbers and survives a state_dict round
trip bit for bit; nothing of a step has happened when it raises for its input;
gradients are never written to. The plain loop gives the bits of the NumPy reference.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, overload

import array_api_compat.torch as xp
import numpy as np
import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from gravity_core import hyperparameters as hp
from gravity_core.coefficients import coefficients
from gravity_core.update import update
from gravity_core.velocity import standard_normal

_NAMES = {"learning_rate": "lr"}


class Gravity(torch.optim.Optimizer):
    r"""Implements the Gravity algorithm (Bahrami and Pouriyan Zadeh, 2021).

    .. math::
        \begin{aligned}
            &V_0 \sim \mathcal{N}(0, (\alpha / l)^2), \quad t \leftarrow t + 1           \\
            &\hat\beta = (\beta t + 1) / (t + 2)                                         \\
            &\zeta = G / (1 + (G \max|G|)^2)                                             \\
            &V \leftarrow \hat\beta V + (1 - \hat\beta) \zeta                            \\
            &W \leftarrow W - l \lambda W - l V
        \end{aligned}

    with learning rate l, weight decay λ, and one max|G| per parameter tensor.

    Args:
        params: parameters, parameter groups or named parameters to optimize.
        lr: l, finite and >= 0.
        alpha: α, finite and >= 0; the standard deviation of V₀ is alpha / lr with the lr
            that the group was added with, whatever a scheduler does later.
        beta: β in [0, 1]; the running average covers up to 1 / (1 − β) gradients.
        weight_decay: λ, finite and >= 0; decoupled, as in AdamW.
        velocity_std: standard deviation of V₀, overriding alpha / lr; finite and >= 0.
        seed: integer in [0, 2**64). V₀ depends on it and on the parameter's position among
            all parameters, so data-parallel replicas start alike.
        first_step: t of the first update: 1 (Algorithm 1) or 0 (the original Keras code).
        foreach: True runs the horizontally batched path, False the plain loop. None chooses
            batches where all parameters are on an accelerator.
        maximize: maximize the objective instead of minimizing it.
        fused: True compiles the update with `torch.compile`.

    Raises:
        ValueError: naming the argument and the value received.

    State per parameter: ``step`` (updates made), ``velocity`` (V, in the parameter's
    dtype; complex parameters have a complex velocity). Both appear at the parameter's
    first gradient.

    Source: arXiv 2101.09192, Algorithm 1.

    Example:
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = Gravity(model.parameters(), lr=0.1)
        >>> loss = model(torch.ones(8, 4)).square().mean()
        >>> loss.backward()
        >>> optimizer.step()
        >>> sorted(optimizer.state[model.bias])
        ['step', 'velocity']
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = hp.LEARNING_RATE,
        alpha: float = hp.ALPHA,
        beta: float = hp.BETA,
        *,
        weight_decay: float = hp.WEIGHT_DECAY,
        velocity_std: float | None = None,
        seed: int = hp.SEED,
        first_step: int = hp.FIRST_STEP,
        foreach: bool | None = None,
        maximize: bool = False,
        fused: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "alpha": alpha,
            "beta": beta,
            "weight_decay": weight_decay,
            "velocity_std": velocity_std,
            "seed": seed,
            "first_step": first_step,
            "foreach": foreach,
            "maximize": maximize,
            "fused": fused,
        }
        _validate(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its V₀ has the standard deviation alpha / lr of this moment."""
        if isinstance(param_group, dict):
            _validate(self.defaults | param_group)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group["velocity_std"] = hp.velocity_std(
            group["lr"], group["alpha"], group["velocity_std"], names=_NAMES
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore from a pickle; options that it does not know get their defaults."""
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Perform one optimization step.

        Args:
            closure: reevaluates the model and returns the loss; its result is returned.

        Raises:
            RuntimeError: for a sparse gradient, before any parameter has moved.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, tensors in self._tensors_by_group():
            _path(group, tensors)(group, tensors)
        return loss

    def _tensors_by_group(self) -> list[tuple[dict[str, Any], list["_Tensors"]]]:
        """Count the step and collect what has a gradient, as real tensors; create missing state."""
        if any(p.grad is not None and p.grad.is_sparse for _, p in self._positions()):
            raise RuntimeError("Gravity does not support sparse gradients")
        tensors: list[list[_Tensors]] = [[] for _ in self.param_groups]
        for index, (number, p) in enumerate(self._positions()):
            if p.grad is None:
                continue
            group = self.param_groups[number]
            state = self._init_state(p, group, index)
            t = int(state["step"].item()) + group["first_step"]
            state["step"] += 1
            if p.numel():
                p, grad, velocity = map(_as_reals, (p, p.grad, state["velocity"]))
                tensors[number].append(_Tensors(p, grad, velocity, t))
        return [(g, batch) for g, batch in zip(self.param_groups, tensors, strict=True) if batch]

    def _init_state(self, p: Tensor, group: dict[str, Any], index: int) -> dict[str, Any]:
        """Return the state of a parameter; create it at its first gradient."""
        state: dict[str, Any] = self.state[p]
        if not state:
            # float32 counts exactly up to 2**24 steps, and is what torch's own optimizers keep.
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["velocity"] = _initial_velocity(p, group, index)
        return state

    def _positions(self) -> Iterator[tuple[int, Tensor]]:
        """Yield (number of its group, parameter) in the order that numbers V₀'s streams."""
        for number, group in enumerate(self.param_groups):
            for p in group["params"]:
                yield number, p


class _Tensors(NamedTuple):
    p: Tensor
    grad: Tensor
    velocity: Tensor
    t: int


def _as_reals(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


def _validate(group: dict[str, Any]) -> None:
    checked = ("alpha", "beta", "weight_decay", "velocity_std", "seed", "first_step")
    values = {name: group[name] for name in checked}
    hp.validate(learning_rate=group["lr"], **values, names=_NAMES)
    if group["fused"] and group["foreach"]:
        raise RuntimeError("`fused` and `foreach` cannot be `True` together.")


def _initial_velocity(p: Tensor, group: dict[str, Any], index: int) -> Tensor:
    """Draw V₀ on the parameter's device, in its dtype and memory format."""
    real = _as_reals(p)
    flat = torch.empty(real.numel(), dtype=real.dtype, device=p.device)
    wide = torch.promote_types(real.dtype, torch.float32)

    def asarray(array: np.ndarray) -> Tensor:
        # PyTorch has no arithmetic on uint32; int32 wraps around and gives the same bits.
        signed = array.view(np.int32) if array.dtype == np.uint32 else array.copy()
        return torch.from_numpy(signed).to(p.device)

    for a, b, z in standard_normal(
        0, flat.numel(), seed=group["seed"], index=index, asarray=asarray, xp=xp
    ):
        flat[a:b] = z.to(wide) * group["velocity_std"]
    velocity = torch.empty_like(p, memory_format=torch.preserve_format)
    _as_reals(velocity).copy_(flat.view(real.shape))
    return velocity


def _path(group: dict[str, Any], tensors: list[_Tensors]) -> Callable[..., None]:
    """Choose how to update a group, as the arguments and the tensors allow."""
    if group["fused"]:
        return _fused
    foreach = group["foreach"]
    if foreach is None:
        foreach = all(x.p.device.type == "cuda" for x in tensors)
    wide = all(x.p.dtype in (torch.float32, torch.float64) for x in tensors)
    return _foreach if foreach and wide else _for_loop


def _update(
    p: Tensor,
    grad: Tensor,
    velocity: Tensor,
    t: int | Tensor,
    lr: float | Tensor,
    weight_decay: float,
    beta: float,
    maximize: bool,
) -> None:
    """Update one tensor with the core's functions: the readable path, also the compiled one."""
    wide = torch.promote_types(p.dtype, torch.float32)
    velocity.copy_(update(-grad if maximize else grad, velocity, t, beta=beta, xp=xp))
    w = p.to(wide)
    if weight_decay:
        w = w - w * (lr * weight_decay)
    # A product and a difference, not sub(alpha=lr), which rounds once and NumPy twice.
    p.copy_(w - velocity.to(wide) * lr)


def _for_loop(group: dict[str, Any], tensors: list[_Tensors]) -> None:
    options = [group[name] for name in ("lr", "weight_decay", "beta", "maximize")]
    for x in tensors:
        _update(*x, *options)


@functools.cache
def _compiled_update() -> Callable[..., None]:
    return torch.compile(_update, dynamic=True)


def _fused(group: dict[str, Any], tensors: list[_Tensors]) -> None:
    """Update tensor by tensor with one compiled graph for all shapes."""
    options = [group[name] for name in ("weight_decay", "beta", "maximize")]
    # What changes goes in as 0-d tensors and all shapes as flat views, lest the graph be made anew.
    lr = torch.as_tensor(group["lr"], dtype=torch.float64)
    for x in tensors:
        flat = [y.view(-1) for y in x[:3] if y.is_contiguous()]
        if len(flat) < 3 or x.p.numel() < 2:  # one element would be a graph of its own
            _for_loop(group, [x])
        else:
            _compiled_update()(*flat, torch.tensor(x.t, dtype=torch.float64), lr, *options)


def _foreach(group: dict[str, Any], tensors: list[_Tensors]) -> None:
    """Update many tensors with few calls: the operations of the core, in its order."""
    ps, grads, vs = (
        [x.p for x in tensors],
        [x.grad for x in tensors],
        [x.velocity for x in tensors],
    )
    old, new = (
        list(c) for c in zip(*(coefficients(x.t, group["beta"]) for x in tensors), strict=True)
    )
    lr = float(group["lr"])
    if group["maximize"]:
        grads = list(torch._foreach_neg(grads))
    s = [g * torch.maximum(g.max(), -g.min()) for g in grads]
    torch._foreach_mul_(s, s)
    torch._foreach_add_(s, 1.0)
    zeta = torch._foreach_div(grads, s)
    torch._foreach_mul_(zeta, new)
    torch._foreach_mul_(vs, old)
    torch._foreach_add_(vs, zeta)
    if group["weight_decay"]:
        torch._foreach_sub_(ps, torch._foreach_mul(ps, lr * group["weight_decay"]))
    torch._foreach_sub_(ps, torch._foreach_mul(vs, lr))
