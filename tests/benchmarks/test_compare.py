"""`python -m benchmarks.compare`: its problems, its command, its report, and the kept results."""

import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="most problems are networks in torch")

from benchmarks.command import end_with
from benchmarks.compare import command, problems, protocol, store
from benchmarks.compare.optimizers import OPTIMIZERS
from benchmarks.compare.problems import PROBLEMS
from tests.support.limits import HANG

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "docs" / "compare.json"
COMMAND = [sys.executable, "-m", "benchmarks.compare"]


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_every_problem_trains_from_its_seed_alone(name):
    def run(seed, steps):
        adam = OPTIMIZERS["adam"]
        return protocol.run(PROBLEMS[name], adam, 1e-3, seed, steps, curve=False)

    once, (_, start) = run(3, 40), run(3, 0)["start"]
    assert once["validation"][1] < start  # the loss
    assert run(3, 40) == once
    assert run(4, 40) != once


def test_only_corrupt_batches_differ_from_their_problem():
    plain, corrupt = (PROBLEMS[name].start(seed=2) for name in ("digits-mlp", "corrupt-batches"))
    assert (plain.weights.flat == corrupt.weights.flat).all()
    sizes = []
    for _ in range(2000):
        _, gradient = corrupt.gradient()
        sizes.append(float(gradient.flat.abs().max()))
    large = sum(size > 100 for size in sizes) / len(sizes)
    # 3 % of 2,000 batches, within five standard deviations of 0.0038.
    assert abs(large - 0.03) < 0.02
    assert float(plain.gradient()[1].flat.abs().max()) < 10


def test_a_study_changes_the_loss_and_the_batches():
    start = PROBLEMS["digits-mlp"].start
    ordinary, scaled, large = start(1), start(1, loss_scale=8.0), start(1, batch_size=64)
    gradients = [task.gradient()[1].flat for task in (ordinary, scaled, large)]
    assert (gradients[1] == 8 * gradients[0]).all()  # a power of two scales without rounding
    assert not (gradients[2] == gradients[0]).all()


def test_raw_and_standardised_targets_have_the_same_error_for_the_mean():
    for name in ("diabetes-raw", "diabetes-standardised"):
        task = PROBLEMS[name].start(0)
        x, y = task._data.train
        task.weights.flat.zero_()
        task.weights.parts[-1].data.fill_(float(y.mean()))  # the bias of the output
        task._data = task._data._replace(test=(x, y))
        assert task.score("test")[0] == pytest.approx(1.0, rel=1e-5)  # float32


def test_images_are_problems_only_with_their_files(tmp_path):
    assert set(problems.with_images(None)) - set(PROBLEMS) == {"mnist-mlp", "fashion-mnist-mlp"}
    (tmp_path / "mnist").mkdir()
    added = set(command._available(tmp_path)) - set(command._available(None))
    assert added == {"mnist-mlp"}


def called(*arguments):
    """Run the command in this process; return its status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["compare", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            end_with("benchmarks.compare", command.cli)
    return end.value.code


BAD = {
    "--problem foo": "'--problem': 'foo' is not one of",
    "--optimizer foo": "'--optimizer': 'foo' is not one of",
    "--budget 0": "'--budget': 0.0 is not in the range",
    "--budget nan": "--budget must be a finite number, got nan",
    "--jobs 0": "'--jobs': 0 is not in the range x>=1",
    "--data-dir {tmp}/none": "'--data-dir': Directory '{tmp}/none' does not exist",
    "--data-dir {tmp}": "{tmp}/mnist/train-images-idx3-ubyte, gzipped or not, is missing: ",
    "--problem mnist-mlp": "--problem mnist-mlp needs --data-dir",
    "--out {tmp}/file": "'--out': Directory '{tmp}/file' is a file",
    "--out {tmp}/full": "--out must be an empty folder or one of results: {tmp}/full",
    "--out {tmp}/other": "--out {tmp}/other has results with budget 0.5, not 1.0",
    "--out {tmp}/spoilt": "{tmp}/spoilt/plan.json is not what this command writes",
    "--foo": "No such option '--foo'",
    "foo": "No such command 'foo'",
    "report {tmp}/full": "{tmp}/full/plan.json cannot be read: No such file or directory",
    "report {tmp}/other": "{tmp}/other has no results yet",
    "report {tmp}/none": "'FOLDER': Directory '{tmp}/none' does not exist",
    "report {tmp}/other --json {tmp}": "'--json': File '{tmp}' is a directory",
}


@pytest.mark.parametrize("arguments", BAD)
def test_bad_options_are_refused_with_one_line(arguments, tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    store.begin(tmp_path / "other", store.new_plan(0.5))
    (tmp_path / "spoilt").mkdir()
    (tmp_path / "spoilt" / "plan.json").write_text("{", encoding="utf-8")
    given = arguments.format(tmp=tmp_path).split()
    if "report" not in given and "--out" not in given:
        given += ["--out", tmp_path / "new"]
    assert called(*given) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert err.startswith("benchmarks.compare: ")
    assert BAD[arguments].format(tmp=tmp_path) in err
    assert not list(tmp_path.glob("new/*/*"))


TINY = ["--budget", "0.0004", "--jobs", "1"]


def test_the_report_has_everything_on_one_page_and_no_name_of_the_machine(tmp_path, capsys):
    cells, file, plots = tmp_path / "cells", tmp_path / "report.json", tmp_path / "plots"
    chosen = ["--optimizer", "gravity", "--optimizer", "sgd"]
    for name in ("quadratic", "wine", "batch-size"):
        chosen += ["--problem", name]
    assert called("--out", cells, *TINY, *chosen) == 0
    assert called("report", cells, "--json", file, "--plots", plots) == 0
    found = json.loads(file.read_text(encoding="utf-8"))
    assert set(found["problems"]) == {"quadratic", "wine"}
    assert set(found["studies"]) == {"batch-size"}
    assert len(found["missing"]) == 13 * (len(PROBLEMS) + len(protocol.STUDIES)) - 6
    names = "--problem wine --problem quadratic --problem batch-size"
    assert found["command"] == f"python -m benchmarks.compare --budget 0.0004 {names}"
    assert found["cpu"]
    assert set(store.PACKAGES) == set(found["versions"])
    text = file.read_text(encoding="utf-8")
    for secret in (platform.node(), str(tmp_path)):
        assert secret not in text
    drawn = {path.name: path.read_bytes() for path in plots.iterdir()}
    names = ("curves", "curves-parts", "profile", "sensitivity", "studies", "table")
    assert set(drawn) == {f"{name}.png" for name in names}
    assert all(png.startswith(b"\x89PNG") for png in drawn.values())
    capsys.readouterr()


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_a_killed_run_continues_and_ends_with_the_same_bytes(tmp_path):
    chosen = ["--problem", "rosenbrock", "--budget", "0.1", "--jobs", "1"]
    for name in ("gravity", "gravity-t0", "alpha-0", "beta-fixed"):
        chosen += ["--optimizer", name]

    def start(folder):
        command = [*COMMAND, "--out", str(folder), *chosen]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process, end = start(killed), time.monotonic() + HANG
    while not list(killed.glob("*/*.json")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.005)
    process.kill()
    assert process.wait() != 0
    assert len(list(killed.glob("*/*.json"))) < 4
    for folder in (killed, whole):
        assert start(folder).wait(timeout=HANG) == 0
    assert contents(killed) == contents(whole)
    assert len(contents(whole)) == 5  # four cells and the plan


@pytest.mark.parametrize("optimizer", ["gravity", "adam"])
def test_the_kept_numbers_are_found_again_from_their_seeds(optimizer):
    # These cells use + − × ÷ and √ only, which every machine rounds alike.
    kept = json.loads(KEPT.read_text(encoding="utf-8"))["problems"]["rosenbrock"]
    result = kept["results"][optimizer]
    for key, rate in (("tuned", result["rate"]), ("untuned", OPTIMIZERS[optimizer].default)):
        found = [
            protocol.run(PROBLEMS["rosenbrock"], OPTIMIZERS[optimizer], rate, seed, kept["steps"])
            for seed in range(protocol.FRESH, protocol.FRESH + 2)
        ]
        errors = [protocol.settled(run["test"], run["start"])[0] for run in found]
        assert errors == result[key]["errors"][:2]
