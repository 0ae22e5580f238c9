"""Torch, JAX, TensorFlow and NumPy side by side in random sequences of operations."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.support import sides

for module in sides.NEEDED:
    pytest.importorskip(module, reason=f"compares the frameworks and needs {module}")

SHAPES = [(2, 3), (), (0,), (4,)]
SIDE = st.sampled_from(range(len(sides.SIDES)))


class Frameworks(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.sides = []

    @initialize(
        dtype=st.sampled_from(["float32", "float64", "float16", "bfloat16"]),
        beta=st.sampled_from([0.9, 1.0]),
        weight_decay=st.sampled_from(sides.WEIGHT_DECAYS),
        first_step=st.sampled_from([0, 1]),
    )
    def start(self, dtype, **options):
        self.rng, self.lr, self.updates = np.random.default_rng(0), 0.1, 0
        self.dtype = sides.dtype_of(dtype)
        options |= {"learning_rate": self.lr, "seed": 7}
        weights = self.arrays(1.0)
        self.reference = sides.Reference(weights, options)
        self.sides = [make(weights, options) for make in sides.SIDES]

    def arrays(self, scale):
        return [np.asarray(self.rng.normal(size=s) * scale).astype(self.dtype) for s in SHAPES]

    @rule(exponent=st.integers(-3, 2), zero=st.sets(st.sampled_from(range(len(SHAPES)))))
    def step(self, exponent, zero):
        gradients = self.arrays(10.0**exponent)
        for i in zero:
            gradients[i] *= 0
        self.reference.step(gradients, self.lr)
        for side in self.sides:
            side.step(gradients)
        self.updates += 1

    @rule(lr=st.sampled_from([0.0, 0.05, 0.5, 2.0]))
    def change_the_learning_rate(self, lr):
        """The rate stays until its next change, also in every hand-over."""
        self.lr = lr
        for side in self.sides:
            side.change_rate(lr)

    @rule(index=SIDE)
    def save_and_load_natively(self, index):
        self.sides[index].reload()

    @rule(index=SIDE)
    def save_and_load_a_state(self, index):
        path = Path(self.folder.name, "run.npz")
        self.sides[index].adopt(sides.through_a_file(self.sides[index].export(), path))

    @rule(giving=SIDE, taking=SIDE)
    def hand_over(self, giving, taking):
        """The run of one framework continues in another."""
        giver = self.sides[giving]
        taker = sides.SIDES[taking](giver.weights(), {})
        taker.adopt(giver.export())
        self.sides[taking] = taker

    @invariant()
    def all_stay_inside_the_bound(self):
        for side in self.sides:
            self.reference.check(side)

    @invariant()
    def all_count_the_updates(self):
        for side in self.sides:
            assert side.export().count == self.updates, side.name

    def teardown(self):
        self.folder.cleanup()


# Rates change on purpose before the first step, too.
FIRST_RATE = pytest.mark.filterwarnings("ignore:.* at the first step, but the standard deviation")
TestFrameworks = FIRST_RATE(Frameworks.TestCase)
TestFrameworks.settings = settings(sides.AS_FOUND, stateful_step_count=16)
