"""Run the vectors of updates on a function, as a port's own program does, and note the results."""

import math

import numpy as np

from gravity_conformance.vectors import load_vectors
from tests.support.backends import numpy_dtype

GROUPS = load_vectors()
EVERY = ("float16", "bfloat16", "float32", "float64")


def results_of(step, dtypes=EVERY, *, values=True, coefficients=None):
    """Return what the schema of results describes.

    Args:
        step: a function (w, v, g, t, lr, beta, *, weight_decay, maximize) -> (w, v).
        dtypes: those that it offers.
        values: whether to add the values of V and W.
        coefficients: a function (t, beta) -> (β̂, 1 − β̂), if it has one.
    """
    found = {"failed": [], "passed": [], "got": {}}
    for group in GROUPS:
        for test in group.tests if group.dtype in dtypes else ():
            if group.type == "update":
                right, got = run(step, test, numpy_dtype(group.dtype))
            elif group.type == "coefficients" and coefficients is not None:
                right, got = run_coefficients(coefficients, test, group.dtype)
            else:
                continue
            name = f"{group.file}/{test.id}"
            found["passed" if right else "failed"].append(name)
            if values and not right:
                found["got"][name] = got
    return found


def run_coefficients(coefficients, test, dtype):
    pair = [np.dtype(dtype).type(x) for x in coefficients(test.t, test.beta)]
    right = test.beta_hat.accepts(pair[0]) & test.one_minus_beta_hat.accepts(pair[1])
    return bool(right), dict(zip(("beta_hat", "one_minus_beta_hat"), map(float, pair), strict=True))


def run(step, test, dtype):
    """Return whether an update test passes, and what `step` computed."""
    options = test.hyperparameters
    w, v = ([x.astype(dtype) for x in arrays] for arrays in (test.w, test.v))
    right, steps, same = True, [], [g.astype(dtype) for g in test.steps[0].g]
    for each in test.steps:
        grads = same if test.same_gradients else [g.astype(dtype) for g in each.g]
        for i, g in enumerate(grads):
            w[i], v[i] = step(
                w[i].copy(),
                v[i].copy(),
                g,
                each.t,
                each.learning_rate,
                options.beta,
                weight_decay=options.weight_decay,
                maximize=options.maximize,
            )
            right &= bool(each.v[i].accepts(v[i]).all() and each.w[i].accepts(w[i]).all())
        tensors = [{"V": numbers(v), "W": numbers(w)} for v, w in zip(v, w, strict=True)]
        steps.append({"tensors": tensors})
    return right, {"steps": steps}


def numbers(array):
    names = {math.inf: "Infinity", -math.inf: "-Infinity"}
    flat = np.asarray(array, np.float64).ravel().tolist()
    return ["NaN" if x != x else names.get(x, x) for x in flat]
