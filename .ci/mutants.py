"""Change gravity_core in one place at a time, and see whether the nearest tests notice.

    python .ci/mutants.py [--jobs 2] [update coefficients …]

NEAREST lists the nearest tests of each module. mutmut makes the mutants: it changes the bodies of
functions, except of those with a decorator, and runs the tests that reach the function. This
prints, for each module, how many mutants the tests kill, and each survivor that is not in
equivalent_mutants.toml. The exit status is 1 if under 95 % are killed.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GOAL = 0.95
KILLED = {"killed", "timeout", "segfault"}
NEAREST = {
    "update": ["test_update*"],
    "coefficients": ["test_coefficients*"],
    "velocity": ["test_velocity*"],
    "hyperparameters": ["test_hyperparameters*"],
    "state": ["test_state*"],
    "error_bound": ["test_error_bound*"],
    "reference": ["test_reference*", "test_memory*", "test_state*", "test_update_namespaces*"],
    "_arrays": ["test_arrays*"],
    "_memory": ["test_memory*"],
    "_json": ["test_json*"],
}
CONFIGURATION = """
[tool.mutmut]
source_paths = ["gravity_core"]
only_mutate = ["gravity_core/{module}.py"]
pytest_add_cli_args_test_selection = {tests}
# A function that mutmut has changed has one more frame on the stack, which moves a warning.
pytest_add_cli_args = ["-p", "no:cacheprovider", "-k", "not names_the_file_of_the_caller"]
"""


def nearest_tests(module: str) -> list[str]:
    """Return the paths of the nearest test files, relative to the project."""
    found = (ROOT.glob(f"tests/core/{pattern}.py") for pattern in NEAREST[module])
    return sorted(str(path.relative_to(ROOT)) for paths in found for path in paths)


def mutmut(folder: Path, *arguments: str) -> str:
    """Run mutmut in a folder and return its output."""
    command = [sys.executable, "-m", "mutmut", *arguments]
    environment = os.environ | {"HYPOTHESIS_PROFILE": "mutants", "PYTHONUTF8": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout


def statuses(module: str, folder: Path, jobs: int) -> dict[str, str]:
    """Test all mutants of a module, and return the status of each by its name."""
    for part in ("gravity_core", "tests/hostile", "tests/support"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tests/core").mkdir()
    tests = nearest_tests(module)
    for path in ("tests/conftest.py", *tests):
        shutil.copy(ROOT / path, folder / path)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    configuration = CONFIGURATION.format(module=module, tests=tests)
    (folder / "pyproject.toml").write_text(project + configuration, encoding="utf-8")
    mutmut(folder, "run", "--max-children", str(jobs))
    lines = mutmut(folder, "results", "--all", "true").splitlines()
    return dict(line.strip().rsplit(": ", 1) for line in lines if ": " in line)


def change(folder: Path, mutant: str) -> tuple[str, str, str]:
    """Return the function that a mutant changes, and the lines that it takes out and puts in."""
    lines = mutmut(folder, "show", mutant).splitlines()
    out, into = (
        " ".join(line[1:].strip() for line in lines if line[:1] == sign and line[:3] != 3 * sign)
        for sign in "-+"
    )
    _, module, mangled = mutant.split(".")
    function = mangled.rpartition("__mutmut_")[0].replace("xǁ", "").removeprefix("x_")
    return f"{module}.{function.replace('ǁ', '.')}", out, into


def equivalents() -> set[tuple[str, str]]:
    """Return the function and the new lines of each mutant that no test can tell apart."""
    text = (ROOT / ".ci/equivalent_mutants.toml").read_text(encoding="utf-8")
    return {
        (function, into.strip())
        for function, mutants in tomllib.loads(text).items()
        for mutant in mutants
        for into in (
            mutant["becomes"] if isinstance(mutant["becomes"], list) else [mutant["becomes"]]
        )
    }


def survivors(folder: Path, names: Iterable[str], jobs: int) -> Iterator[tuple[str, str, str]]:
    """Yield the changes of these mutants, without the equivalent ones."""
    known = equivalents()
    with ThreadPoolExecutor(jobs) as pool:
        for function, out, into in pool.map(lambda name: change(folder, name), names):
            if (function, into.strip()) not in known:
                yield function, out, into


def main() -> int:
    """Test the mutants of the modules that the command line names, or of all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("modules", nargs="*", metavar="module", help="default: all")
    parser.add_argument("--jobs", type=int, default=2)
    chosen = parser.parse_args()
    if unknown := set(chosen.modules) - set(NEAREST):
        parser.error(f"modules must be among {', '.join(NEAREST)}, got {', '.join(unknown)}")
    total = killed = 0
    for module in chosen.modules or NEAREST:
        with tempfile.TemporaryDirectory() as scratch:
            found = statuses(module, Path(scratch), chosen.jobs)
            living = [name for name, status in found.items() if status not in KILLED]
            left = list(survivors(Path(scratch), living, chosen.jobs))
        dead, equivalent = len(found) - len(living), len(living) - len(left)
        print(f"{module}: {dead} killed, {len(left)} survived, {equivalent} equivalent", flush=True)
        for function, out, into in left:
            print(f"  {function}\n    - {out}\n    + {into}", flush=True)
        total, killed = total + dead + len(left), killed + dead
    print(f"{killed} of {total} killed ({killed / max(total, 1):.1%})")
    return int(killed < GOAL * total)


if __name__ == "__main__":
    sys.exit(main())
