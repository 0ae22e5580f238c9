"""Versions and devices for a bug report: ``gravity versions``."""

import contextlib
import importlib.metadata
import os
import platform
from collections.abc import Iterator

import gravity_core
from gravity_conformance.parity.connection import Connection, FailedError, entry_points, processes
from gravity_conformance.parity.run import imported, new_report

# The packages that decide how and where a framework computes.
PACKAGES = (
    "numpy",
    "array-api-compat",
    "torch",
    "triton",
    "numba",
    "jax",
    "jaxlib",
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
    "optax",
    "tensorflow",
    "keras",
    "ml_dtypes",
)


def versions() -> Iterator[str]:
    """Yield one line each for Gravity, Python, the machine, the packages, and every backend.

    The line of a backend lists its devices. Each line is yielded as soon as it is known, and the
    packages are listed before any of them is imported: a broken framework may end the process.
    """
    report = new_report(seed=0)
    yield f"gravity-optimizer: {gravity_core.__version__}"
    yield f"python: {platform.python_version()} ({platform.python_implementation()})"
    cores = f"{os.cpu_count()} CPUs, {report.platform['cpu']}"
    yield f"platform: {platform.platform()}, {cores}"
    yield f"packages: {', '.join(installed())}"
    with processes(list(entry_points())) as started:
        for name, process in started.items():
            found = imported(name, process, report)
            if found is not None:
                libraries = (f"{key} {value}" for key, value in found.versions.items())
                yield f"{name}: {', '.join(libraries)}{_devices(found)}"
            elif name in report.not_installed:
                yield f"{name}: not installed (no {report.not_installed[name]})"
            else:
                yield report.failures[-1]


def installed() -> Iterator[str]:
    """Yield the names and versions of PACKAGES that are installed."""
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield f"{name} {importlib.metadata.version(name)}"


def _devices(found: Connection) -> str:
    try:
        names = ", ".join(found.devices())
        return f" on {names}" if names else ""
    except FailedError as error:  # an incompatible driver, for example
        return f"; its devices cannot be listed: {error}"
