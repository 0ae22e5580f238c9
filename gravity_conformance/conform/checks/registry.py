"""The checks by name. Each returns one `Finding`, and none can pass without running."""

from collections.abc import Callable, Collection
from typing import NamedTuple

from gravity_conformance.conform.checks import (
    behaviour,
    combined,
    constants,
    first_velocity,
    gradients,
    halves,
    nonfinite,
    of_keras,
    of_torch,
    published,
    start,
    structures,
)
from gravity_conformance.conform.checks.findings import Finding, Judge
from gravity_conformance.conform.checks.subject import Subject


class Check(NamedTuple):
    """A check.

    Attributes:
        title: its title in the report.
        function: judges an implementation.
        special: what it feeds that is not the algorithm itself. An implementation may refuse it
            with an error: that is a remark.
        tier: the dtypes that it decides on.
        quick: whether it belongs to the level "quick".
    """

    title: str
    function: Callable[[Subject, Judge], Finding]
    special: str | None = None
    tier: tuple[str, ...] = ("float32",)
    quick: bool = True


_DOUBLE, _HALVES = ("float64",), ("float16", "bfloat16")

# Combinations take what other checks pass, so those come first. The check "gradient" is last,
# because it reports on the gradients of all others.
CHECKS: dict[str, Check] = {
    "convention": Check("convention of t", start.convention),
    "defaults": Check("defaults of the constructor", start.defaults),
    "random": Check("random generators of the user", start.randomness),
    "v0": Check("V₀", first_velocity.v0),
    "update": Check("updates of many sizes", gradients.update),
    "large": Check("a large table", gradients.large, quick=False),
    "trajectory": Check("trajectory", gradients.trajectory),
    "own-v0": Check("trajectory from its own V₀", gradients.drawn),
    "vectors": Check("published vectors", published.vectors, quick=False),
    "long": Check("long trajectory, far steps", gradients.long, quick=False),
    "float64-vectors": Check(
        "published vectors in float64", published.double, "float64", _DOUBLE, quick=False
    ),
    "missing": Check("a missing gradient", behaviour.missing, "a missing gradient"),
    "groups": Check("groups, one added later", behaviour.groups, "several groups"),
    "options": Check("options that change", behaviour.changed),
    "closure": Check("a closure", of_torch.closure),
    "schedule": Check("scheduled learning rate", gradients.schedule),
    "rate": Check("learning rate as an array", gradients.rate, "a learning rate that is an array"),
    "layers": Check(
        "tensors of common layers", structures.layers, "parameters with names", quick=False
    ),
    "trees": Check("parameters of other structures", structures.trees),
    "strides": Check("transposed, sliced, expanded", gradients.strides, "arrays with strides"),
    "default-dtype": Check(
        "half types by default", behaviour.default_dtype, "another default dtype", quick=False
    ),
    "byte-order": Check(
        "arrays of the other byte order", gradients.swapped, "the other byte order"
    ),
    "turns": Check("two trainings in turn", gradients.turns),
    "zero": Check("zero gradients", gradients.zero),
    "huge": Check("huge gradients", gradients.huge),
    "tiny": Check("tiny gradients", gradients.tiny),
    "subnormal": Check("subnormal gradients", gradients.subnormal),
    "non-finite": Check("non-finite gradients", nonfinite.nonfinite, "non-finite gradients"),
    "empty": Check("empty tensors", gradients.empty, "empty tensors"),
    "0-d": Check("0-d tensors", gradients.scalar, "0-d tensors"),
    "resume": Check("state saved and loaded", behaviour.resume, "saving and loading its state"),
    "safe": Check("state as torch.load takes it", of_torch.safe),
    "copied": Check("copied with its weights", of_torch.copied, "copying"),
    "pickled": Check("pickled with its weights", of_torch.pickled, "pickling"),
    "assigned": Check("weights assigned by the user", behaviour.assigned),
    "moved": Check("other tensors in p.data", of_torch.moved, "other tensors in p.data"),
    "exchanged": Check("other parameters in a group", of_torch.exchanged, "other parameters"),
    "placed": Check("tensors put into its state", of_torch.placed),
    "autocast": Check("inside autocast", of_torch.autocast),
    "hooks": Check("hooks of the user", of_torch.hooks),
    "in-place": Check("steps in place", of_torch.in_place),
    "paths": Check("paths of torch", of_torch.paths),
    "scaler": Check("a gradient scaler", of_torch.scaler, "a gradient scaler"),
    "accumulation": Check("gradient accumulation", of_keras.accumulation, "gradient accumulation"),
    "clipping": Check("clipped gradients", of_keras.clipping, "clipvalue"),
    "loss-scale": Check("scaled losses", of_keras.scaled, "loss_scale_factor"),
    "rows": Check("sparse gradients", behaviour.rows, "sparse gradients"),
    "ema": Check("moving averages", of_keras.averaged, "use_ema"),
    "constraint": Check("variables with a constraint", of_keras.constraint),
    "order": Check("variables in another order", of_keras.reordered),
    "again": Check("a second optimizer", start.again),
    "alike": Check("variables of equal names", of_keras.alike),
    "replicas": Check("two replicas", of_keras.replicas, "tf.distribute"),
    "excluded": Check("without weight decay", of_keras.excluded, "exclude_from_weight_decay"),
    "maximize": Check("maximize", behaviour.maximize, "maximize"),
    "weight-decay": Check("weight decay", behaviour.weight_decay, "weight decay"),
    "constants": Check("numbers and names of its source", constants.constants, quick=False),
    "combined": Check("combinations", combined.combined),
    "compiled": Check("compiled", combined.compiled, quick=False),
    "transformed": Check("several steps in one call", gradients.transformed, quick=False),
    "float64": Check("float64", combined.double, "float64", _DOUBLE),
    "float16": Check("float16", halves.float16, "float16", _HALVES[:1], quick=False),
    "bfloat16": Check("bfloat16", halves.bfloat16, "bfloat16", _HALVES[1:], quick=False),
    "half-vectors": Check(
        "published vectors in half types", published.halves, "half types", _HALVES, quick=False
    ),
    "gradient": Check("inputs left untouched", behaviour.gradient),
}


def selected(level: str, only: Collection[str], skipped: Collection[str]) -> list[str]:
    """Return the names of the checks to run, in order."""
    return [
        name
        for name, check in CHECKS.items()
        if name not in skipped and (name in only if only else check.quick or level != "quick")
    ]
