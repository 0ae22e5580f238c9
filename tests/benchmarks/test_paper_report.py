"""The report of benchmarks.paper: published runs, ours at the same epochs, one that counts not."""

import csv
import dataclasses
import json
import math

import pytest
from click.testing import CliRunner

from benchmarks.paper import __main__ as command
from benchmarks.paper import published as facts
from benchmarks.paper import report, training
from benchmarks.paper.settings import Settings
from gravity_conformance._status import CouldNotError

MISLABELLED = ("cifar100-fine", "vgg19", "gravity")
LINE = {
    "steps": 469,
    "loss": 0.5,
    "accuracy": 0.8,
    "val_loss": 0.25,
    "seconds": 1,
    "cpu_seconds": 2,
}


@pytest.fixture
def runs():
    return facts.published()


def run_of_ours(folder, epochs, ablation=None, key=("mnist", "vgg16", "gravity")):
    """Write the files of a run, whose accuracy grows by a hundredth in each epoch."""
    settings = Settings(*key, ablation)
    at = folder / settings.name
    at.mkdir(parents=True)
    history = [LINE | {"epoch": e, "val_accuracy": 0.5 + e / 100} for e in epochs]
    (at / training.HISTORY).write_text(training.as_csv(history))
    start = {"steps": 0, "device": "cpu", "cores": 2, "cpu": "a", "versions": {"keras": "3"}}
    about = {"settings": dataclasses.asdict(settings), "starts": [start]}
    (at / training.ABOUT).write_text(json.dumps(about))
    return settings


def tables(folder, runs):
    """Write the two published tables as they were; return their paths."""
    titles = {name: title for name, (title, _) in facts.DATASETS.items()}
    results, histories = [], []
    for run in runs:
        columns = {
            "dataset": titles[run.dataset],
            "architecture": run.architecture,
            "optimizer": facts.OPTIMIZERS[run.optimizer],
        }
        numbers = dataclasses.asdict(run)
        for name in ("dataset", "architecture", "optimizer", "output_units"):
            del numbers[name]
        curves = zip(numbers.pop("loss"), numbers.pop("val_accuracy"), strict=True)
        results.append(columns | numbers)
        for epoch, (loss, accuracy) in enumerate(curves, start=1):
            point = {"epoch": epoch, "loss": loss, "val_accuracy": accuracy}
            histories.append(columns | point)
    paths = folder / "results.csv", folder / "histories.csv"
    for path, rows in zip(paths, (results, histories), strict=True):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(reversed(rows) if path is paths[0] else rows)
    return paths


def test_the_kept_file_is_derived_from_the_tables(runs, tmp_path):
    paths = tables(tmp_path, runs.values())
    kept = tmp_path / "published.json"
    done = CliRunner().invoke(command.main, ["published", *map(str, paths), "--json", str(kept)])
    assert done.exit_code == 0, done.output
    assert kept.read_bytes() == facts.KEPT.read_bytes()
    assert len(runs) == 30
    assert {run.epochs for run in runs.values()} == {100}


def test_tables_that_do_not_agree_are_refused(runs, tmp_path):
    changed = dataclasses.replace(runs[MISLABELLED], best_val_accuracy=0.9)
    paths = tables(tmp_path, [*runs.values(), changed])
    with pytest.raises(CouldNotError, match="the history of cifar100-fine vgg19 gravity is not"):
        facts.derived(*paths)


def test_only_the_mislabelled_run_has_other_outputs_and_another_loss(runs):
    assert [key for key, run in runs.items() if run.is_mislabelled] == [MISLABELLED]
    for run in runs.values():
        # In the first epoch of a large network, the loss is near that of equal probabilities.
        if run.dataset == "cifar100-fine":
            distances = {n: abs(run.loss[0] - math.log(n)) for n in (20, 100)}
            assert min(distances, key=distances.get) == run.output_units


def test_the_mislabelled_run_is_in_no_count(runs):
    won, ties = facts.counts(runs.values())
    assert sum(won.values()) + ties == 9
    assert ("cifar100-fine", "vgg19") not in facts.comparisons(runs.values())
    # Its label alone keeps it out: as a run on fine labels it would be ahead.
    right = dataclasses.replace(runs[MISLABELLED], output_units=100)
    others = {**runs, MISLABELLED: right}.values()
    assert facts.comparisons(others)["cifar100-fine", "vgg19"] == ["gravity"]
    assert facts.counts(others)[0]["gravity"] == won["gravity"] + 1


def test_a_tie_is_nobodys(runs):
    key = "mnist", "vgg16"
    best = {k: dataclasses.replace(r, best_val_accuracy=0.9) for k, r in runs.items()}
    (names,) = (names for k, names in facts.comparisons(best.values()).items() if k == key)
    assert names == list(facts.OPTIMIZERS)
    assert facts.counts(best.values()) == (dict.fromkeys(facts.OPTIMIZERS, 0), 9)


def test_the_report_has_every_run_and_says_which_counts_not(tmp_path):
    done = CliRunner().invoke(
        command.main, ["report", "--out", str(tmp_path), "--figure", str(tmp_path / "a.png")]
    )
    assert done.exit_code == 0, done.output
    marked = [line for line in done.output.splitlines() if f"Gravity{report.MARK}" in line]
    (line,) = marked
    assert "CIFAR100 (Fine), VGG19" in line
    assert "(highest)" not in line
    assert done.output.count("(highest)") == 9
    assert "49.58%) was trained on the 20 coarse labels, not on the 100 fine ones" in done.output
    assert "There is no run of ours yet." in done.output
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_ours_stand_beside_the_same_epoch(runs, tmp_path):
    run_of_ours(tmp_path, [1, 2, 2.5])
    run_of_ours(tmp_path, [0.25], key=("mnist", "vgg16", "adam"))
    run_of_ours(tmp_path, [1], "alpha0")
    run_of_ours(tmp_path, [1], key=MISLABELLED)
    (tmp_path / "empty").mkdir()
    ours = report.collected(tmp_path)
    rows = {row[1]: row for row in report.ours_table(ours).rows}
    assert list(rows) == ["Gravity", "Gravity, α = 0", "Adam", f"Gravity{report.MARK}"]
    second = runs["mnist", "vgg16", "gravity"].val_accuracy[1]
    assert rows["Gravity"][-4:] == ("2.5", "0.5000", "52.50%", f"{second:.2%}")
    assert [row[-1] for row in list(rows.values())[1:]] == ["–"] * 3
    path = tmp_path / "paper.json"
    path.write_text(report.as_json(ours))
    assert report.from_json(path) == ours


def test_the_figure_draws_ours_over_the_published_curves(runs, tmp_path):
    run_of_ours(tmp_path, [1, 2, 3])
    drawn = report.figure(report.collected(tmp_path))
    panels = drawn.axes
    assert len(panels) == 10
    lines = panels[0].get_lines()
    assert [list(line.get_xdata()) for line in lines] == [list(range(1, 101))] * 3 + [[1, 2, 3]]
    theirs = runs["mnist", "vgg16", "gravity"].val_accuracy
    assert list(lines[0].get_ydata()) == pytest.approx([100 - 100 * a for a in theirs])
    assert list(lines[3].get_ydata()) == pytest.approx([49, 48, 47])
    assert lines[3].get_color() == lines[0].get_color()
    assert all(len(axes.get_lines()) == 3 for axes in panels[1:])
    texts = [text.get_text() for axes in panels for text in axes.texts]
    assert [text for text in texts if "coarse" in text] == [
        f"Gravity{report.MARK}\n(coarse labels)"
    ]
    assert texts.count("Gravity, again") == 1


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"settings": {"data": 1}, "starts": []}'])
def test_a_spoilt_run_is_named(content, tmp_path):
    settings = run_of_ours(tmp_path, [1])
    (tmp_path / settings.name / training.ABOUT).write_text(content)
    with pytest.raises(CouldNotError, match=f"{settings.name} cannot be read"):
        report.collected(tmp_path)
