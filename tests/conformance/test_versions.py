"""`gravity versions`: one block for a bug report, even if a framework cannot be imported."""

import importlib.metadata
import platform
import types

import gravity_core
from gravity_conformance import versions
from gravity_conformance.protocol import Mode
from tests.support.command import gravity
from tests.support.parity import Point, threads

PACKAGES = {
    "numpy": ["numpy", "array-api-compat"],
    "jax": ["jax", "optax"],
    "tensorflow": ["tensorflow", "keras"],
    "torch": ["torch"],
}


def test_installed_packages_and_their_devices_are_listed():
    done = gravity("versions")
    assert (done.returncode, done.stderr) == (0, "")
    first, python, machine, packages, *rest = done.stdout.splitlines()
    assert first == f"gravity-optimizer: {gravity_core.__version__}"
    assert python.startswith(f"python: {platform.python_version()} (")
    assert machine.startswith("platform: ")
    assert packages.startswith(f"packages: numpy {importlib.metadata.version('numpy')}, array-api")
    lines = dict(line.split(": ", 1) for line in rest)
    assert lines.keys() >= PACKAGES.keys()
    for name, packages in PACKAGES.items():
        try:
            found = {package: importlib.metadata.version(package) for package in packages}
        except importlib.metadata.PackageNotFoundError:
            assert lines[name].startswith("not installed (no ")
            continue
        # torch reports its build (2.13.0+cpu), which the wheel's version may lack.
        assert all(f"{package} {version}" in lines[name] for package, version in found.items())
        assert name == "numpy" or "cpu" in lines[name].partition(" on ")[2].lower()


def a_backend(**functions):
    return types.SimpleNamespace(
        versions=lambda: {"mine": "1.2"},
        dtypes=lambda: ("float32",),
        modes=lambda: {"eager": Mode("eager")},
        **functions,
    )


def a_line(monkeypatch, load):
    """Return the last line for the only backend, which `load` returns."""
    points = {"mine": Point("mine", "mine", load)}
    monkeypatch.setattr(versions, "entry_points", lambda: points)
    with threads(points):
        return list(versions.versions())[-1]


def broken():
    raise OSError("libcuda.so.1: cannot open\nshared object file")


def test_a_backend_need_not_list_devices(monkeypatch):
    assert a_line(monkeypatch, a_backend) == "mine: mine 1.2"


def test_a_failure_to_list_devices_is_reported(monkeypatch):
    line = a_line(monkeypatch, lambda: a_backend(devices=broken))
    assert line.startswith("mine: mine 1.2; its devices cannot be listed: OSError: libcuda.so.1")


def test_a_backend_that_cannot_be_imported_is_reported(monkeypatch):
    assert a_line(monkeypatch, broken).startswith("mine: OSError: libcuda.so.1: cannot open")
