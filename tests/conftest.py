"""Settings that must precede the import of any framework, and the number of examples."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")  # for meshes; other tests use one
# The threads of XLA's pool, more than devices: each device blocks one while it waits for the
# others, and if another task holds the last thread they wait forever.
os.environ.setdefault("NPROC", "16")
# Idle threads of torch sleep: spinning, they would take the processors from other test processes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from hypothesis import HealthCheck, Phase, settings

# A compiled backend's first example takes seconds, so no example has a deadline.
_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("default", max_examples=25, derandomize=True, **_COMMON)
settings.register_profile("thorough", max_examples=1000, **_COMMON)
# For `make mutants`, which needs no smallest example of a failure.
settings.register_profile(
    "mutants",
    settings.get_profile("default"),
    max_examples=10,
    phases=[Phase.explicit, Phase.generate],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
