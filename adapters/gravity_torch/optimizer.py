"""Gravity as a `torch.optim.Optimizer`.

Guarantees: V₀ uses no global random state. A state_dict restores the state bit for bit. Bad
arguments, bad states and sparse gradients raise errors before any parameter moves. A step never
writes to a gradient. On a CPU, V and W have the bits of the NumPy reference on every path.
"""

import threading
import warnings
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias, overload

import torch
from torch import Tensor

from gravity_core import hyperparameters as hp
from gravity_torch import _distributed, _fused, _paths
from gravity_torch._items import Batch
from gravity_torch._memory import Checks
from gravity_torch._options import (
    DEFAULTS,
    DERIVED,
    NAMES,
    Checked,
    check_changes,
    check_velocity_std,
    checked,
    is_derived,
    is_known,
    level_of_user,
    number,
    restore,
    underived,
)
from gravity_torch._state_checks import (
    accepted,
    check_dtype,
    check_format,
    check_is_dict,
    check_layout,
    check_loaded,
    check_state,
    counter,
)
from gravity_torch._torch_private import check_capture, with_grad_if_differentiable
from gravity_torch._velocity import initial_velocity

# Parameters, parameter groups or named parameters, as for torch's own optimizers.
Params: TypeAlias = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]

# Threads may share an optimizer, and make its first step at once. One lock for all optimizers, as a
# lock can be neither pickled nor copied; it is held for a few accesses to dicts only.
_publication = threading.Lock()


class Gravity(torch.optim.Optimizer):
    r"""Implements the Gravity algorithm (Bahrami and Pouriyan Zadeh, 2021).

    .. math::
        \begin{aligned}
            &V_0 \sim \mathcal{N}(0, (\alpha / \eta)^2), \quad t \leftarrow t + 1        \\
            &\hat\beta = (\beta t + 1) / (t + 2)                                         \\
            &\zeta = G / (1 + (G \max|G|)^2)                                             \\
            &V \leftarrow \hat\beta V + (1 - \hat\beta) \zeta                            \\
            &W \leftarrow W - \eta \lambda W - \eta V
        \end{aligned}

    with learning rate η, weight decay λ, and one max|G| per parameter tensor.

    Args:
        params: parameters, parameter groups or named parameters to optimize.
        lr: η, finite and >= 0; a number, or a Tensor with one element.
        alpha: α, finite and >= 0. The standard deviation of V₀ is alpha / lr, with both at
            the time when the group was added. Later changes do not affect it. If that lr
            is the small start of a warm-up, or a trainer sets another one later, pass
            velocity_std.
        beta: β in [0, 1]. The running average covers up to 1 / (1 − β) gradients.
        weight_decay: λ, finite and >= 0; decoupled, as in AdamW.
        velocity_std: standard deviation of V₀, used instead of alpha / lr. It must be >= 0 and
            small enough that V₀ does not overflow the parameters' dtype.
        seed: integer in [0, 2**64). V₀ depends on the seed and on the parameter's position among
            all parameters, so data-parallel replicas start alike. If several optimizers train
            parts of one model, give each its own seed.
        first_step: t of the first update: 1 (Algorithm 1) or 0 (the original Keras code).
        foreach: False updates one tensor at a time with the core's functions. True updates lists
            of tensors with torch's operations. None takes fused for parameters on a CPU, and
            foreach for all others.
        maximize: maximize the objective instead of minimizing it.
        capturable: allow capture in a CUDA graph. The step count stays on the parameter's device,
            and the host never reads it. A scheduler affects a captured graph only if lr is a
            Tensor on the GPU.
        differentiable: let autograd differentiate through the step with respect to W, V and a
            Tensor lr. The standard deviation of V₀ is a constant, even if it is alpha / lr.
        fused: True runs kernels for floating and complex parameters. They are compiled at the
            first step, by numba for a CPU and by Triton for a GPU. A gradient with gaps in memory
            or another order of elements takes foreach. A step inside `torch.compile` takes
            foreach, too.

    Raises:
        ValueError: naming the argument and the value received; also for parameters that FSDP1 has
            flattened.
        RuntimeError: for `fused` with `foreach` or with `differentiable`, as in torch, and if a
            parameter has no kernel or the compiler is missing.

    State per parameter: ``step`` (the number of updates) and ``velocity`` (V, in the parameter's
    dtype; complex for a complex parameter). Both appear at the parameter's first gradient.

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

    _warned: frozenset[str] = frozenset()  # the warnings that it has given
    _checks: Checks
    _options: Checked
    _added: list[_distributed.Added]  # for each group
    _rates: dict[Any, float]  # from which each σ was derived, by σ and α, and by σ

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
        self._checks, self._options, self._added, self._rates = Checks(), [], [], {}
        super().__init__(params, checked(defaults))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; the standard deviation of its V₀ is alpha / lr, with its current lr.

        The group may be that of another optimizer. A standard deviation that was alpha / lr there
        is then derived again, except if lr is now 0.
        """
        if not isinstance(param_group, dict):
            super().add_param_group(param_group)  # raises torch's TypeError
        given, index = dict(param_group), len(self.param_groups)
        try:
            param_group.update(checked(self.defaults | param_group))
            if is_derived(param_group) and number(param_group["lr"]) != 0:
                param_group["velocity_std"] = None
            self._fix_velocity_std(param_group, param_group["lr"])
            super().add_param_group(param_group)
            for p in param_group["params"]:
                _distributed.check_whole(p)
                if param_group["fused"]:
                    _fused.check(p)
                if p.requires_grad:
                    check_velocity_std(p, param_group)
            self._added[index:] = [_distributed.added(param_group)]
        except Exception:
            del self.param_groups[index:]
            if "params" in given:  # torch may have listed a generator
                given["params"] = param_group["params"]
            param_group.clear()  # the user may correct the dict and try again
            param_group.update(given)
            raise

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickle or a state_dict; options that it lacks get their defaults.

        σ has no default. If the state lacks σ, the receiving group keeps its own σ. Unpickling has
        no receiving group, so σ then comes from the state's initial_lr, or else from its lr.
        """
        is_load = "param_groups" in self.__dict__
        fixed = [
            {name: group.get(name) for name in ("velocity_std", DERIVED)}
            for group in self.__dict__.get("param_groups", ())
        ]
        given = state.get("defaults", self.__dict__.get("defaults", {}))
        defaults = DEFAULTS | given  # an old pickle may lack some
        self.__dict__.setdefault("_rates", {})
        options, states = [], []
        for i, group in enumerate(state["param_groups"]):
            new = {**defaults, **group}
            if group.get("velocity_std") is None:
                new.update(fixed[i] if i < len(fixed) else {"velocity_std": None})
            new = checked(new)
            if "initial_lr" in group:
                checked(new | {"lr": group["initial_lr"]}, {"lr": "initial_lr"})
            if group.get(DERIVED) is not None:
                others = {"velocity_std": DERIVED}
                new[DERIVED] = checked(new | {"velocity_std": group[DERIVED]}, others)[
                    "velocity_std"
                ]
            self._fix_velocity_std(new, new.get("initial_lr", new["lr"]))
            options.append(new)
            for p in group["params"]:
                old = state["state"].get(p, {})
                values = check_loaded(p, old, new, is_own="first_step" in group, copy=is_load)
                states.append((old, values))
        # Nothing below fails.
        for group, new in zip(state["param_groups"], options, strict=True):
            group.update(new)
        for old, values in states:
            old.update(values)
        super().__setstate__(state)
        self._checks, self._options = Checks(), []
        if len(self.__dict__.get("_added", ())) != len(self.param_groups):
            self._added = list(map(_distributed.added, self.param_groups))
        self.defaults = defaults

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state_dict of this class, of the original Gravity code or of pytorch_optimizer.

        The last two call the velocity ``v`` and keep one step count per group, as ``t`` or
        ``step``. Their checkpoints do not store σ. The receiving optimizer keeps its own σ, so
        construct it with the run's initial lr.

        The tensors of the state_dict are copied, so later steps do not change them.

        Raises:
            ValueError: naming what does not fit, and its value. The optimizer is unchanged then.
        """
        if not isinstance(state_dict, dict):  # torch copies it before it calls a hook
            check_format(state_dict)
        # The last hook: those of the user may translate a format.
        hook = self.register_load_state_dict_pre_hook(accepted)
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()

    def _fix_velocity_std(self, group: dict[str, Any], lr: float | Tensor) -> None:
        """Set σ of a group; warn once if a group has no σ and therefore starts from rest."""
        is_given, alpha = group["velocity_std"] is not None, group["alpha"]
        rate = 0.0 if is_given else number(lr)
        if rate is None:
            raise ValueError(f"lr must have a value, or velocity_std must be given, got {lr!r}")
        undefined = not is_given and rate == 0 and alpha != 0
        if undefined and "rest" in self._warned:
            group["velocity_std"] = 0.0
        else:
            group["velocity_std"] = hp.velocity_std(
                rate,
                alpha,
                group["velocity_std"],
                names=NAMES,
                stacklevel=level_of_user() + 1 if undefined else 1,
            )
        if undefined:
            self._warned |= {"rest"}
        if not is_given:
            group[DERIVED] = group["velocity_std"]
            std = group[DERIVED]
            self._rates[std, alpha] = self._rates[std] = hp.as_float(rate)
        group.setdefault(DERIVED)
        if not is_given and alpha > 1 and not undefined:
            self._warn_once(
                "alpha",
                f"alpha is {alpha!r}, so the initial velocity moves each weight by about "
                f"{2.83 * alpha:.3g}; if another library wrote alpha into the parameter group, "
                "pass velocity_std",
            )

    def _warn_once(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            warnings.warn(message, UserWarning, stacklevel=level_of_user() + 1)
            self._warned |= {kind}

    def _check_options(self) -> None:
        """Check what has arrived in the groups; derive σ again where it was set to None."""
        self._options = check_changes(self.param_groups, self._options)
        for group in self.param_groups:
            lr = group["lr"]
            if (
                isinstance(lr, Tensor)
                and lr.is_meta
                and not all(p.is_meta for p in group["params"])
            ):
                raise ValueError(f"lr must have a value, got {lr!r}")
            if group["velocity_std"] is None:
                self._fix_velocity_std(group, lr)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @with_grad_if_differentiable
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Perform one optimization step.

        Args:
            closure: reevaluates the model and returns the loss. `step` returns that loss.

        Raises:
            RuntimeError: for a sparse gradient, and where `fused=True` is impossible.
            ValueError: if a gradient or a velocity does not fit its parameter: another shape or
                device, a dtype of 8 bits or of integers, only one of the two complex, elements that
                share memory. This happens if `p.data` or a state is replaced. Also for an option of
                a group that is out of its range, for a counter that is not one whole number >= 0,
                and for parameters that were replaced by a flat tensor.

        After one of these errors, and if memory runs out before the first update, no parameter and
        no state has changed.
        """
        check_capture(self)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if torch.compiler.is_compiling():
            plan = self._plan()
        else:
            unset = underived(self.param_groups)
            created: list[tuple[Tensor, dict[str, Any]]] = []
            try:
                self._check_options()
                plan = self._plan(created)
            except BaseException:
                self._remove(created)
                restore(unset)
                raise
            for p, step in plan.counters.items():
                self.state[p]["step"] = step
        _paths.update(plan)
        return loss

    def _remove(self, created: list[tuple[Tensor, dict[str, Any]]]) -> None:
        """Remove new states, except those with which another thread has made a step since."""
        with _publication:
            for p, before in created:
                count, begun = (number(state.get("step", 0.0)) for state in (self.state[p], before))
                if count is not None and count != begun:
                    continue
                del self.state[p]
                if before:
                    self.state[p] = before

    def _plan(self, *created: list[tuple[Tensor, dict[str, Any]]]) -> _paths.Plan:
        """Check everything, and return what to do; list the parameters with new states."""
        batches = []
        for group in self.param_groups:
            batch = Batch(group, [], [], [], [])
            self._init_group(*batch, *created)
            batches.append(batch)
        shards = _distributed.shards([p for batch in batches for p in batch.params], self.state)
        if shards and any(group["differentiable"] for group in self.param_groups):
            raise RuntimeError("`differentiable` does not support DTensor")
        # Raise only after the collective operation: the other processes wait in it for this one.
        for p, shard in shards.items():
            if getattr(shard.velocity, "shape", None) != shard.p.shape:
                check_state(p, self.state[p])
        return _paths.plan(batches, shards, self._checks)

    # torch.compile runs a method of this name outside the graph of `step`.
    def _init_group(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        velocities: list[Tensor],
        steps: list[Tensor],
        created: list[tuple[Tensor, dict[str, Any]]] | None = None,
    ) -> None:
        """Collect the parameters with a gradient, and their state; create missing states.

        The last list gets each parameter whose state was created, and its state before.
        """
        # Look them up once, outside the loop. `get` makes no state, as an index would: hashing
        # a tensor is Python code, so each of two threads could make its own.
        state_of, strided = self.state.get, torch.strided
        for i, p in enumerate(group["params"]):
            if (grad := p.grad) is not None:
                if grad.layout is not strided:
                    check_layout(grad)
                state: Any = state_of(p)
                try:
                    velocity, step = state["velocity"], state["step"]
                except (KeyError, TypeError, IndexError):
                    state = self._init_state(p, group, self._position(group) + i, created)
                    velocity, step = state["velocity"], state["step"]
                params.append(p)
                grads.append(grad)
                velocities.append(velocity)
                steps.append(step)

    def _position(self, group: dict[str, Any]) -> int:
        """Return the index of the group's first parameter among all parameters."""
        index = 0
        for other in self.param_groups:
            if other is group:
                break
            index += len(other["params"])
        return index

    def _init_state(
        self,
        p: Tensor,
        group: dict[str, Any],
        index: int,
        created: list[tuple[Tensor, dict[str, Any]]] | None = None,
    ) -> dict[str, Any]:
        """Create what a state lacks; another library may have its own keys there.

        If another thread is first, its state counts: it may have made a step already.
        """
        state: dict[str, Any] = self.state.get(p, {})
        check_is_dict(state)
        if _is_complete(state):
            return state
        before = dict(state)
        if torch.compiler.is_compiling():
            # The generator of V₀ cannot be traced, nor can a lock.
            draw = torch.compiler.disable(self._draw)
            step, velocity = counter(before.get("step", 0.0), p, group), before.get("velocity")
            velocity = draw(p, group, index) if velocity is None else velocity
            state = self.state[p]
            state["velocity"], state["step"] = velocity, step
            return state
        # Tensors made in inference mode could not be changed outside of it.
        with torch.inference_mode(mode=False):
            step, velocity = counter(before.get("step", 0.0), p, group), before.get("velocity")
            if "velocity" not in before:
                velocity = self._draw(p, group, index)
        with _publication:
            state = self.state[p]
            if not _is_complete(state):
                if created is not None:
                    created.append((p, before))
                state.update(velocity=velocity, step=step)
        return state

    def _draw(self, p: Tensor, group: dict[str, Any], index: int) -> Tensor:
        """Return V₀ of a parameter at its first step."""
        position = next(i for i, other in enumerate(self.param_groups) if other is group)
        _distributed.check_not_replaced(p, group["params"], self._added, position)
        velocity = first_velocity(p, group, index)
        lr, std = group["lr"], group["velocity_std"]
        if std and is_derived(group) and is_known(lr) and "rate" not in self._warned:
            rate, alpha = hp.as_float(number(lr)), group["alpha"]
            # An alpha that was set later is not the one of the start.
            nominal = self._rates.get((std, alpha)) or self._rates.get(std, alpha / std)
            if 0 < 10.00001 * nominal < rate:  # a little more than ten, because of roundings
                level = level_of_user() + 2
                hp.warn_of_first_rate(nominal, rate, nominal * std, names=NAMES, stacklevel=level)
                self._warned |= {"rate"}
        return velocity


def _is_complete(state: dict[str, Any]) -> bool:
    return "velocity" in state and "step" in state


def first_velocity(p: Tensor, group: dict[str, Any], index: int) -> Tensor:
    """Return V₀ of a parameter of the group; `index` is its position among all parameters."""
    check_dtype("the parameter", p.dtype)
    _distributed.check_whole(p)
    check_velocity_std(p, group)
    return initial_velocity(p, group["velocity_std"], group["seed"], index)
