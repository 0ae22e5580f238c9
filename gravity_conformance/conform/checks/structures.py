"""Checks of parameters as models hold them: in trees, with names and shapes of their layers."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from gravity_conformance._guard import ANYTHING
from gravity_conformance.conform.checks.findings import Finding, Judge, first_wrong
from gravity_conformance.conform.checks.inputs import SCALES, SHAPES, patterned
from gravity_conformance.conform.checks.subject import Subject
from gravity_conformance.conform.judge.trial import Case, WrongResultError
from gravity_conformance.drive.optax_session import TIED

# Tensors of layers as Keras, Flax and torch make them: some have parts, which are no tensors.
_LAYERS: dict[str, tuple[int, ...]] = {
    "embedding/embeddings": (20, 4),
    "lstm_cell/kernel": (4, 24),
    "lstm_cell/recurrent_kernel": (6, 24),
    "lstm_cell/bias": (24,),
    "lstm/weight_hh_l0": (24, 6),
    "gru_cell/recurrent_kernel": (5, 15),
    "attention_query/kernel": (6, 2, 3),
    "attention_query/bias": (2, 3),
    "self_attn/in_proj_weight": (12, 4),
    "conv2d/kernel": (3, 3, 2, 5),
    "depthwise_conv2d/kernel": (3, 3, 4, 1),
    "batch_normalization/gamma": (5,),
    "layer_normalization/beta": (5,),
    "LayerNorm_0/scale": (7,),
    "norm/weight": (6,),
    "dense/kernel": (5, 4),
    "dense/bias": (4,),
    "lm_head/weight": (20, 4),
}


def layers(subject: Subject, judge: Judge) -> Finding:
    """Tensors with the names and the shapes that common layers give them."""
    if subject.driver.stateless:
        return Finding("not applicable", "the arrays of a function have no names")
    weights, gradients = patterned(subject.rng("layers"), 4, [*_LAYERS.values()])
    return judge.judge(Case(weights, gradients, subject.decaying, how={"layers": [*_LAYERS]}))


def trees(subject: Subject, judge: Judge) -> Finding:
    """Parameters of other structures, and none given to update, also with a schedule."""
    if subject.driver.kind != "optax":
        return Finding("not applicable", "only in JAX")
    return first_wrong(_trees(subject, judge))


def _trees(subject: Subject, judge: Judge) -> Iterator[Finding]:
    weights, gradients = subject.normal(4, seed=78)
    case = Case(weights, gradients, subject.decaying)
    maximized = subject.options(**{n: x for n, x in subject.accepted.items() if n == "maximize"})
    alone = replace(case, options=maximized, how={"alone": True})
    # Weight decay needs parameters, and a transformation may need arrays of JAX.
    for other, note in (
        (replace(case, how={"alone": True}), "update without parameters"),
        (replace(alone, rates=subject.halved(4)), "update without parameters"),
        (replace(case, how={"host": True}), "arrays of NumPy"),
    ):
        finding = Finding("pass")
        try:
            finding = judge.judge(other, note)
        except WrongResultError:
            raise
        except ANYTHING:
            pass
        yield finding
    session: Any = subject.driver.start(weights, case.options)
    if session.takes_more():
        yield judge.judge(replace(case, how={"searches": True}), "before a line search")
    for tree in subject.driver.session.trees:
        shapes = SHAPES[:1] if tree == "one array" else SHAPES
        weights, gradients = subject.normal(4, shapes, SCALES[: len(shapes)], seed=77)
        for arrays in (weights, *gradients) if tree == TIED else ():
            arrays.append(arrays[0])
        case = Case(weights, gradients, subject.decaying, how={"tree": tree})
        yield judge.judge(case, f"the parameters are {tree}")
