"""`gravity vectors --check`: every corrupted file is reported, in one line."""

import copy
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gravity_conformance.vectors import files, load_vectors
from gravity_conformance.vectors.check import check
from gravity_conformance.vectors.making.notes import NOTES
from gravity_core._install import install

COMMAND = [sys.executable, "-m", "gravity_conformance", "vectors"]


def first_update(content):
    return next(g for g in content["groups"] if g["type"] == "update")["tests"][0]


def set_in(*path, to):
    """Return a corruption that sets one entry of the first test of updates."""

    def corrupt(content):
        inside = first_update(content)
        for key in path[:-1]:
            inside = inside[key]
        inside[path[-1]] = to

    return corrupt


V, W, G = "V", "W", "G"
AFTER = ("steps", 0, "expected", "tensors", 0)
CORRUPTIONS = {
    # results
    "beta_hat": (set_in("steps", 0, "expected", "beta_hat", "hex", to="0x1p-1"), "beta_hat.hex"),
    "m": (set_in(*AFTER, "m", "hex", to="0x1.8p-2"), "m.hex"),
    "zeta": (set_in(*AFTER, "zeta", "hex", 1, to="0x1p+0"), "zeta.hex[1]: is 0x1p+0"),
    "V": (set_in(*AFTER, V, "hex", 0, to="NaN"), "V.hex[0]: is NaN"),
    "W": (set_in(*AFTER, W, "hex", 3, to="0x0p+0"), "W.hex[3]"),
    "decimal of W": (set_in(*AFTER, W, "decimal", 3, to=0.125), "W.decimal[3]: is 0.125"),
    "wider tolerance": (set_in(*AFTER, V, "tolerance", 0, to=1.0), "tolerance[0]: is 1.0"),
    "no tolerance": (set_in(*AFTER, V, "tolerance", 0, to=None), "tolerance[0]: is None"),
    "a result is missing": (set_in(*AFTER, V, "hex", to=[]), "must have 4"),
    "a tolerance is missing": (set_in(*AFTER, V, "tolerance", to=[]), "must have 4"),
    # inputs
    "decimal of G": (set_in("steps", 0, G, 0, "decimal", 0, to=7), "decimal[0]: is 7"),
    "G": (set_in("steps", 0, G, 0, "hex", 0, to="0x1p+3"), "more in this test"),
    "G is no float32": (set_in("steps", 0, G, 0, "hex", 0, to="0x1.0000001p+3"), "of float32"),
    "G underflows": (set_in("steps", 0, G, 0, "hex", 0, to="0x1p-9999"), "of float32"),
    "G overflows": (set_in("steps", 0, G, 0, "hex", 0, to="0x1p+9999"), "of float32"),
    "shape": (set_in("tensors", 0, "shape", to=[3]), "must have 3 elements, got 4"),
    "a huge shape": (set_in("tensors", 0, "shape", to=[4096] * 8), "elements, got 4"),
    "G of another tensor": (set_in("steps", 0, G, to=[]), "should be non-empty"),
    "t": (set_in("steps", 0, "t", to=0), "does not fit first_step"),
    "t is no integer": (set_in("steps", 0, "t", to=1.0), "steps[0].t: 1.0 is not"),
    "beta": (
        set_in("hyperparameters", "beta", to={"hex": "0x1.8p+0", "decimal": 1.5}),
        "beta must be a number in [0, 1], got 1.5",
    ),
    "decimal of β": (
        set_in("hyperparameters", "beta", "decimal", to=0.8),
        "hyperparameters.beta.decimal[0]: is 0.8",
    ),
    "decimal of a learning rate": (
        set_in("steps", 0, "learning_rate", "decimal", to=0.2),
        "steps[0].learning_rate.decimal[0]: is 0.2",
    ),
    "α that is not used": (
        set_in("hyperparameters", "alpha", to={"hex": "-0x1p+0", "decimal": -1.0}),
        "alpha must be a finite number >= 0, got -1.0",
    ),
    "learning rate": (
        set_in("steps", 0, "learning_rate", to={"hex": "-0x1p-1", "decimal": -0.5}),
        "learning_rate must be a finite number >= 0, got -0.5",
    ),
    "a learning rate that is NaN": (
        set_in("steps", 0, "learning_rate", to={"hex": "NaN", "decimal": "NaN"}),
        "learning_rate must be",
    ),
    "V is not V₀": (set_in("hyperparameters", "seed", to="0x0000000000000000"), "V.hex[0]"),
    # the schema
    "a line after a number": (set_in("steps", 0, G, 0, "hex", 0, to="0x1p+0\n"), "does not match"),
    "a line after the seed": (
        set_in("hyperparameters", "seed", to="0x0000000000000000\n"),
        "is not valid under",
    ),
    "hexadecimal notation": (set_in("steps", 0, G, 0, "hex", 0, to="1.5"), "does not match"),
    "number as a string": (set_in(*AFTER, V, "decimal", 0, to="1.5"), "decimal[0]: '1.5'"),
    "a key too many": (set_in("steps", 0, "extra", to=1), "'extra' was unexpected"),
    "a step of another type": (set_in("steps", 0, to=[]), "steps[0]: [] is not of type"),
    # ids, flags, notes and counts
    "id": (set_in("id", to=2), "2 tests have the id 2"),
    "unknown flag": (set_in("flags", 0, to="new_flag"), "'new_flag' is used but not explained"),
    "version": (lambda c: c.update(version=1.0), "version: 1.0 is not of type 'integer'"),
    "number of tests": (lambda c: c.update(number_of_tests=1), "number_of_tests: is 1"),
    "unused note": (
        lambda c: c["notes"].update(more={"kind": "case", "description": ""}),
        "'more' is explained but not used",
    ),
    "no notes": (lambda c: c.pop("notes"), "'notes' is a required property"),
    "type": (lambda c: c["groups"][0].update(type="other"), "'other' is not one of"),
    "dtype": (lambda c: c["groups"][0].update(dtype="float64"), "more in this test"),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_corruption_is_reported_in_one_line(name, tmp_path):
    corrupt, message = CORRUPTIONS[name]
    content = shortened("one_step.json", 2)
    path = tmp_path / "vectors.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert check(path) == []
    corrupt(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    faults = check(path)
    assert any(message in line for line in faults), faults
    assert all("\n" not in line and len(line) <= 300 for line in faults)
    if name not in ("unknown flag", "dtype", "type"):  # these give several faults
        assert len(faults) == 1


MISTAKES = [flag for flag in NOTES if NOTES[flag]["kind"] == "mistake"]
# Tests that no mistake can fail: an empty tensor, and the V₀ of the defaults.
HARMLESS = {"update": ("edge_cases.json", "an empty tensor")}
HARMLESS["initial_velocity"] = ("initial_velocity.json", "the defaults: σ = 0.01/0.1")


@pytest.mark.parametrize(
    ("kind", "flag"),
    [("update", flag) for flag in MISTAKES]
    + [("initial_velocity", flag) for flag in MISTAKES if flag != "std_alpha"],
)
def test_a_flag_whose_mistake_passes_is_reported(kind, flag, tmp_path):
    name, comment = HARMLESS[kind]
    content = json.loads((files()[0].parent / name).read_text(encoding="utf-8"))
    group = next(group for group in content["groups"] if group["type"] == kind)
    group["tests"] = [test for test in group["tests"] if test["comment"] == comment]
    (test,) = group["tests"]
    used = {*test["flags"], flag}
    test["flags"] = sorted(used)
    content |= {"groups": [group], "number_of_tests": 1, "notes": {f: NOTES[f] for f in used}}
    path = tmp_path / "vectors.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    (fault,) = check(path)
    assert fault.endswith(f"flags: '{flag}' is wrong: an implementation with that mistake passes")


def test_an_unknown_mistake_counts_as_untried(tmp_path):
    content = shortened("one_step.json", 1)
    first_update(content)["flags"].append("of_my_own")
    content["notes"]["of_my_own"] = {"kind": "mistake", "description": "a new one"}
    path = tmp_path / "vectors.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    (fault,) = check(path)
    assert fault.endswith("flags: 'of_my_own' is not a known mistake, so it was not tried")
    content["notes"]["of_my_own"]["kind"] = "case"
    content["notes"]["mean_for_max"] = {"kind": "case", "description": "which would not be tried"}
    path.write_text(json.dumps(content), encoding="utf-8")
    assert check(path) == ["notes: the kind of 'mean_for_max' must be mistake, got case"]


def leaves(content, path=()):
    """Yield the path of every entry without entries."""
    if isinstance(content, dict | list) and content:
        items = content.items() if isinstance(content, dict) else enumerate(content)
        for key, item in items:
            yield from leaves(item, (*path, key))
    else:
        yield path


def shortened(name, tests):
    """Return the content of a file with the first tests of each group."""
    content = json.loads((files()[0].parent / name).read_text(encoding="utf-8"))
    for group in content["groups"]:
        del group["tests"][tests:]
    left = [test for group in content["groups"] for test in group["tests"]]
    flags = {flag for test in left for flag in test["flags"]}
    content.update(number_of_tests=len(left), notes={flag: NOTES[flag] for flag in flags})
    return content


SMALL = [
    shortened(name, 1) for name in ("edge_cases.json", "initial_velocity.json", "coefficients.json")
]
json_values = st.sampled_from(
    [None, True, 0, 1, -1, 2**70, 0.5, 1e308, "", "0x1p+0", "NaN", [], {}]
)


@given(data=st.data(), content=st.sampled_from(SMALL).map(copy.deepcopy), to=json_values)
def test_every_changed_number_is_reported(data, content, to, tmp_path_factory):
    """Other changes give no traceback."""
    path = data.draw(st.sampled_from(list(leaves(content))))
    inside = content
    for key in path[:-1]:
        inside = inside[key]
    before, inside[path[-1]] = inside[path[-1]], to
    file = tmp_path_factory.getbasetemp() / "changed.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    faults = check(file)
    is_number = bool({"expected", "hex", "decimal"} & set(path))
    if is_number and (type(to) is bool or to != before):
        assert faults


OTHER = {
    "coefficients": (("expected", "one_minus_beta_hat", "hex"), "0x1p-1"),
    "initial_velocity": (("expected", "V", "hex", 1), "0x1p-3"),
    "initial_velocity k": (("expected", "k", 1), 1),
    "initial_velocity σ": (("expected", "std", "hex"), "0x1p-3"),
    "initial_velocity key": (("expected", "key", 0), "0x00000000"),
    "threefry": (("expected", "output", 1), "0x00000000"),
}


@pytest.mark.parametrize("name", OTHER)
def test_corrupted_results_of_every_type_are_reported(name, tmp_path):
    path, wrong = OTHER[name]
    kind = name.partition(" ")[0]
    for file in files():
        content = json.loads(file.read_text(encoding="utf-8"))
        group = next((g for g in content["groups"] if g["type"] == kind), None)
        if group is not None:
            break
    inside = group["tests"][1]
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = wrong
    corrupted = tmp_path / "vectors.json"
    corrupted.write_text(json.dumps(content), encoding="utf-8")
    (fault,) = check(corrupted)
    assert str(wrong) in fault
    assert "the mathematics gives" in fault


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"1" * 5000, "is not JSON"),
        (b'{"a": 1, "a": 2}', "the key 'a' appears twice"),
        (b'{"a": NaN}', "has no number NaN"),
        (b"[]", "is not of type 'object'"),
        (b"{}", "is a required property"),
    ],
    ids=lambda x: str(x[:9]),
)
def test_a_file_without_vectors_is_reported_in_one_line(text, message, tmp_path):
    path = tmp_path / "vectors.json"
    path.write_bytes(text)
    done = subprocess.run([*COMMAND, "--check", path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    assert message in lines[0]
    assert all(line.startswith(f"{path}: ") for line in lines)


def test_other_notations_of_the_same_numbers_are_accepted(tmp_path):
    """Files of other writers may have all digits of a float32 and trailing zeros."""
    content = json.loads((files()[0].parent / "one_step.json").read_text(encoding="utf-8"))
    numbers = first_update(content)["steps"][0]["expected"]["tensors"][0][V]
    numbers["decimal"] = [float.fromhex(x) for x in numbers["hex"]]
    numbers["hex"] = [float.fromhex(x).hex() for x in numbers["hex"]]
    assert "000p" in numbers["hex"][0]
    assert len(str(numbers["decimal"][0])) > 12
    path = tmp_path / "vectors.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert check(path) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "takes --out DIR, --explain FILE, or --check FILE"),
        (["--check", "a.json", "--out", "b"], "takes --out DIR, --explain FILE, or --check FILE"),
        (["--explain", "a.json", "--out", "b"], "takes --out DIR, --explain FILE, or --check FILE"),
        (["--explain", "absent.json"], "--explain 'absent.json' cannot be read: No such file"),
        (["--check", "absent.json"], "absent.json: No such file or directory"),
        (["--check", "."], ".: Is a directory"),
        (["--check", "pipe"], "pipe: must be a regular file, got a pipe"),
        (["--explain", "pipe"], "'pipe' cannot be read: must be a regular file, got a pipe"),
        (["--out", "file"], "'file' is a file"),
        (["--out", "file/inside"], "Not a directory"),
    ],
    ids=" ".join,
)
def test_bad_arguments_give_one_line_and_status_2(arguments, message, tmp_path):
    (tmp_path / "file").touch()
    if "pipe" in arguments:  # it has no writer
        if not hasattr(os, "mkfifo"):
            pytest.skip("needs a named pipe")
        os.mkfifo(tmp_path / "pipe")
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("gravity: ")
    assert message in line


def test_faults_before_a_file_that_cannot_be_read_are_printed(tmp_path):
    (tmp_path / "bad.json").write_text("{}", encoding="utf-8")
    arguments = ["--check", "bad.json", "--check", "absent.json"]
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "bad.json: " in done.stdout
    assert "absent.json: No such file" in done.stderr


WITHOUT = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if {refused}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse())
"""


@pytest.mark.parametrize("module", ["mpmath", "jsonschema"])
def test_a_missing_dependency_is_named(module):
    code = WITHOUT.format(refused=f"name == {module!r}") + (
        "from gravity_conformance.__main__ import main; main()"
    )
    path = files()[0].parent / "initial_velocity.json"
    command = [sys.executable, "-c", code, "vectors", "--check", path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"gravity: vectors needs {module}: {install('cli')}\n"


def test_checking_needs_no_plotting_or_training_package():
    code = WITHOUT.format(refused="name in ('matplotlib', 'sklearn', 'ml_dtypes', 'torch')") + (
        "from gravity_conformance.__main__ import main; main()"
    )
    path = files()[0].parent / "coefficients.json"
    command = [sys.executable, "-c", code, "vectors", "--check", path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{path}: no fault\n"), done.stderr


def test_loading_needs_numpy_only():
    ours = "'gravity_core', 'gravity_conformance'"
    allowed = f"{{*sys.stdlib_module_names, 'numpy', 'array_api_compat', {ours}}}"
    code = WITHOUT.format(
        refused=f"name.partition('.')[0] not in {allowed} and '_sysconfigdata' not in name"
    )
    code += (
        "from gravity_conformance.vectors import load_vectors;"
        "print(sum(len(group.tests) for group in load_vectors()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == f"{sum(len(group.tests) for group in load_vectors())}\n", done.stderr
