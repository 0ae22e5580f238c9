"""The exit statuses of every command: one table, in the code, the documentation and here."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gravity_conformance import _status
from gravity_conformance.vectors import files
from tests.support.command import gravity, written
from tests.support.limits import HANG

pytest.importorskip("sklearn", reason="gravity parity trains on scikit-learn's digits")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "conformance.md"
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and files")


@pytest.fixture
def place(tmp_path):
    """A folder with a right and a wrong function, and right and wrong vectors."""
    written(tmp_path, "def wrong(w, v, g, t, lr, beta):\n    return right(w, v, g, t, lr, 0.5)\n")
    (tmp_path / "broken.py").write_text("1 +")
    (shipped,) = (path for path in files() if path.name == "coefficients.json")
    text = shipped.read_text(encoding="utf-8")
    (tmp_path / "good.json").write_text(text, encoding="utf-8")
    values = json.loads(text)
    values["number_of_tests"] += 1
    (tmp_path / "bad.json").write_text(json.dumps(values), encoding="utf-8")
    return tmp_path


PARITY = "parity --backend numpy --steps 2 --dtype float32"
CONFORM = "conform odd.py:right --only update --quick"
MODULE = "-m gravity_conformance.conform"

STATUSES = [
    (0, PARITY),
    (0, CONFORM),
    (0, "vectors --check good.json"),
    (0, "vectors --out made"),
    (0, "--help"),
    (1, f"{PARITY} --also odd.py:wrong"),
    (1, "conform odd.py:wrong --only update --quick"),
    (1, "vectors --check good.json --check bad.json"),
    (2, ""),
    (2, "nothing"),
    (2, f"{PARITY} --also broken.py:step"),
    (2, f"{PARITY} --html odd.py/page.html"),
    (2, "conform broken.py:step"),
    (2, "conform odd.py:right --only update --quick --json odd.py/a.json"),
    (2, "vectors --out odd.py"),
    (2, "versions --nothing"),
    (2, MODULE),
    (2, f"{MODULE} broken.py:step"),
    (2, f"{MODULE} odd.py:right --only update"),
]


def run(command, place, **kwargs):
    """Run a command of STATUSES in the folder."""
    if not command.startswith("-m "):
        return gravity(*command.split(), cwd=place, **kwargs)
    defaults = {} if "stdout" in kwargs else {"stdout": subprocess.PIPE}
    return subprocess.run(
        [sys.executable, *command.split()],
        cwd=place,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        timeout=HANG,
        **defaults | kwargs,
    )


@pytest.mark.parametrize(("status", "command"), STATUSES)
def test_the_status_of_a_command(status, command, place):
    done = run(command, place)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if status < 2:
        assert done.stderr == ""
    elif done.stdout == "" and command:
        assert done.stderr.count("\n") == 1


# Printed as a report, as JSON, by click, and without click.
PRINTING = [
    PARITY,
    f"{CONFORM} --json -",
    "conform --help",
    f"{MODULE} broken.py:step",
]


@posix
@pytest.mark.parametrize("command", PRINTING)
def test_a_closed_pipe_gives_141_and_no_word(command, place):
    reading, writing_end = os.pipe()
    os.close(reading)
    try:
        done = run(command, place, stdout=writing_end)
    finally:
        os.close(writing_end)
    assert (done.returncode, done.stderr) == (_status.CLOSED_PIPE, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("command", PRINTING)
def test_a_full_disk_behind_standard_output_gives_2_and_one_line(command, place):
    with open("/dev/full", "w") as full:
        done = run(command, place, stdout=full)
    assert done.returncode == 2
    program = "conform" if command.startswith("-m") else "gravity"
    assert done.stderr == (
        f"{program}: standard output cannot be written: No space left on device\n"
    )


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from gravity_conformance.__main__ import main
import matplotlib.font_manager, sklearn.datasets
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
main()
"""


@posix
@pytest.mark.parametrize(
    ("size", "command", "message"),
    [
        (100, f"{PARITY} --out made", "--out 'made' cannot be written: "),
        (20_000, f"{PARITY} --out made", "--out 'made/parity.png' cannot be written: "),
        (20_000, f"{PARITY} --html a.html", "--html 'a.html' cannot be written: "),
        (100, f"{CONFORM} --json a.json", "--json 'a.json' cannot be written: "),
        (100, "vectors --out made", "--out 'made' cannot be written: File too large"),
    ],
)
def test_a_file_that_cannot_be_written_gives_2_and_loses_no_other(size, command, message, place):
    code = LIMITED.replace("(0, 0)", f"({size}, {size})")
    done = subprocess.run(
        [sys.executable, "-c", code, *command.split()],
        cwd=place,
        capture_output=True,
        encoding="utf-8",
        timeout=HANG,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"gravity: {message}")
    assert "Traceback" not in done.stderr
    if size == 20_000:
        folder = place / ("made" if "made" in command else "parity")
        assert json.loads((folder / "parity.json").read_text(encoding="utf-8"))["passed"]
        assert "parity: every backend present is exact or bounded" in done.stdout
    else:
        assert not [path for path in place.glob("made/**/*") if path.is_file()]
        verdicts = ("parity: every backend", "conform: conforms")
        shown = command.startswith("vectors") or any(v in done.stdout for v in verdicts)
        assert shown, "the results are lost"
    assert not [path for path in place.rglob("*") if ".gravity-" in path.name]


@posix
@pytest.mark.parametrize("program", ["gravity", "conform"])
def test_an_interrupted_check_gives_130_and_one_line(program, tmp_path):
    begun = tmp_path / "begun"
    code = f"def step(w, v, g, t, lr, beta):\n    open({str(begun)!r}, 'w').close()\n"
    spec = written(tmp_path, code + "    time.sleep(10**6)")
    # A background job of a shell ignores SIGINT, and so do its children.
    start = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    module = "gravity_conformance" + (".conform" if program == "conform" else "")
    start += f"runpy.run_module({module!r}, run_name='__main__')"
    words = [spec] if program == "conform" else ["conform", spec]
    process = subprocess.Popen(
        [sys.executable, "-c", start, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    deadline = time.monotonic() + HANG
    while not begun.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=HANG)
    assert (process.returncode, output) == (130, "")
    assert errors == f"{program}: interrupted\n"


def test_a_fault_of_the_command_is_no_verdict(capsys):
    with pytest.raises(SystemExit) as stop:
        _status.run("gravity", lambda: 1 // 0)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2].startswith("ZeroDivisionError: ")
    assert lines[-1] == "gravity: this is a fault of gravity itself"


@pytest.mark.skipif(os.name == "nt", reason="Windows removes no folder that a process is in")
def test_a_folder_that_was_removed_gives_2_and_names_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    with pytest.raises(SystemExit, match="2"):
        _status.run("gravity", os.getcwd)
    assert capsys.readouterr().err == "gravity: the current folder does not exist any more\n"


def test_the_documentation_has_the_table():
    section = PAGE.read_text(encoding="utf-8").split("## Exit statuses")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", section, re.MULTILINE)
    assert {int(status): text for status, text in rows} == {
        status: text[0].upper() + text[1:] for status, text in _status.MEANINGS.items()
    }


def test_the_help_has_the_table():
    text = " ".join(gravity("--help").stdout.split())
    for status, meaning in _status.MEANINGS.items():
        assert f"{status} {meaning}" in text
