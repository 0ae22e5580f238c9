"""gravity_tf under the caller's keras.json and environment variables, each in its own process."""

import json
import os

import pytest

from tests.support.programs import run_together

pytest.importorskip("keras", reason="gravity_tf needs keras")

# The reference has the rate that Keras keeps in floatx, and σ from the rate that the user wrote.
PROGRAM = """
import warnings
warnings.filterwarnings("error", module="gravity")
import numpy as np
import keras
from keras import ops
import gravity_core
from gravity_tf import Gravity, export_state

rate = float(np.asarray(0.1, keras.config.floatx()))
weights = [np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3), np.ones(4, np.float32)]
variables = [keras.Variable(w, dtype="float32") for w in weights]
optimizer, reference = Gravity(0.1), gravity_core.Gravity(rate, velocity_std=0.01 / 0.1)
optimizer.build(variables)
for number in range(3):
    gradients = [np.sin(number + w).astype(np.float32) for w in weights]
    optimizer.apply([ops.convert_to_tensor(g) for g in gradients])
    reference.step(weights, gradients)
bound = 2 * 3 * (gravity_core.ErrorBound.ROUNDINGS + 2) * 2.0**-24 * 2  # |W| and |V| are below 2
for variable, w in zip(variables, weights):
    assert np.abs(ops.convert_to_numpy(variable) - w).max() <= bound
assert export_state(optimizer).t == 3
assert Gravity(lambda: ops.convert_to_tensor(0.5, "bfloat16")).velocity_std == 0.01 / 0.5
try:
    Gravity(ops.convert_to_tensor(-1.0, "bfloat16"))
except ValueError as error:
    assert "learning_rate must be a finite number >= 0, got -1.0" in str(error)
else:
    raise AssertionError("a negative rate")
floatx = keras.config.floatx()
keras.config.set_floatx("bfloat16")  # keras.json may not name it
optimizer = Gravity(0.1)
assert optimizer.get_config()["learning_rate"] == 0.1
optimizer.learning_rate = 0.5
assert optimizer.get_config()["learning_rate"] == 0.5
keras.config.set_floatx(floatx)
warnings.simplefilter("error", DeprecationWarning)  # also of NumPy, in Keras's code
Gravity(0.1).apply([ops.ones(3)], [keras.Variable(np.ones(3, np.float32))])
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
model.compile(Gravity(0.1), "mse")
model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0)
"""
# The first two are tested by default, all by the profile `thorough`.
# JAX_NUMPY_RANK_PROMOTION=raise and JAX_TRANSFER_GUARD=disallow stop Keras itself.
ENVIRONMENTS = {
    "tensorflow": [
        {"floatx": "float16"},
        {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
        {"floatx": "float64"},
        {"TF_USE_LEGACY_KERAS": "1"},
        {"TF_XLA_FLAGS": "--tf_xla_auto_jit=2"},
        {"LC_ALL": "tr_TR.UTF-8"},
    ],
    "jax": [
        {"floatx": "float16"},
        {"JAX_ENABLE_X64": "1", "JAX_NUMPY_DTYPE_PROMOTION": "strict"},
        {"JAX_DISABLE_JIT": "1"},
        {"JAX_DEBUG_NANS": "1", "JAX_CHECK_TRACER_LEAKS": "1"},
    ],
    "torch": [{"floatx": "float16"}, {"floatx": "float64"}],
}
THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"


@pytest.mark.slow
@pytest.mark.parametrize("backend", ENVIRONMENTS)
def test_the_callers_environment(backend, tmp_path):
    pytest.importorskip(backend, reason=f"needs {backend}")
    runs = []
    for number, environment in enumerate(ENVIRONMENTS[backend][: None if THOROUGH else 2]):
        environment = environment | {"KERAS_BACKEND": backend}
        if floatx := environment.pop("floatx", None):
            home = tmp_path / str(number)
            home.mkdir()
            settings = {"floatx": floatx, "image_data_format": "channels_first", "epsilon": 1e-7}
            (home / "keras.json").write_text(json.dumps(settings), encoding="utf-8")
            environment |= {"KERAS_HOME": str(home)}
        runs.append(((), environment))
    for start in range(0, len(runs), 2):  # two at a time
        run_together(PROGRAM, runs[start : start + 2])
