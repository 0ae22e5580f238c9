"""Where the commands write: checked before the run, absolute, whole or not at all."""

import contextlib
import json
import os
import sys
from pathlib import Path

import pytest

from gravity_conformance import _output
from gravity_conformance.__main__ import main
from gravity_conformance._status import CouldNotError
from gravity_conformance.conform import runner as conforming
from gravity_conformance.parity import report as reports
from gravity_conformance.parity import run as parity
from gravity_conformance.vectors.making import writing

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX files")
as_root = pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0, reason="only root may become somebody else"
)


class RunError(Exception):
    """The command has begun its work."""


@pytest.fixture
def gravity(monkeypatch, capsys, tmp_path):
    """Return a function that runs `gravity` in an empty folder, up to its work."""

    def begun(*arguments, **options):
        raise RunError

    monkeypatch.setattr(conforming, "conform", begun)
    monkeypatch.setattr(parity, "run", begun)
    monkeypatch.setattr(writing, "texts", begun)
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gravity", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 2
        found = capsys.readouterr()
        assert found.out == ""
        return found.err

    return run


def is_begun(error):
    return "RunError" in error and "Traceback" in error


PARITY = ("parity", "--backend", "numpy")
CONFORM = ("conform", "odd.py:step")


@pytest.mark.parametrize(
    "arguments",
    [
        (*PARITY, "--out", "new"),
        (*PARITY, "--out", "full", "--html", "new/page.html"),
        (*CONFORM, "--json", "new/a.json", "--html", "full/b"),
        (*CONFORM, "--json", "-"),
        ("vectors", "--out", "new/folder"),
        ("vectors", "--out", "full", "--force"),
    ],
    ids=" ".join,
)
def test_right_outputs_are_accepted(gravity, arguments):
    Path("full").mkdir()
    Path("full", "b").touch()
    assert is_begun(gravity(*arguments))
    assert not [p for p in Path().rglob("*") if p.is_file() and p != Path("full", "b")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*CONFORM, "--json", "a", "--html", "a"), "--html 'a' must be another file than --json"),
        (
            (*CONFORM, "--json", "full/../a", "--html", "a"),
            "--html 'a' must be another file than --json 'full/../a'",
        ),
        ((*CONFORM, "--json", "pk/sub.py", "--html", "link"), "--html 'link' must be another"),
        ((*CONFORM, "--json", "here", "--html", "hard"), "--html 'hard' must be another file"),
        (
            (*PARITY, "--out", "full", "--html", "full/parity.md"),
            "--html 'full/parity.md' must be another file than --out 'full/parity.md'",
        ),
        (
            ("conform", "pk/sub.py:step", "--json", "link"),
            "--json 'link' must be another file than SPEC",
        ),
        (
            ("conform", "pk.sub:step", "--html", "pk/__init__.py"),
            "--html 'pk/__init__.py' must be another file than SPEC",
        ),
        (
            ("conform", "pk.sub:step.of", "--json", "link"),
            "--json 'link' must be another file than SPEC",
        ),
        (
            ("conform", "installed:step", "--json", "site/installed.py"),
            "--json 'site/installed.py' must be another file than SPEC",
        ),
        ((*CONFORM, "--skips", "here", "--html", "here"), "must be another file than --skips"),
        (
            (*PARITY, "--also", "pk:step", "--html", "pk/__init__.py"),
            "--html 'pk/__init__.py' must be another file than --also pk:step",
        ),
        ((*CONFORM, "--html", "-"), "--html must be a file, got '-'"),
        ((*PARITY, "--html", "-"), "--html must be a file, got '-'"),
        ((*CONFORM, "--json", ""), "must not be empty"),
        ((*CONFORM, "--html", ""), "must not be empty"),
        ((*PARITY, "--out", ""), "must not be empty"),
        ((*PARITY, "--html", ""), "must not be empty"),
        (("vectors", "--out", ""), "must not be empty"),
        ((*CONFORM, "--json", "pipe"), "cannot write 'pipe': must be a regular file, got a pipe"),
        ((*PARITY, "--html", "full"), "cannot write 'full': Is a directory"),
        (
            (*PARITY, "--html", "/dev/full"),
            "cannot write '/dev/full': must be a regular file, got a device",
        ),
        ((*PARITY, "--out", "loop"), "cannot write 'loop/parity.json': File exists"),
        (("vectors", "--check", "a", "--force"), "--force needs --out"),
    ],
    ids=str,
)
@posix
def test_wrong_outputs_are_refused_before_the_run(gravity, monkeypatch, arguments, message):
    for folder in ("full", "pk", "site"):
        Path(folder).mkdir()
    files = [Path(name) for name in ("here", "pk/__init__.py", "pk/sub.py", "site/installed.py")]
    for file in files:
        file.write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(Path("site").resolve())
    Path("link").symlink_to("pk/sub.py")
    os.link("here", "hard")
    os.mkfifo("pipe")
    Path("loop").symlink_to("loop")
    error = gravity(*arguments)
    assert error.startswith("gravity: ")
    assert error.count("\n") == 1
    assert message in error
    assert not is_begun(error)
    assert {file.read_text() for file in files} == {"raise RuntimeError('imported')"}


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((*PARITY, "--out", "place"), "parity.json"),
        ((*PARITY, "--out", "place"), "parity.md"),
        ((*PARITY, "--out", "place"), "parity.png"),
        (("vectors", "--force", "--out", "place"), "README.md"),
        (("vectors", "--force", "--out", "place"), "examples"),
    ],
    ids=str,
)
@pytest.mark.parametrize("is_there", [True, False])
@posix
def test_a_link_inside_a_folder_is_not_followed(gravity, arguments, name, is_there):
    Path("place").mkdir()
    Path("place", name).symlink_to("../elsewhere")
    if is_there:
        Path("elsewhere").touch()
    error = gravity(*arguments)
    assert error.startswith(f"gravity: --out must be a folder where '{name}")
    assert error.endswith(" is no link, got 'place'\n")
    assert Path("elsewhere").exists() == is_there
    Path("link").symlink_to("place")  # the user names it, so it is followed
    Path("place", name).unlink()
    assert is_begun(gravity(*arguments[:-1], "link"))


@as_root
@pytest.mark.parametrize(
    "arguments", [(*CONFORM, "--json"), (*CONFORM, "--html"), (*PARITY, "--html")]
)
def test_a_file_in_a_read_only_folder_is_refused_before_the_run(gravity, arguments, tmp_path):
    Path("closed").mkdir()
    Path("closed", "a").touch()
    os.chown(Path("closed", "a"), 65534, -1)
    Path("closed").chmod(0o555)
    for parent in [*tmp_path.parents][:3]:
        parent.chmod(parent.stat().st_mode | 0o755)
    Path().chmod(0o777)
    tmp_path.chmod(0o755)
    os.seteuid(65534)
    try:
        error = gravity(*arguments, "closed/a")
    finally:
        os.seteuid(0)
    option = arguments[-1]
    wanted = f"gravity: {option} cannot write 'closed/a': Permission"
    assert error.startswith(wanted)


@posix
def test_what_standard_output_writes_to_is_no_place_for_a_report(tmp_path):
    """The report would replace the file, and the table would be lost."""
    target = tmp_path / "out.txt"
    saved = os.dup(1)
    try:
        with target.open("wb") as file:
            os.dup2(file.fileno(), 1)
            with pytest.raises(CouldNotError, match="standard output goes there"):
                _output.checked([("--json", target)])
    finally:
        os.dup2(saved, 1)
        os.close(saved)
    assert [output.path for output in _output.checked([("--json", target)])] == [target.resolve()]


def test_an_output_does_not_move_with_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "away").mkdir()
    (output,) = _output.checked([("--json", Path("a.json"))])
    monkeypatch.chdir("away")
    _output.write({output.path: "β \udcff"})
    assert (tmp_path / "a.json").read_bytes() == "β \\udcff".encode()
    assert str(output) == "--json 'a.json'"
    assert not list((tmp_path / "away").iterdir())


def test_the_reports_of_a_run_are_written_together(tmp_path, monkeypatch):
    """On a full disk both old ones stay, and their picture."""
    reports.write(parity.new_report(seed=1), tmp_path)
    (tmp_path / reports.PICTURE).write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", _second_fails())
    with pytest.raises(OSError, match="No space left"):
        reports.write(parity.new_report(seed=2), tmp_path)
    assert json.loads((tmp_path / "parity.json").read_text(encoding="utf-8"))["seed"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(reports.FILES)
    monkeypatch.undo()
    written = reports.write(parity.new_report(seed=2), tmp_path)
    assert written == [tmp_path / "parity.json", tmp_path / "parity.md"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["parity.json", "parity.md"]


def _second_fails():
    calls, fsync = [], os.fsync

    def limited(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    return limited


# The folder of the vectors


@pytest.fixture
def texts(monkeypatch):
    """Vectors that are made at once."""
    names = [*(f"{name}.json" for name in writing.FILES), *writing.COPIED]
    found = {name: f"ours: {name}" for name in [*names, "examples/bridge.py"]}
    monkeypatch.setattr(writing, "texts", lambda: found)
    return found


@pytest.mark.parametrize(
    "theirs", ["README.md", "schema.json", "notes.txt", "examples/other.js", ".hidden", "a/b"]
)
def test_a_folder_that_holds_other_things_is_refused(tmp_path, texts, theirs):
    path = tmp_path / theirs
    path.parent.mkdir(exist_ok=True)
    path.write_text("theirs")
    named = "a" if theirs == "a/b" else theirs
    with pytest.raises(
        CouldNotError, match=f"^--out must be a new folder .* holds '{named}'; --fo"
    ):
        writing.write(tmp_path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]
    assert path.read_text() == "theirs"
    written = writing.write(tmp_path, force=True)
    assert len(written) == len(texts)
    assert (tmp_path / "README.md").read_text() == "ours: README.md"
    assert path.read_text() == texts.get(theirs, "theirs")


def test_a_folder_of_these_files_alone_is_written_again(tmp_path, texts):
    out = tmp_path / "new" / "out"
    for _ in range(2):
        assert {p.relative_to(out).as_posix() for p in writing.write(out)} == {*texts}
    (out / "schema.json").unlink()
    (out / ".gravity-of-a-killed-write").touch()
    writing.write(out)
    assert (out / "schema.json").read_text() == "ours: schema.json"


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "texts", lambda: pytest.fail("the work has begun"))
    (tmp_path / "schema.json").mkdir()
    with pytest.raises(CouldNotError, match=r"--out cannot write '.*schema.json': Is a"):
        writing.write(tmp_path, force=True)


def test_a_full_disk_leaves_none_of_the_files(tmp_path, texts, monkeypatch):
    monkeypatch.setattr(os, "fsync", _second_fails())
    with pytest.raises(OSError, match=r"No space left on device: '.+\.(json|md|py)'$"):
        writing.write(tmp_path / "out")
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]


def test_the_message_of_a_full_disk_names_the_folder(gravity, texts, monkeypatch):
    monkeypatch.setattr(os, "fsync", _second_fails())
    with contextlib.suppress(FileNotFoundError):
        Path("out").rmdir()
    assert gravity("vectors", "--out", "out") == (
        "gravity: --out 'out' cannot be written: No space left on device\n"
    )
