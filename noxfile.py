"""The test matrix: every Python and framework, at their oldest, pinned and newest versions.

    make matrix                                   all of it, on the Pythons found here
    make matrix MATRIX="--tags newest"            one column; also oldest, pinned
    make matrix MATRIX="--python 3.12 -k jax"     one Python, and the names that match
    make matrix MATRIX=--list                     the names of all sessions

oldest has the lower bounds of pyproject.toml, exactly, on the oldest Python; pinned has
constraints.txt; newest is what pip takes today. Each session installs one framework only. nox skips
a Python that is neither on PATH nor in pyenv, and reports each one.
"""

import os
import shutil
from itertools import chain, product
from pathlib import Path

import nox
from packaging.requirements import Requirement

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
# The extras of each framework, and the libraries whose use with it is tested.
FRAMEWORKS = {
    "numpy": ("[cli,test]",),
    "torch": ("[torch,cli,test]", "pytorch_optimizer"),
    "jax": ("[jax,cli,test]", "equinox", "flax", "orbax-checkpoint"),
    "tensorflow": ("[tensorflow,cli,test]",),
}
NO_WHEEL = {("tensorflow", "3.14")}
JAX_TESTS = sorted(map(str, Path("tests/adapters").glob("test_jax*.py")))

nox.needs_version = ">=2024.10.9"
nox.options.sessions = ["tests"]
nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False

# pyenv puts the selected versions on PATH; its shims for other versions fail.
pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
os.environ["PATH"] = os.pathsep.join(
    [*sorted(map(str, pyenv.glob("3.*[0-9]/bin")), reverse=True), os.environ["PATH"]]
)


def lower_bounds() -> list[str]:
    """Return a constraint for every requirement of pyproject.toml: the oldest version it allows."""
    project = nox.project.load_toml("pyproject.toml")["project"]
    requirements = map(
        Requirement,
        chain(project["dependencies"], *project["optional-dependencies"].values()),
    )
    return [
        f"{requirement.name}=={bound.version}"
        for requirement in requirements
        for bound in requirement.specifier
        if bound.operator == ">="
    ]


def constraints(session: nox.Session, versions: str) -> list[str]:
    """Return pip's options for these versions."""
    if versions == "newest":
        return []
    if versions == "pinned":
        return ["--constraint", "constraints.txt"]
    file = Path(session.create_tmp()) / "oldest.txt"
    file.write_text("\n".join(lower_bounds()) + "\n", encoding="utf-8")
    return ["--constraint", str(file)]


def install(session: nox.Session, versions: str, framework: str) -> None:
    """Install this framework alone, and what its tests use."""
    package, *clients = FRAMEWORKS[framework]
    options = constraints(session, versions)
    session.install("--quiet", *options, "--editable", f".{package}", *clients)
    session.run("gravity", "versions")


CELLS = [
    nox.param(python, versions, framework, id=f"{python}, {versions}, {framework}", tags=[versions])
    for python, versions, framework in product(PYTHONS, ("oldest", "pinned", "newest"), FRAMEWORKS)
    if (framework, python) not in NO_WHEEL and (versions != "oldest" or python == PYTHONS[0])
]


@nox.session
@nox.parametrize("python, versions, framework", CELLS)
def tests(session: nox.Session, versions: str, framework: str) -> None:
    """Run all tests that need no other framework; arguments after -- are pytest's."""
    install(session, versions, framework)
    session.run("python", "-m", "pytest", "-n", "2", "--dist", "worksteal", *session.posargs)


@nox.session(python=next((p for p in reversed(PYTHONS) if shutil.which(f"python{p}")), None))
def quick(session: nox.Session) -> None:
    """Run the JAX tests on the newest JAX that the newest Python found here can have."""
    install(session, "newest", "jax")
    session.run("python", "-c", "import gravity_jax")
    session.run("python", "-m", "pytest", "-n", "2", "--dist", "worksteal", *JAX_TESTS)
