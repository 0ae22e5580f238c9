"""The NumPy optimizer: the reference for all adapters.

Guarantees: `Gravity.step` gives the bits of the pure functions in `gravity_core.update` (tested).
It checks all arguments before it changes any, and it is deterministic. `gravity_core.error_bound`
bounds the rounding errors of other implementations.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gravity_core import hyperparameters as hp
from gravity_core._arrays import check_plain, float_name, listed
from gravity_core._memory import Spans, meets, overlaps_itself, spans
from gravity_core.coefficients import coefficients
from gravity_core.state import State
from gravity_core.trajectory import Trajectory, trace
from gravity_core.velocity import initial_velocity

# Elements per block. The blocks of G, V, W and the scratch array share the second-level cache;
# whole-array temporaries would pass through memory nine times.
BLOCK = 65_536


class Gravity:
    """Gravity for lists of NumPy arrays, updated in place.

        t ← t + 1;  β̂ = (β t + 1)/(t + 2);  ζ = G/(1 + (G max|G|)²)
        V ← β̂ V + (1 − β̂) ζ;  W ← W − η λ W;  W ← W − η V

    V₀ ~ N(0, σ²) with σ = α / η is drawn at the first step, from the seed and the position of the
    parameter (`gravity_core.velocity`). pickle and copy.deepcopy keep the whole state.

    Args:
        learning_rate: η, finite and >= 0. It may be assigned between steps. σ uses the value at
            construction. If that is the small start of a warm-up, pass velocity_std. If the first
            step's η is more than ten times larger, a warning says so.
        alpha: α, finite and >= 0; sets σ = α / η, as it is at construction.
        beta: β in [0, 1].
        weight_decay: λ, finite and >= 0; decoupled.
        velocity_std: σ itself, overriding α / η; finite and >= 0.
        seed: an integer in [0, 2**64).
        first_step: t of the first update: 1 (Algorithm 1) or 0 (the original Keras code).

    Raises:
        ValueError: naming the argument and the value received; also if one is assigned later.

    Source: arXiv 2101.09192, Algorithm 1.

    Example:
        >>> w = np.asarray([0.3, -0.2])
        >>> optimizer = Gravity(learning_rate=0.1)
        >>> for _ in range(100):
        ...     optimizer.step([w], [2 * w])  # the gradient of w·w
        >>> bool(np.abs(w).max() < 1e-2)
        True
    """

    learning_rate: float
    alpha: float
    beta: float
    weight_decay: float
    velocity_std: Any  # None may be assigned, and stands for alpha / learning_rate
    seed: int
    first_step: int

    def __init__(
        self,
        learning_rate: float = hp.LEARNING_RATE,
        alpha: float = hp.ALPHA,
        beta: float = hp.BETA,
        *,
        weight_decay: float = hp.WEIGHT_DECAY,
        velocity_std: float | None = None,
        seed: int = hp.SEED,
        first_step: int = hp.FIRST_STEP,
    ) -> None:
        values = hp.validate(
            learning_rate=learning_rate,
            alpha=alpha,
            beta=beta,
            weight_decay=weight_decay,
            velocity_std=velocity_std,
            seed=seed,
            first_step=first_step,
        )
        self._first_rate = values["learning_rate"]
        for name, value in values.items():
            setattr(self, name, value)
        self.count = 0
        """The number of updates so far."""
        self.velocity: list[np.ndarray] | None = None
        """V of each parameter; None before the first step."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; hyper-parameters are checked, and σ = α / η stands for None.

        Raises:
            ValueError: naming the hyper-parameter and the value received; also for a `count` that
                is no integer >= 0.
        """
        if name == "count":
            value = hp.checked_integer(name, value)
        if name in hp.DEFAULTS:
            # Python numbers, because NumPy scalars would widen float32 arrays.
            value = hp.validate(**{name: value})[name]
            if name == "velocity_std":
                derives = value is None
                value = hp.velocity_std(self._first_rate, self.alpha, value, stacklevel=4)
                self._derives_std = derives
        super().__setattr__(name, value)

    def __copy__(self) -> "Gravity":
        """Return a copy with velocities of its own: a step changes them in place."""
        return copy.deepcopy(self)

    def init(self, params: Sequence[np.ndarray]) -> None:
        """Draw V₀ for `params`. The first `step` does this if you have not.

        If there is a velocity already, another run starts: the count is 0 again.

        Raises:
            ValueError: if V₀ would overflow the dtype of a parameter.
            TypeError: as in `step`.
        """
        params = _weights(params)
        for w in params:
            rate = self._first_rate if self._derives_std else None
            hp.check_velocity_std(
                self.velocity_std, w.real.dtype.name, learning_rate=rate, alpha=self.alpha
            )
        drawn = [
            initial_velocity(w.shape, w.dtype, std=self.velocity_std, seed=self.seed, index=i)
            for i, w in enumerate(params)
        ]
        if self.velocity is not None:  # another run starts
            self.count = 0
        self.velocity = drawn

    def _warn_of_first_rate(self) -> None:
        nominal = self._first_rate
        if self._derives_std and 0 < 10 * nominal < self.learning_rate and self.alpha > 0:
            hp.warn_of_first_rate(nominal, self.learning_rate, self.alpha, stacklevel=4)

    def step(self, params: Sequence[np.ndarray], grads: Sequence[np.ndarray]) -> None:
        """Update every array of `params` in place with its gradient.

        The arrays are updated in the order of the list, one after the other. If two parameters
        share memory, the second one therefore starts from what the first one wrote. Every gradient
        counts as it was before the step, also if it shares memory with a parameter.

        Args:
            params: the weight tensors, writable arrays of real or complex floating dtype, in the
                same order at every call.
            grads: their gradients, in the same shapes and dtypes. They are not changed.

        Raises:
            ValueError: if lengths, shapes or dtypes do not match each other or earlier steps, a
                parameter is read-only, overlaps itself or shares memory with a velocity, or V₀
                would overflow its dtype.
            TypeError: if an argument is no list of NumPy arrays (`numpy.memmap` is accepted, other
                subclasses such as masked arrays are not), or its dtype is not floating.
            All errors are raised before any parameter or velocity has changed.
        """
        params = _weights(params)
        # NumPy's 0-d arithmetic returns scalars, so the gradient of a 0-d weight may be a scalar.
        grads = [np.asarray(g) if isinstance(g, np.generic) else g for g in listed("grads", grads)]
        self._check(params, grads)
        if self.count == 0:
            self._warn_of_first_rate()
        if self.velocity is None:
            self.init(params)
        assert self.velocity is not None
        # Allocate before anything moves, so that too little memory moves nothing.
        written = spans(params), spans(self.velocity)
        grads = [g.copy() if meets(g, *written) else g for g in grads]
        tensors = [
            tuple(map(_as_reals, arrays))
            for arrays in zip(params, grads, self.velocity, strict=True)
        ]
        size = min(BLOCK, max((w.size for w, _, _ in tensors), default=0))
        scratch = {dtype: _scratch(size, dtype) for dtype in {w.dtype for w, _, _ in tensors}}
        old, new = coefficients(self.count + self.first_step, self.beta)
        lr, decay = self.learning_rate, self.learning_rate * self.weight_decay
        # Do not warn if s·s overflows (ζ is then 0) or if non-finite values propagate.
        with np.errstate(all="ignore"):
            for w, g, v in tensors:
                _step_blocked(w, g, v, old, new, lr, decay, scratch[w.dtype])
        self.count += 1

    def export_state(self) -> State:
        """Return a copy of the state, for another framework or a file.

        Raises:
            ValueError: if neither `init` nor `step` has drawn V₀ yet.

        Example:
            >>> optimizer, w = Gravity(), [np.ones(2)]
            >>> optimizer.step(w, [np.ones(2)])
            >>> other = Gravity()
            >>> other.import_state(optimizer.export_state(), w)
            >>> other.count, bool((other.velocity[0] == optimizer.velocity[0]).all())
            (1, True)
        """
        if self.velocity is None:
            raise ValueError("no velocity to export yet: call init(params) or step() first")
        return State(self.count, self.velocity, self._hyperparameters())

    def import_state(self, state: State, params: Sequence[np.ndarray]) -> None:
        """Load a state with its hyper-parameters, and continue with `params`.

        Args:
            state: a state exported from any framework.
            params: the weight tensors; V must have their shapes and dtypes.

        Raises:
            TypeError: for another object than a state, or for parameters as in `step`.
            ValueError: if the state does not fit. The message names the first mismatch. The
                optimizer is unchanged then.
        """
        if not isinstance(state, State):
            raise TypeError(f"state must be a gravity_core.State, got {type(state).__name__}")
        params = _weights(params)
        state.check([(w.shape, w.dtype.name) for w in params])
        values, count = hp.validate(**state.hyperparameters), state.count
        velocity = [v.astype(w.dtype) for v, w in zip(state.velocities, params, strict=True)]
        for name, value in values.items():
            setattr(self, name, value)
        self.velocity, self.count = velocity, count

    def _hyperparameters(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in hp.DEFAULTS}

    def _check(self, params: Sequence[np.ndarray], grads: Sequence[np.ndarray]) -> None:
        if len(params) != len(grads):
            raise ValueError(
                f"grads must have one array per parameter, {len(params)}, got {len(grads)}"
            )
        velocities = self._check_velocity()
        if self.velocity is not None and len(params) != len(self.velocity):
            raise ValueError(
                f"params must have the {len(self.velocity)} arrays of the first step, "
                f"got {len(params)}"
            )
        for i, (w, g) in enumerate(zip(params, grads, strict=True)):
            check_plain(f"grads[{i}]", g)
            v = w if self.velocity is None else self.velocity[i]
            # A pickle has V in the machine's byte order.
            if v.shape != w.shape or v.dtype.name != w.dtype.name:
                raise ValueError(
                    f"params[{i}] must keep its shape and dtype, {v.shape} {v.dtype}, "
                    f"got {w.shape} {w.dtype}"
                )
            if g.shape != w.shape or g.dtype != w.dtype:
                raise ValueError(
                    f"grads[{i}] must have the shape and dtype of params[{i}], {w.shape} "
                    f"{w.dtype}, got {g.shape} {g.dtype}"
                )
            _check_writable(f"params[{i}]", w)
            if meets(w, velocities):
                raise ValueError(
                    f"params[{i}] must not share memory with a velocity, got an array that does"
                )

    def _check_velocity(self) -> Spans:
        """Return the memory of V; raise unless V, which a user may set, can be updated in place."""
        velocity = [] if self.velocity is None else listed("velocity", self.velocity)
        for i, v in enumerate(velocity):
            check_plain(f"velocity[{i}]", v)
            _check_writable(f"velocity[{i}]", v)
        starts, ends = memory = spans(velocity)
        if any(start < end for start, end in zip(starts[1:], ends, strict=False)):
            raise ValueError("the arrays of velocity must not share memory, got two that do")
        return memory

    def minimize(
        self,
        f_and_grad: Callable[[np.ndarray], tuple[float, np.ndarray]],
        x0: Any,
        steps: int,
    ) -> Trajectory:
        """Minimize a function from `x0` and return every step, for teaching and plots.

        The optimizer does not change: the run starts from its hyper-parameters and a fresh V₀.
        `x0` is copied.

        Args:
            f_and_grad: returns f(x) and its gradient, an array in the shape of x.
            x0: the starting point, an array of numbers. The run computes in float64 unless x0 is
                a float16 or float32 array.
            steps: the number of steps, >= 0.

        Raises:
            ValueError: for a negative `steps`, an empty `x0`, or a gradient of another shape.
            TypeError: for an `x0` or a gradient that is no array of real numbers, or an f(x) that
                is not one of them.

        Example:
            >>> bowl = lambda x: (float(x @ x), 2 * x)
            >>> run = Gravity().minimize(bowl, [0.3, -0.2], steps=100)
            >>> run.x.shape, bool(run.f[-1] < run.f[0])
            ((101, 2), True)
        """
        steps = hp.checked_integer("steps", steps)
        if not callable(f_and_grad):
            raise TypeError(f"f_and_grad must be a function, got {f_and_grad!r}")
        x = _real_array("x0", x0)
        if not x.size:
            raise ValueError(f"x0 must not be empty, got shape {x.shape}")

        def evaluate() -> tuple[float, np.ndarray]:
            found = f_and_grad(x.copy())
            if not isinstance(found, (tuple, list)) or len(found) != 2:
                raise TypeError(
                    f"f_and_grad must return f(x) and its gradient, got {hp.shown(found)}"
                )
            value, gradient = found
            gradient = _real_array("the gradient", gradient).astype(x.dtype)
            if gradient.shape != x.shape:
                raise ValueError(
                    f"the gradient must have x0's shape, {x.shape}, got {gradient.shape}"
                )
            return _real_number("f(x)", value), gradient

        run = Gravity(**self._hyperparameters())
        run.init([x])
        assert run.velocity is not None
        value, gradient = evaluate()
        xs, fs, vs, traces = [x.copy()], [value], [run.velocity[0].copy()], []
        for _ in range(steps):
            t = run.count + run.first_step
            traces.append(trace(gradient, run.velocity[0], t, beta=run.beta))
            run.step([x], [gradient])
            value, gradient = evaluate()
            xs.append(x.copy())
            fs.append(value)
            vs.append(run.velocity[0].copy())
        return Trajectory(np.stack(xs), np.asarray(fs), np.stack(vs), traces)


def _check_writable(name: str, array: np.ndarray) -> None:
    """Raise unless an array can be updated in place, element by element."""
    if not array.flags.writeable:
        raise ValueError(f"{name} must be writable, got a read-only array")
    if overlaps_itself(array):
        raise ValueError(
            f"{name} must have each element in a place of its own, got shape {array.shape} "
            f"with strides {array.strides}"
        )


def _weights(params: Any) -> list[np.ndarray]:
    """Return the parameters as a list; raise unless they are arrays of floating dtype."""
    weights = listed("params", params)
    for i, w in enumerate(weights):
        check_plain(f"params[{i}]", w)
        float_name(w if w.dtype.kind != "c" else w.real, f"params[{i}]")
    return weights


def _real_array(name: str, value: Any) -> np.ndarray:
    """Return a copy of an array of real numbers, in float64 unless it has fewer bits."""
    try:
        array = np.array(value)
    except (TypeError, ValueError) as error:  # rows of different lengths, for example
        raise TypeError(
            f"{name} must be an array of real numbers, got {hp.shown(value)}"
        ) from error
    if isinstance(value, np.ma.MaskedArray) or array.dtype.kind not in "biuf":
        kind = type(value).__name__
        raise TypeError(
            f"{name} must be an array of real numbers, got {kind} of dtype {array.dtype}"
        )
    return array if array.dtype.kind == "f" and array.itemsize <= 8 else array.astype(np.float64)


def _real_number(name: str, value: Any) -> float:
    try:
        if not hp.may_be_a_number(value):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{name} must be a real number, got {hp.shown(value)}") from None


def _as_reals(array: np.ndarray) -> np.ndarray:
    """View complex numbers as pairs of reals; return other arrays unchanged."""
    if array.dtype.kind != "c":
        return array
    return array[..., np.newaxis].view(array.real.dtype)


def _blocks(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield matching blocks of equally shaped arrays, as views."""
    if arrays[0].size <= BLOCK:
        yield arrays
        return
    if all(a.flags.c_contiguous for a in arrays):
        arrays = tuple(a.reshape(-1) for a in arrays)
    row = arrays[0].size // len(arrays[0])
    rows = max(1, BLOCK // row)
    for i in range(0, len(arrays[0]), rows):
        pieces = tuple(a[i : i + rows] for a in arrays)
        if row > BLOCK:  # strided, and one row exceeds a block
            yield from _blocks(*(a[0] for a in pieces))
        else:
            yield pieces


def _scratch(size: int, dtype: np.dtype[Any]) -> list[np.ndarray]:
    """Return memory for one block; of half types, which float32 holds, also for W, G and V."""
    if dtype.itemsize < 4:
        return [np.empty(size, np.float32) for _ in range(4)]
    return [np.empty(size, dtype)]


def _step_blocked(
    w: np.ndarray,
    g: np.ndarray,
    v: np.ndarray,
    old: float,
    new: float,
    lr: float,
    decay: float,
    scratch: list[np.ndarray],
) -> None:
    """Do one update in place, block by block, with the operations and the order of `update`."""
    if not w.size:
        return
    # Do not use Python's max(), because NaN must propagate.
    max_abs = w.dtype.type(0)
    for (gb,) in _blocks(g):
        max_abs = np.maximum(max_abs, np.maximum(gb.max(), -gb.min()))
    max_abs = scratch[0].dtype.type(max_abs)
    for stored in _blocks(w, g, v):
        s, *wide = (x[: stored[0].size].reshape(stored[0].shape) for x in scratch)
        for x, own in zip(wide, stored, strict=False):
            x[...] = own
        wb, gb, vb = wide or stored
        np.multiply(gb, max_abs, out=s)
        np.multiply(s, s, out=s)
        np.add(s, 1.0, out=s)
        np.divide(gb, s, out=s)  # ζ
        np.multiply(s, new, out=s)
        np.multiply(vb, old, out=vb)
        np.add(vb, s, out=vb)
        if wide:  # W moves by V as it is stored
            stored[2][...] = vb
            vb[...] = stored[2]
        if decay:
            np.multiply(wb, decay, out=s)
            np.subtract(wb, s, out=wb)
        np.multiply(vb, lr, out=s)
        np.subtract(wb, s, out=wb)
        if wide:
            stored[0][...] = wb
