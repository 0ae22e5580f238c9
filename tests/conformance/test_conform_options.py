"""The options of `gravity conform`: dtypes, checks left out, the seed, and what is strict."""

import json
from pathlib import Path

import pytest

from gravity_conformance.conform.runner import conform
from gravity_conformance.conform.verdict import sentence
from gravity_conformance.drive.spec import arguments
from tests.support.command import gravity_conform, quick, without, written

LITERAL = """
def step(w, v, g, t, lr, beta):
    old = (beta * t + 1) / (t + 2)
    with np.errstate(all="ignore"):
        s = g * np.max(np.abs(g), initial=0)
        v = (old * v + (1 - old) * (g / (1 + s * s))).astype(g.dtype)
        return (w - lr * v).astype(g.dtype), v
"""
REFUSES = """
def step(w, v, g, t, lr, beta):
    if not g.size: raise ValueError("tensors must not be empty")
    return right(w, v, g, t, lr, beta)
"""
CHECKS = ["update", "float64", "float16"]


@pytest.fixture
def literal(tmp_path):
    return written(tmp_path, LITERAL)


def test_half_precision_is_a_remark_and_float32_and_float64_decide(literal):
    report = quick(literal, only=CHECKS)
    assert report.status == 0
    assert sentence(report) == (
        "conforms in float32 and float64, as far as 3 checks can show; "
        "float16: computed in half precision"
    )
    strict = quick(literal, only=CHECKS, strict=True)
    assert strict.status == 1
    assert sentence(strict).startswith("does not conform: remark in 1 of 3 checks")


def test_dtypes_that_are_not_offered_are_not_checked(literal):
    report = quick(literal, only=CHECKS, dtypes=["float32", "float64"], strict=True)
    assert report.status == 0
    assert sentence(report).endswith("; float16: not offered")
    (half,) = (result for result in report.results if result.check == "float16")
    assert half.note == "left out by --dtypes"


def test_a_refusal_of_empty_tensors_is_a_remark(tmp_path):
    report = quick(written(tmp_path, REFUSES), only=["update", "empty"])
    assert report.status == 0
    assert report.remarks == ["it refuses empty tensors: ValueError: tensors must not be empty"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dtypes", "float64"], "must contain float32, got 'float64'"),
        (
            ["--dtypes", "float32,int8"],
            "must be some of float32,float64,float16,bfloat16, got 'float32,int8'",
        ),
        (["--skips", "skips.txt"], "--skips must list checks (see --list), got 'updat' in line 2"),
        (["--skips", "latin.txt"], "--skips 'latin.txt' must be text in UTF-8"),
        (["--skips", "absent.txt"], "--skips 'absent.txt' cannot be read: No such file"),
        (
            ["--skips", "/dev/zero"],
            "cannot be read: must be a regular file, got a device",
        ),
        (["--skip", "nothing"], "'nothing' is not one of"),
        (["--seed", "-1"], "-1 is not in the range"),
    ],
)
def test_a_wrong_option_is_one_line_and_status_2(words, message, literal, tmp_path):
    (tmp_path / "skips.txt").write_text("# known\nupdat  # see the issue\n", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes(b"\xe9")
    if not Path(words[1]).exists() and words[1].startswith("/dev"):
        pytest.skip("needs /dev/zero")
    done = gravity_conform(literal, *words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_a_file_leaves_checks_out(literal, tmp_path):
    (tmp_path / "skips.txt").write_text("# known\n\nfloat16  # half\n", encoding="utf-8")
    words = ["--skips", "skips.txt", "--quick", "--json", "-", "--skip", "float64"]
    done = gravity_conform(
        literal, *words, *(word for name in CHECKS for word in ("--only", name)), cwd=tmp_path
    )
    found = json.loads(done.stdout)
    assert [result["check"] for result in found["results"]] == ["update"]
    assert sorted(found["skipped"]) == ["float16", "float64"]


@pytest.mark.parametrize("check", ["trajectory", "schedule", "strides"])
def test_the_seed_chooses_the_inputs(check, literal):
    worst = [quick(literal, only=[check], seed=seed).results[0].worst for seed in (0, 0, 1)]
    assert worst[0] == worst[1] != worst[2]


def test_the_report_states_the_seed(literal):
    assert quick(literal, only=["trajectory"], seed=7).to_json()["seed"] == 7


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dtypes": ["float64"]}, "dtypes must contain float32"),
        ({"level": "fast"}, "level must be one of quick, default, thorough, got 'fast'"),
        ({"skip": ["nothing"]}, "skip must be one of convention"),
    ],
)
def test_a_wrong_argument_of_the_function_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        conform("odd.py:step", **wrong)


def test_numpy_and_the_command_line_are_enough(literal, tmp_path):
    """Neither process needs a framework."""
    absent = {"torch", "jax", "optax", "tensorflow", "keras", "ml_dtypes", "matplotlib", "sklearn"}
    (tmp_path / "sitecustomize.py").write_text(without(absent), encoding="utf-8")
    environment = {"PYTHONPATH": str(tmp_path)}
    done = gravity_conform(literal, "--quick", cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "conform: conforms in float32 and float64" in done.stdout


def test_a_name_given_by_kw_stands_for_nothing_else():
    def gravity(eta=0.1, a=0.01, decay=0.9):
        pass

    assert arguments(gravity, {}).names["weight_decay"] == "decay"
    names = arguments(gravity, {"decay": "{beta}"}).names
    assert names["beta"] == "decay"
    assert "weight_decay" not in names


def test_a_spec_may_lie_in_folders_without_init(literal, tmp_path):
    """The folders are packages that only their import would find."""
    place = tmp_path / "outer" / "inner"
    place.mkdir(parents=True)
    source = Path(literal.rpartition(":")[0])
    (place / "port.py").write_text(source.read_text("utf-8"), encoding="utf-8")
    spec = f"outer.inner.port:{literal.rpartition(':')[2]}"
    done = gravity_conform(spec, "--only", "convention", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    # What SPEC names is no output.
    done = gravity_conform(spec, "--only", "convention", "--json", place / "port.py", cwd=tmp_path)
    assert done.returncode == 2
    assert (place / "port.py").read_text("utf-8") == source.read_text("utf-8")
