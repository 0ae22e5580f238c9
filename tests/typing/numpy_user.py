"""Code of a user of gravity_core, and mistakes that a type checker must find."""

import numpy as np

import gravity_core

optimizer = gravity_core.Gravity(learning_rate=0.1, alpha=0.01, beta=0.9, seed=3)
w = np.ones(3)
optimizer.step([w], [np.ones(3)])
run: gravity_core.Trajectory = optimizer.minimize(lambda x: (float(x @ x), 2 * x), w, steps=3)
axes = run.plot(lambda x: (float(x @ x), 2 * x))
old, new = gravity_core.coefficients(1, 0.9)
gravity_core.State(1, [w]).save("state.npz")
gravity_core.Gravity(momentum=0.9)  # type: ignore[call-arg]
gravity_core.initial_velocity((2, 3), sd=0.1)  # type: ignore[call-arg]
