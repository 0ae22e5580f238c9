"""Gravity as a `torch.optim.Optimizer`.

Guarantees: the state needs no global random numbers and survives a state_dict round
trip bit for bit; bad arguments, states and sparse gradients are refused before any parameter
has moved; gradients are never written to. The plain loop gives the bits of the NumPy reference.
"""

import functools
import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, TypeAlias, overload

import torch
from torch import Tensor

from gravity_core import hyperparameters as hp
from gravity_torch import _distributed
from gravity_torch._compiled import compiled
from gravity_torch._fast import count, fast
from gravity_torch._items import items_of
from gravity_torch._loop import Item, Options, for_loop
from gravity_torch._state_checks import check_shapes, check_state, counter, translated
from gravity_torch._velocity import initial_velocity

# Parameters, groups or named parameters, as torch's own optimizers take them.
Params: TypeAlias = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]

# The name of each hyper-parameter in torch.
NAMES = {name: "lr" if name == "learning_rate" else name for name in hp.DEFAULTS}
_DEFAULTS = {
    **{NAMES[name]: value for name, value in hp.DEFAULTS.items()},
    "foreach": None,
    "maximize": False,
    "capturable": False,
    "differentiable": False,
    "fused": None,
}


def _with_grad_if_differentiable(step: Callable[..., Any]) -> Callable[..., Any]:
    """Let a step record gradients only if `differentiable`, whatever its caller's mode is."""
    try:  # private to torch; it also breaks torch.compile graphs at each step
        from torch.optim.optimizer import _use_grad_for_differentiable
    except ImportError:
        pass
    else:
        return _use_grad_for_differentiable(step)

    @functools.wraps(step)
    def in_its_mode(self: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return step(self, *args, **kwargs)

    return in_its_mode


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
        lr: l, finite and >= 0; a number, or a Tensor with one element.
        alpha: α, finite and >= 0; the standard deviation of V₀ is alpha / lr with the lr
            that the group was added with, whatever a scheduler does later. Where that is a
            small start of a warm-up, give velocity_std.
        beta: β in [0, 1]; the running average covers up to 1 / (1 − β) gradients.
        weight_decay: λ, finite and >= 0; decoupled, as in AdamW.
        velocity_std: standard deviation of V₀, overriding alpha / lr; >= 0, and such that V₀
            does not overflow the parameters' dtype.
        seed: integer in [0, 2**64). V₀ depends on it and on the parameter's position among
            all parameters, so data-parallel replicas start alike; several optimizers for
            parts of one model want a seed each.
        first_step: t of the first update: 1 (Algorithm 1) or 0 (the original Keras code).
        foreach: False runs the plain loop over the core's functions, with the bits of the
            NumPy reference. None and True run the fast path, inside the certified bound.
        maximize: maximize the objective instead of minimizing it.
        capturable: keep the step count on the parameter's device and never look at it from
            the host, as CUDA graphs require; in one, a scheduler reaches only an lr that is a
            Tensor on the GPU.
        differentiable: let autograd differentiate through the step, in W, V and a Tensor lr;
            the standard deviation of V₀ is a constant to it, also where it is alpha / lr.
        fused: True compiles the update with `torch.compile`.

    Raises:
        ValueError: naming the argument and the value received.
        RuntimeError: for `fused` with `foreach`, or with `differentiable`, in torch's words.

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

    _has_warned = False  # of a start from rest

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = hp.LEARNING_RATE,
        alpha: float = hp.ALPHA,
        beta: float = hp.BETA,
        *,
        weight_decay: float = hp.WEIGHT_DECAY,
        velocity_std: float | None = None,
        seed: int = hp.SEED,
        first_step: int = hp.FIRST_STEP,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
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
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(params, _checked(defaults))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its V₀ has the standard deviation alpha / lr of this moment."""
        if not isinstance(param_group, dict):
            super().add_param_group(param_group)  # which refuses it
        given, number = param_group.get("velocity_std"), len(self.param_groups)
        try:
            param_group.update(_checked(self.defaults | param_group))
            self._fix_velocity_std(param_group, param_group["lr"])
            super().add_param_group(param_group)
            for p in param_group["params"]:
                if p.requires_grad:
                    _check_velocity_std(p, param_group)
        except Exception:
            del self.param_groups[number:]
            param_group["velocity_std"] = given  # the user's dict, which may be mended
            raise

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore from a pickle or a state_dict; options that it does not know get defaults.

        σ is no default: it stays that of the group that the state is loaded into. A pickle has
        none, and σ comes from the rate that a scheduler started with, where there is one.
        """
        fixed = [group.get("velocity_std") for group in self.__dict__.get("param_groups", ())]
        for group in state["param_groups"]:
            for p in group["params"]:
                values = state["state"].get(p, {})
                if "velocity" in values:
                    values["velocity"] = _distributed.placed(values["velocity"], p)
                check_state(p, values)
        super().__setstate__(state)
        self.defaults = _DEFAULTS | self.defaults  # which come from the pickle, too
        for i, group in enumerate(self.param_groups):
            if group.get("velocity_std") is None:
                group["velocity_std"] = fixed[i] if i < len(fixed) else None
            for name, value in self.defaults.items():
                group.setdefault(name, value)
            self._fix_velocity_std(group, group.get("initial_lr", group["lr"]))
            for p in group["params"]:
                if values := self.state.get(p, {}):
                    values["step"] = counter(values["step"], p, group)  # a number in other codes

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, also one of the original Gravity code or of pytorch_optimizer's.

        Those call the velocity ``v``, and count the steps per group, as ``t`` or ``step``.
        """
        super().load_state_dict(translated(state_dict))

    def _fix_velocity_std(self, group: dict[str, Any], lr: float | Tensor) -> None:
        """Fix σ of a group; the first that has none, and starts from rest, says so."""
        undefined = group["velocity_std"] is None and _number(lr) == 0 and group["alpha"] != 0
        if undefined and self._has_warned:
            group["velocity_std"] = 0.0
            return
        group["velocity_std"] = hp.velocity_std(
            _number(lr),
            group["alpha"],
            group["velocity_std"],
            names=NAMES,
            stacklevel=_level_of_user() + 1 if undefined else 1,
        )
        self._has_warned = self._has_warned or undefined

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @_with_grad_if_differentiable
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Perform one optimization step.

        Args:
            closure: reevaluates the model and returns the loss; its result is returned.

        Raises:
            RuntimeError: for a sparse gradient, before any parameter has moved.
            ValueError: for a gradient or a velocity that has not its parameter's shape, or is real
                where that is complex or the reverse, as where `p.data` was replaced; before any
                parameter or counter has moved.
        """
        _check_capture(self)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        batches = []
        for group in self.param_groups:
            params: list[Tensor] = []
            grads: list[Tensor] = []
            velocities: list[Tensor] = []
            steps: list[Tensor] = []
            self._init_group(group, params, grads, velocities, steps)
            batches.append((group, params, grads, velocities, steps))
        parts = _distributed.parts([p for _, params, *_ in batches for p in params], self.state)
        if parts and any(group["differentiable"] for group in self.param_groups):
            raise RuntimeError("`differentiable` does not support DTensor")
        for (
            p,
            part,
        ) in parts.items():  # after the collective, in which the other processes would wait
            if part.p.shape != part.velocity.shape:
                check_state(p, self.state[p])
        items = [items_of(*batch, parts) for batch in batches]  # of all groups, before any moves
        for (group, params, *_, steps), items_of_group in zip(batches, items, strict=True):
            _step_group(group, params, steps, items_of_group)
        return loss

    # torch.compile calls a method of this name outside the graph that it makes of `step`.
    def _init_group(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        velocities: list[Tensor],
        steps: list[Tensor],
    ) -> None:
        """Collect what has a gradient, and its state; create the state at the first gradient."""
        states, strided = self.state, torch.strided  # looked up once: the loop is of many
        for i, p in enumerate(group["params"]):
            if (grad := p.grad) is not None:
                if grad.layout is not strided:
                    kind = str(grad.layout)
                    kind = "sparse gradients" if "sparse" in kind else f"gradients of layout {kind}"
                    raise RuntimeError(f"Gravity does not support {kind}")
                state = states[p] or self._init_state(p, group, self._position(group) + i)
                velocity = state["velocity"]
                if not p.shape == velocity.shape == grad.shape:
                    check_shapes(p, grad, state)  # p.data was replaced; the kernels do not look
                params.append(p)
                grads.append(grad)
                velocities.append(velocity)
                steps.append(state["step"])

    def _position(self, group: dict[str, Any]) -> int:
        """Return the number of parameters before those of the group: V₀ is numbered so."""
        number = 0
        for other in self.param_groups:
            if other is group:
                break
            number += len(other["params"])
        return number

    def _init_state(self, p: Tensor, group: dict[str, Any], index: int) -> dict[str, Any]:
        draw = first_velocity
        if torch.compiler.is_compiling():  # what draws V₀ cannot be traced
            draw = torch.compiler.disable(draw)
        velocity = draw(p, group, index)
        state: dict[str, Any] = self.state[p]
        state.update(step=counter(0.0, p, group), velocity=velocity)
        return state


def first_velocity(p: Tensor, group: dict[str, Any], index: int) -> Tensor:
    """Return V₀ of a parameter of the group, the one of number `index`."""
    _check_velocity_std(p, group)
    return initial_velocity(p, group["velocity_std"], group["seed"], index)


def _check_velocity_std(p: Tensor, group: dict[str, Any]) -> None:
    std, dtype = group["velocity_std"], str(p.dtype.to_real()).removeprefix("torch.")
    if std > hp.largest_velocity_std(dtype):
        lr, alpha = _number(group["lr"]), group["alpha"]
        hp.check_velocity_std(std, dtype, learning_rate=lr, alpha=alpha, names=NAMES)


def _step_group(
    group: dict[str, Any], params: list[Tensor], steps: list[Tensor], items: list[Item]
) -> None:
    """Count the step, and update on the path that the options and the tensors allow."""
    if not steps:
        return
    compiling = torch.compiler.is_compiling()
    if not (compiling or group["differentiable"]):
        # Private kernels do not tell autograd, so it could not tell a stale graph from a fresh one.
        torch.autograd.graph.increment_version(params)
    if group["capturable"] or compiling:
        torch._foreach_add_(steps, 1)
    else:
        count(steps)
    options = Options(
        lr=_as_scalar(group["lr"]),
        beta=group["beta"],
        weight_decay=group["weight_decay"] or None,
        maximize=group["maximize"],
    )
    if compiling:
        items = [(_listed(p), _listed(g), _listed(v), t, m) for p, g, v, t, m in items]
    readable = group["foreach"] is False or compiling or group["differentiable"]
    path = for_loop if readable else fast
    if group["fused"] and not compiling:
        compiled(items, options, others=path)
    else:
        path(items, options)


def _listed(x: Tensor) -> Tensor:
    # 0-d float64 tensors are numbers to torch.compile, which loses what is written to them.
    return x if x.ndim else x.view(1)


def _as_scalar(lr: float | Tensor) -> float | Tensor:
    if not isinstance(lr, Tensor):
        return lr
    # In float64, as a number is, so that l λ is rounded once; MPS has none.
    return lr.reshape(()) if lr.is_mps else lr.reshape(()).double()


def _checked(group: dict[str, Any]) -> dict[str, Any]:
    """Return the options with Python's own numbers; raise for the first that is bad."""
    lr = group["lr"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError("Tensor lr must be 1-element")
    values = {name: group[own] for name, own in NAMES.items()}
    hp.validate(**values | {"learning_rate": _number(lr)}, names=NAMES)
    if _number(lr) > 0:  # at 0 it warns, which is for the group that is added
        hp.velocity_std(_number(lr), group["alpha"], group["velocity_std"], names=NAMES)
    if group["fused"] and group["differentiable"]:
        raise RuntimeError("`fused` does not support `differentiable`")
    if group["fused"] and group["foreach"]:
        raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
    # A state with NumPy's numbers would not load with weights_only=True.
    numbers = {name: float(group[name]) for name in ("alpha", "beta", "weight_decay")}
    numbers |= {name: int(group[name]) for name in ("seed", "first_step")}
    return group | numbers | {"lr": lr if isinstance(lr, Tensor) else float(lr)}


def _number(lr: Any) -> Any:
    """Return a one-element Tensor as NumPy's number, and anything else unchanged, to be refused."""
    if not isinstance(lr, Tensor) or not hp.may_be_a_number(lr):
        return lr
    lr = lr.detach().cpu()
    return (lr.float() if lr.dtype == torch.bfloat16 else lr).numpy().reshape(())[()]


def _level_of_user() -> int:
    """Return how far above its caller the user's code is, for `warnings.warn`."""
    level, frame = 0, sys._getframe()
    # Code that is run by `exec` may have no name.
    while frame.f_back and _package(frame) in ("torch", __package__):
        level, frame = level + 1, frame.f_back
    return level


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]


def _check_capture(optimizer: Gravity) -> None:
    """Refuse a step in a CUDA graph that would not be replayed rightly."""
    # Private to torch, whose later versions deprecate the second name, under which others have it.
    for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
        if check := getattr(optimizer, name, None):
            check()
            return
    # Repeat torch's error, which matters, and leave out its advice on capturable=True.
    if torch.compiler.is_compiling() or not torch.cuda.is_available():
        return
    capturable = all(group["capturable"] for group in optimizer.param_groups)
    if torch.cuda.is_current_stream_capturing() and not capturable:
        raise RuntimeError(
            "Attempting CUDA graph capture of step() for an instance of "
            f"{type(optimizer).__name__} but param_groups' capturable is False."
        )
