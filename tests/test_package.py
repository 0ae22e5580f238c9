"""The distribution: its public names, entry points, versions and imports."""

import importlib
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import gravity_core
from gravity_core import _install

ROOT = Path(__file__).resolve().parent.parent
FRAMEWORKS = {"torch", "jax", "optax", "tensorflow", "keras"}
# Each package may import the modules that its framework imports (TensorFlow imports jax if it
# is installed).
PACKAGES = {
    "gravity_core": "numpy",
    "gravity_conformance.parity.run": "numpy",
    "gravity_torch": "torch",
    "gravity_jax": "optax",
    "gravity_tf": "keras",
}


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def imported_after(*names):
    """Import the names in turn in a fresh process; return all top-level modules after each."""
    code = "import sys\n" + "".join(
        f"import {name}; print(*{{m.partition('.')[0] for m in sys.modules}})\n" for name in names
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if "ModuleNotFoundError" in done.stderr and names[-1].partition(".")[0] != "gravity_core":
        pytest.skip(f"{names[-1]} needs its framework")
    assert done.returncode == 0, done.stderr
    return [set(line.split()) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(("name", "framework"), PACKAGES.items())
def test_imports_only_its_own_framework(name, framework):
    before, after = imported_after(framework, name)
    assert after & FRAMEWORKS == before & FRAMEWORKS
    ours = {p.partition(".")[0] for p in PACKAGES}
    assert after & ours <= {"gravity_core", name.partition(".")[0]}  # arrows point one way


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("gravity_torch", {"Gravity", "diagnose", "export_state", "import_state"}),
        (
            "gravity_jax",
            {"ScaleByGravityState", "export_state", "gravity", "import_state", "scale_by_gravity"},
        ),
        ("gravity_tf", {"Gravity", "export_state", "import_state"}),
    ],
)
def test_public_names(name, public):
    module = pytest.importorskip(name, reason=f"{name} needs its framework")
    assert set(module.__all__) == public
    assert all(getattr(module, n).__doc__ for n in public)


def test_the_backends_are_entry_points():
    points = importlib.metadata.entry_points(group="gravity.backends")
    assert {point.name for point in points} >= {"numpy", "torch", "jax", "tensorflow"}


def test_every_file_names_the_same_python_versions():
    """pyproject.toml, the Makefile, the README, nox and the workflows agree on the versions."""
    oldest, *others = re.findall(r"Language :: Python :: 3\.(\d+)", read("pyproject.toml"))
    minors = [int(minor) for minor in (oldest, *others)]
    assert minors == list(range(minors[0], minors[-1] + 1))
    assert f'requires-python = ">=3.{oldest}"' in read("pyproject.toml")
    said = f"3.{oldest} to 3.{minors[-1]}"
    makefile = read("Makefile")
    assert f"(3, {oldest}) <= sys.version_info < (3, {minors[-1] + 1})" in makefile
    assert f"needs Python {said}," in makefile
    assert f"--python-version 3.{oldest} " in makefile
    assert f"python3 ({said}" in read("README.md")
    versions = ", ".join(f'"3.{minor}"' for minor in minors)
    assert f"PYTHONS = ({versions})" in read("noxfile.py")
    for workflow in ("ci", "newest"):
        assert f"python: [{versions}]" in read(f".github/workflows/{workflow}.yml")


def test_one_version():
    cited = re.search(r"^version: (\S+)$", read("CITATION.cff"), re.MULTILINE)
    assert cited[1] == gravity_core.__version__ == importlib.metadata.version("gravity-optimizer")


@pytest.mark.parametrize(
    "name",
    [
        "gravity_core",
        "gravity_conformance",
        "gravity_torch",
        "gravity_jax",
        "gravity_tf",
    ],
)
def test_packages_are_typed(name):
    # By the spec, so that no framework is imported.
    spec = importlib.util.find_spec(name)
    assert Path(spec.origin).with_name("py.typed").is_file()


def test_every_folder_of_tests_is_collected_but_those_with_targets_of_their_own():
    paths = tomllib.loads(read("pyproject.toml"))["tool"]["pytest"]["ini_options"]["testpaths"]
    folders = {f"tests/{path.parent.name}" for path in Path(__file__).parent.glob("*/test_*.py")}
    assert folders - set(paths) == {"tests/browser", "tests/clients"}


def test_every_hint_installs_an_extra_in_the_way_that_works_today():
    works = _install.FORM.partition("{extra}")[0]
    assert _install.install("cli").startswith("pip install '.[cli]'")
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    for name in ("adapters", "benchmarks", "gravity_conformance", "gravity_core"):
        pages += [path for path in (ROOT / name).rglob("*.*") if path.suffix in (".py", ".md")]
    for page in set(pages) - {Path(_install.__file__)}:
        hints = re.findall(r"pip install '(?:gravity-optimizer|\.)\[", page.read_text("utf-8"))
        assert set(hints) <= {works}, page
