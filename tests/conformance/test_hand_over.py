"""A run that moves through NumPy, torch, JAX and TensorFlow equals a run in NumPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import sides

for module in sides.NEEDED:
    pytest.importorskip(module, reason=f"the hand-over goes through {module}")

STEPS = 40
SHAPES = [(2, 3), (), (0,), (5, 1, 2)]


def run_of(dtype, options, rng):
    """Return W₀, and the gradients and learning rates of all steps."""
    weights = [np.asarray(rng.normal(size=s)).astype(dtype) for s in SHAPES]
    gradients = [
        [np.asarray(rng.normal(size=s) * 10.0 ** rng.uniform(-3, 2)).astype(dtype) for s in SHAPES]
        for _ in range(STEPS)
    ]
    # The rates change at every eighth step, so most legs start with the exported rate.
    rates = [options["learning_rate"] / (1 + n // 8) for n in range(STEPS)]
    return weights, gradients, rates


def agree(got, expected):
    """Assert that the hyper-parameters are equal; Keras keeps the rate in float32."""
    assert {name: got[name] for name in expected if name != "learning_rate"} == {
        name: value for name, value in expected.items() if name != "learning_rate"
    }
    assert np.float32(got["learning_rate"]) == np.float32(expected["learning_rate"])


OPTIONS = st.fixed_dictionaries(
    {
        "learning_rate": st.sampled_from([0.1, 0.3]),
        "beta": st.sampled_from([0.9, 0.5]),
        "weight_decay": st.sampled_from(sides.WEIGHT_DECAYS),
        "first_step": st.sampled_from([0, 1]),
        "seed": st.just(2**63 + 5),
    }
)


@pytest.mark.slow
@sides.AS_FOUND
@given(
    order=st.permutations(sides.SIDES),
    cuts=st.lists(st.integers(0, STEPS), min_size=3, max_size=3).map(sorted),
    dtype=st.sampled_from(["float32", "float64", "float16", "bfloat16"]),
    options=OPTIONS,
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_a_run_continues_in_any_order_of_frameworks(
    order, cuts, dtype, options, seed, data, tmp_path_factory
):
    """Forty steps are split into four legs, with the state passed by a file or directly."""
    path = tmp_path_factory.mktemp("states") / "run.npz"
    weights, gradients, rates = run_of(sides.dtype_of(dtype), options, np.random.default_rng(seed))
    reference = sides.Reference(weights, options)
    side = None
    for make, start, end in zip(order, [0, *cuts], [*cuts, STEPS], strict=True):
        if side is None:
            side = make(weights, options)
        else:
            state = side.export()
            assert state.count == start
            assert set(state.dtypes) == {dtype}
            if data.draw(st.booleans()):
                state = sides.through_a_file(state, path)
            side = make(side.weights(), {})
            side.adopt(state)
        reference.check(side)
        for n in range(start, end):
            if n % 8 == 0:
                side.change_rate(rates[n])
            side.step(gradients[n])
            reference.step(gradients[n], rates[n])
        reference.check(side)
    assert side.export().count == STEPS
    agree(side.export().hyperparameters, options | {"learning_rate": rates[-1]})


@pytest.mark.parametrize("source", sides.SIDES, ids=lambda s: s.name)
@pytest.mark.parametrize("target", sides.SIDES, ids=lambda s: s.name)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_every_pair_of_frameworks_hands_over_every_bit(source, target, dtype):
    weights, gradients, rates = run_of(
        sides.dtype_of(dtype), {"learning_rate": 0.1}, np.random.default_rng(0)
    )
    giver = source(weights, {"learning_rate": 0.1})
    giver.change_rate(rates[-1])
    for g in gradients[:3]:
        giver.step(g)
    taker = target(giver.weights(), {})
    taker.adopt(giver.export())
    for a, b in zip(giver.velocity(), taker.velocity(), strict=True):
        assert a.tobytes() == b.tobytes()
    one, two = giver.export(), taker.export()
    assert one.t == two.t == 3
    agree(two.hyperparameters, one.hyperparameters)
