"""Change the code in one place at a time, and see whether the nearest tests notice.

    python .ci/mutants.py [update coefficients …]
    python .ci/mutants.py [--sample 100] [--seed 1] gravity_torch gravity_jax._velocity …

Without a package, a module is one of gravity_core, and NEAREST lists its nearest tests. mutmut
makes its mutants: it changes the bodies of functions, except of those with a decorator, and runs
the tests that reach the function. adapter_mutants.py makes those of the adapters, which take days;
a sample tells with which certainty how many are killed.

This prints, for each module, how many mutants the tests kill, and each survivor that is not in
equivalent_mutants.toml. The exit status is 1 if under 95 % are killed.
"""

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, groupby
from pathlib import Path

import adapter_mutants
from scipy.stats import binomtest

ROOT = Path(__file__).resolve().parents[1]
GOAL = 0.95
Change = tuple[str, str, str]  # the function, and the lines that are taken out and put in
KILLED = {"killed", "timeout", "segfault"}
NEAREST = {
    "update": ["test_update*", "test_entrances*"],
    "coefficients": ["test_coefficients*", "test_entrances*"],
    "velocity": ["test_velocity*"],
    "hyperparameters": ["test_hyperparameters*", "test_entrances*"],
    "state": ["test_state*"],
    "error_bound": ["test_error_bound*"],
    "reference": [
        "test_reference*",
        "test_memory*",
        "test_state*",
        "test_update_namespaces*",
        "test_entrances*",
        "test_hyperparameters*",
    ],
    "trajectory": ["test_reference*", "test_update_namespaces*", "test_plot*"],
    "_plot": ["test_plot*"],
    "_arrays": ["test_arrays*"],
    "_memory": ["test_memory*"],
    "_json": ["test_json*"],
    "_files": ["test_files*", "test_state_file*"],
    "_npz": ["test_npz*", "test_state_file*", "test_state_hostile*"],
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


def change(folder: Path, mutant: str) -> Change:
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


def asserts_less(change: Change) -> bool:
    """Return whether a change only takes the assertion out that two lengths are equal."""
    _, out, into = change
    bare = [re.sub(r"strict=\w+", "", lines) for lines in (out, into)]
    return bare[0] == bare[1] and into.count("strict=True") <= out.count("strict=True")


def of_core(module: str, jobs: int) -> tuple[str, int, list[Change]]:
    """Return the module, how many of its mutants are killed, and the changes of the others."""
    with tempfile.TemporaryDirectory() as scratch:
        found = statuses(module, Path(scratch), jobs)
        living = [name for name, status in found.items() if status not in KILLED]
        with ThreadPoolExecutor(jobs) as pool:
            changes = list(pool.map(lambda name: change(Path(scratch), name), living))
    return module, len(found) - len(living), changes


def of_adapters(
    found: list[adapter_mutants.Mutant], jobs: int, python: str
) -> Iterator[tuple[str, int, list[Change]]]:
    """Yield for each module how many of these mutants are killed, and the changes of the others."""
    tested = zip(found, adapter_mutants.survive(found, jobs, python), strict=True)
    for module, group in groupby(tested, key=lambda pair: pair[0].module):
        pairs = list(group)
        living = [mutant.change() for mutant, survives in pairs if survives]
        yield module, len(pairs) - len(living), living


def main() -> int:
    """Test the mutants of the modules that the command line names, or of the core."""
    adapters = adapter_mutants.MODULES
    packages = {module.split(".")[0] for module in adapters}
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("modules", nargs="*", metavar="module", help="default: gravity_core's")
    parser.add_argument("--jobs", type=int, default=2, help="how many are tested at a time")
    parser.add_argument("--sample", type=int, metavar="N", help="test N mutants of the adapters")
    parser.add_argument("--seed", type=int, default=0, help="chooses the sample")
    parser.add_argument("--python", default=sys.executable, help="has the adapters' frameworks")
    given = parser.parse_args()
    if unknown := set(given.modules) - {*NEAREST, *adapters, *packages}:
        modules = ", ".join([*NEAREST, *sorted(packages), *adapters])
        parser.error(f"modules must be among {modules}, got {', '.join(unknown)}")
    found = [
        mutant
        for module in adapters
        if {module, module.split(".")[0]} & set(given.modules)
        for mutant in adapter_mutants.mutants(module)
    ]
    if given.sample is not None and given.sample < len(found):
        indices = random.Random(given.seed).sample(range(len(found)), given.sample)
        found = [found[i] for i in sorted(indices)]
    core = [module for module in given.modules or NEAREST if module in NEAREST]
    known = equivalents()
    total = killed = 0
    for module, dead, living in chain(
        (of_core(module, given.jobs) for module in core),
        of_adapters(found, given.jobs, os.path.abspath(given.python)),
    ):
        left = [x for x in living if (x[0], x[2].strip()) not in known and not asserts_less(x)]
        equivalent = len(living) - len(left)
        print(f"{module}: {dead} killed, {len(left)} survived, {equivalent} equivalent", flush=True)
        for function, out, into in left:
            print(f"  {function}\n    - {out}\n    + {into}", flush=True)
        total, killed = total + dead + len(left), killed + dead
    if not total:
        return 0
    low, high = binomtest(killed, total).proportion_ci()
    print(f"{killed} of {total} killed ({killed / total:.1%})", end="")
    print(f"; of all, {low:.1%} to {high:.1%} with 95 % confidence" if given.sample else "")
    return int(killed < GOAL * total)


if __name__ == "__main__":
    sys.exit(main())
