"""Keep the caller's folder and settings out of a command, which judges code and not settings.

It imports next to nothing, because what it imports could come from the caller's folder.
"""

import os
import sys

# They change what a framework computes, or make it raise where its users' code would not. Settings
# of devices, threads, memory and kernels stay, and so do XLA_FLAGS and KERAS_BACKEND.
IGNORED = (
    "JAX_CHECK_TRACER_LEAKS",
    "JAX_DEBUG_INFS",
    "JAX_DEBUG_NANS",
    "JAX_DEFAULT_DTYPE_BITS",
    "JAX_DISABLE_JIT",
    "JAX_ENABLE_CHECKS",
    "JAX_ENABLE_X64",
    "JAX_NUMPY_DTYPE_PROMOTION",
    "JAX_NUMPY_RANK_PROMOTION",
    "JAX_TRANSFER_GUARD",
    "JAX_TRANSFER_GUARD_DEVICE_TO_DEVICE",
    "JAX_TRANSFER_GUARD_DEVICE_TO_HOST",
    "JAX_TRANSFER_GUARD_HOST_TO_DEVICE",
    "KERAS_MAX_EPOCHS",
    "KERAS_MAX_STEPS_PER_EPOCH",
    "KERAS_NNX_ENABLED",
)


def without_current_folder() -> None:
    """Forget the current folder, which ``python -m`` puts before Python's own modules.

    A file of the caller's with the name random.py or torch.py would hide the real one.
    """
    if sys.flags.safe_path or not sys.path:
        return
    here = sys.path.pop(0)
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if os.path.abspath(here) == root:  # a checkout, which may be installed elsewhere, too
        _import_core(root)
        sys.path.append(here)


def _import_core(root: str) -> None:
    """Import gravity_core from the folder of this package, whatever else is installed."""
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    found = PathFinder.find_spec("gravity_core", [root])
    if found is not None and found.loader is not None:
        sys.modules["gravity_core"] = module = module_from_spec(found)
        found.loader.exec_module(module)


def without_settings() -> None:
    """Forget those settings of the caller's environment that would change the report."""
    for name in IGNORED:
        os.environ.pop(name, None)
    # TensorFlow greets on stderr at import, which is of no use to the users of these commands.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Jupyter and Colab name a backend of their own here, which another Python may lack.
    os.environ["MPLBACKEND"] = "agg"
    _without_keras_json()


def _without_keras_json() -> None:
    """Let Keras read no keras.json, whose floatx and epsilon are its user's.

    Of its settings only the backend counts, and only where neither KERAS_BACKEND nor TensorFlow,
    the default, is there.
    """
    from importlib.util import find_spec

    if "KERAS_BACKEND" not in os.environ and find_spec("tensorflow") is None:
        import json

        home = os.environ.get("KERAS_HOME") or os.path.join(os.path.expanduser("~"), ".keras")
        try:
            with open(os.path.join(home, "keras.json"), encoding="utf-8") as file:
                os.environ["KERAS_BACKEND"] = json.load(file)["backend"]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # Keras would not understand it either
    os.environ["KERAS_HOME"] = os.devnull  # no folder: nothing is read or written there
