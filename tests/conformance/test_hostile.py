"""Code and environments that misbehave change no verdict, and end nothing but themselves."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gravity_conformance import _html, _process, _status, _terminal
from gravity_conformance._guard import COMMANDS, visible
from gravity_conformance._output import Line, Table
from gravity_conformance.conform import runner
from gravity_conformance.conform.verdict import sentence
from gravity_conformance.vectors import check, files
from gravity_core._install import install
from tests.hostile.environments import ENVIRONMENTS, run
from tests.hostile.misbehaving import ACTS, LIES, RIGHT, backend, function, liar
from tests.support.command import gravity, hidden, written
from tests.support.limits import HANG

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and descriptors")
POSSIBLE = [name for name, act in ACTS.items() if os.name == "posix" or not act.posix]
# Those that differ most; the profile `thorough` has all.
FEW = ["exits with 0", "KeyboardInterrupt", "closes stdout", "patches NumPy"]


def acts():
    return POSSIBLE if os.environ.get("HYPOTHESIS_PROFILE") == "thorough" else FEW


@pytest.mark.parametrize("name", acts())
def test_conform_reports_what_an_implementation_does(name, tmp_path):
    path = tmp_path / "odd.py"
    path.write_text(function(name))
    (found,) = runner.conform(f"{path}:step", level="quick", only=["update"]).results
    if ACTS[name].outcome == RIGHT:
        assert found.outcome == "pass"
    else:
        assert found.outcome == "error"
        assert re.search(ACTS[name].outcome, found.note)


def installed(folder, modules):
    """Install modules as backends of their names; return the environment that finds them."""
    package = folder / "odd-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1\n")
    lines = [f"{name} = odd_{index}" for index, name in enumerate(modules)]
    (package / "entry_points.txt").write_text("\n".join(["[gravity.backends]", *lines]) + "\n")
    for index, code in enumerate(modules.values()):
        (folder / f"odd_{index}.py").write_text(code)
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.getenv("PYTHONPATH")])])}


def test_parity_reports_what_backends_do(tmp_path):
    """All of them in one run, beside one that is right."""
    pytest.importorskip("sklearn", reason="gravity parity trains on scikit-learn's digits")
    modules = {name.replace(" ", "-"): backend(name) for name in acts()} | {"liar": liar()}
    environment = installed(tmp_path, modules)
    chosen = [word for name in ("numpy", *modules) for word in ("--backend", name)]
    words = ["--steps", "2", "--dtype", "float32", "--json", "--out", "out"]
    done = gravity("parity", *words, *chosen, env=environment, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    found = json.loads(done.stdout)
    assert found == json.loads((tmp_path / "out" / "parity.json").read_text("utf-8"))
    rows = {(row["backend"], row["mode"]): row for row in found["replays"]}
    assert rows["numpy", "blocked"]["grade"]["verdict"] == "exact"
    for name in acts():
        row = rows[name.replace(" ", "-"), "blocked"]
        if ACTS[name].outcome == RIGHT:
            assert row["grade"]["verdict"] == "exact", row
        else:
            assert re.search(ACTS[name].outcome, row["error"]), (name, row["error"])
    for name, lie in LIES.items():
        assert re.search(lie.outcome, rows["liar", name]["error"]), (name, rows["liar", name])


def test_a_backend_that_hangs_or_never_ends_is_ended(tmp_path):
    pytest.importorskip("sklearn", reason="gravity parity trains on scikit-learn's digits")
    hanging = "import re\nre.match('(a*)*b', 'a' * 99)  # holds the interpreter\n"
    environment = installed(tmp_path, {"hangs": hanging})
    words = ["--backend", "hangs", "--timeout", "0.5"]
    done = gravity("parity", *words, env=environment, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "gravity: the backend cannot be imported: hangs: no answer in 0.5 s (see --timeout)\n"
    )


# The end of a command ends what it started. The implementation holds the interpreter in C code,
# ignores signals, and has a child process and a thread.
STUBBORN = """
import os, re, signal, sys, subprocess, threading
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
threading.Thread(target=threading.Event().wait).start()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep({hang})"])
with open({noted!r} + ".part", "w") as file:
    file.write(f"{os.getpid()} {child.pid}")
os.rename({noted!r} + ".part", {noted!r})
re.match("(a*)*b", "a" * 99)
"""


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    try:  # one that has ended may wait for its parent
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return os.name != "posix" or not Path("/proc").is_dir()


@posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_the_implementation_ends_with_the_command(number, tmp_path):
    noted = tmp_path / "noted"
    code = STUBBORN.replace("{hang}", str(HANG)).replace("{noted!r}", repr(str(noted)))
    (tmp_path / "odd.py").write_text(code)
    start = (
        "import runpy, signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # nohup ignores it
    )
    start += "runpy.run_module('gravity_conformance.conform', run_name='__main__')"
    command = [sys.executable, "-c", start, "odd.py:step"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, encoding="utf-8")
    deadline = time.monotonic() + HANG
    while not noted.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    started = [int(word) for word in noted.read_text().split()]
    assert all(map(alive, started))
    process.send_signal(number)
    _, errors = process.communicate(timeout=HANG)
    assert process.returncode == -number
    name = signal.Signals(number).name
    assert errors == ("" if number == signal.SIGKILL else f"conform: ended by {name}\n")
    while any(map(alive, started)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(alive, started))


@posix
def test_the_implementation_ends_without_a_guard_too(tmp_path, monkeypatch):
    """Where there is no shell, and on other systems, a thread watches the pipe."""
    monkeypatch.setattr(_process, "_guard", lambda process: None)
    noted = tmp_path / "noted"
    spec = written(tmp_path, f"open({str(noted)!r}, 'w').close()\ntime.sleep({HANG})")
    job = {"spec": spec, "kind": None, "kw": {}}
    process = _process.Process("gravity_conformance.conform.worker", job, HANG)
    deadline = time.monotonic() + HANG
    while not noted.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process._messages.put(None)  # closes the pipe, as the end of the command does
    with pytest.raises(_process.EndedError, match="its process ended with status 0"):
        process.event()
    process.close()


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="needs waitid")
def test_a_session_ends_before_its_number_is_free(tmp_path, monkeypatch):
    """Once its first process is reaped, another one can get the number."""
    noted, killed = tmp_path / "noted", []

    def killpg(process, number, kill=os.killpg):
        try:
            os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            killed.append("taken")
        except ChildProcessError:
            killed.append("free")
        kill(process, number)

    monkeypatch.setattr(os, "killpg", killpg)
    code = f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep({HANG})'])\n"
    code += f"with open({str(noted)!r}, 'w') as file: file.write(str(child.pid))\nos._exit(3)"
    job = {"spec": written(tmp_path, code), "kind": None, "kw": {}}
    process = _process.Process("gravity_conformance.conform.worker", job, HANG)
    with process, pytest.raises(_process.EndedError, match="its process ended with status 3"):
        process.event()
    assert killed == ["taken"]
    child, deadline = int(noted.read_text()), time.monotonic() + HANG
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(child)


WRONG = "def step(w, v, g, t, lr, beta):\n    return right(w, v, g, t - 1, lr, beta)\n"


@posix
@pytest.mark.parametrize("name", ["cp437", "without docstrings", "no stream"])
def test_an_environment_changes_no_verdict(name, tmp_path):
    written(tmp_path, WRONG)
    words = ["odd.py:step", "--only", "update", "--quick", "--json"]
    done = run(["-m", "gravity_conformance", "conform", *words, "a.json"],
               ENVIRONMENTS[name], tmp_path)  # fmt: skip
    assert (done.returncode, done.stderr) == (1, b"")
    report = json.loads((tmp_path / "a.json").read_bytes())
    assert report["diagnoses"] == ["β̂ uses t − 1"]
    assert (done.stdout == b"") == (1 in ENVIRONMENTS[name].closed)
    done = run(["-m", "gravity_conformance.conform", "none.py:step"], ENVIRONMENTS[name], tmp_path)
    assert done.returncode == 2


@pytest.mark.parametrize("words", [["--help"], ["parity", "--help"], ["conform", "--list"]])
def test_the_help_needs_no_docstring(words, tmp_path):
    plain, without = (
        run(["-m", "gravity_conformance", *words], ENVIRONMENTS[name], tmp_path)
        for name in ("plain", "without docstrings")
    )
    assert without.returncode == 0
    if words == ["conform", "--list"]:  # titles stand for the docstrings
        assert without.stdout.count(b"\n") == plain.stdout.count(b"\n")
        assert re.search(rb"^  update +\S", without.stdout, re.MULTILINE)
    else:
        assert without.stdout == plain.stdout


@pytest.mark.parametrize("command", ["conform", "parity"])
@pytest.mark.parametrize("value", ["inf", "nan", "1e10", "0", "-1"])
def test_a_timeout_is_a_number_of_seconds(command, value, monkeypatch, capsys):
    from gravity_conformance.__main__ import main

    monkeypatch.setattr(sys, "argv", ["gravity", command, "--timeout", value])
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("gravity: --timeout must be seconds above 0 and at most 1,000,000, got")
    assert error.count("\n") == 1


# What terminals obey: colours, a new title, the end of a line, C1, the direction of text.
ORDERS = "\x1b[2J \x1b]0;title\x07 a\rb \x9b31m \u202ecba\u2066 \u2028 \udcff \0 \x7f"


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def obeyed(text):
    return [c for c in COMMANDS.findall(text) if c != "\n"]


def test_no_order_reaches_a_terminal(monkeypatch):
    assert visible("βˆ — \u2265 ✓ 中") == "βˆ — \u2265 ✓ 中"
    assert not COMMANDS.search(visible(ORDERS))
    written_ = {}
    for name, write in {
        "emit": lambda: _status.emit(f"{ORDERS}\n"),
        "complain": lambda: _status.complain(ORDERS),
        "parts": lambda: _terminal.show([Line(ORDERS), Table([ORDERS], [[ORDERS]], ORDERS)]),
        "coloured": lambda: _terminal.show([Line(ORDERS, "bad"), Table(["a"], [[ORDERS]])]),
    }.items():
        stream = Terminal() if name == "coloured" else io.StringIO()
        monkeypatch.setattr(sys, "stderr" if name == "complain" else "stdout", stream)
        write()
        monkeypatch.undo()
        written_[name] = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    assert not any(map(obeyed, written_.values())), written_
    assert not obeyed(_html.page(ORDERS, [_html.paragraph(Line(ORDERS))]).replace("\t", ""))


def test_json_for_a_terminal_is_the_same_json(capsysbinary):
    _status.emit_json(json.dumps({"a": ORDERS}, ensure_ascii=False, indent=1) + "\n")
    output = capsysbinary.readouterr().out.decode("utf-8", "strict")
    assert not obeyed(output)
    assert json.loads(output) == {"a": ORDERS}


def test_names_and_exceptions_reach_no_terminal_raw(tmp_path):
    (tmp_path / "a.json").write_text('{"\\u001b[31mred\\u009b": 1}', encoding="utf-8")
    done = gravity("vectors", "--check", "a.json", cwd=tmp_path)
    assert done.returncode == 1
    assert "\\x1b[31mred\\x9b" in done.stdout
    assert not obeyed(done.stdout)
    odd = tmp_path / "a\x1b[31m\nconform: conforms.py"
    for words in (["vectors", "--check", odd], ["conform", f"{odd}:step"]):
        done = gravity(*words, cwd=tmp_path)
        assert done.returncode == 2
        assert not obeyed(done.stdout + done.stderr)
        assert "\nconform: conforms" not in done.stdout + done.stderr


@pytest.mark.parametrize("size", [100_000, check.MOST])
def test_the_faults_of_a_file_are_bounded(size, tmp_path):
    """100,000 empty groups took 44 s and 4.8 GB."""
    pytest.importorskip("jsonschema", reason="gravity vectors needs it")
    group = {"type": "threefry", "dtype": "uint32", "tests": []}
    content = {"schema": "schema.json", "algorithm": "Gravity", "version": 1, "header": []}
    content |= {"number_of_tests": 1, "notes": {}, "groups": [group] * size}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    faults = check.check(path)
    assert faults[0] == "groups[0].tests: [] should be non-empty"
    if size == check.MOST:
        assert len(faults) == size
    else:
        assert len(faults) == check.MOST + 1
        assert faults[-1] == f"has more than these {check.MOST} faults"


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs /dev/zero")
def test_a_file_without_end_is_not_read():
    with pytest.raises(OSError, match="must be a regular file, got a device: '/dev/zero'"):
        check.check(Path("/dev/zero"))


def test_what_needs_no_plots_works_without_matplotlib(tmp_path):
    pytest.importorskip("sklearn", reason="gravity parity trains on scikit-learn's digits")
    environment = hidden(tmp_path / "hidden", ("matplotlib",))
    for words in (["--help"], ["parity", "--help"], ["conform", "--help"]):
        assert gravity(*words, env=environment).returncode == 0
    words = ["parity", "--backend", "numpy", "--steps", "1", "--out", tmp_path / "out"]
    done = gravity(*words, "--html", tmp_path / "a.html", env=environment)
    assert done.returncode == 2
    assert done.stderr == f"gravity: --html needs matplotlib: {install('cli')}\n"
    done = gravity(*words, env=environment)
    assert done.returncode == 0
    assert "parity.png is not drawn: it needs matplotlib" in done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"parity.json", "parity.md"}


def test_a_verdict_without_counts_is_a_whole_sentence():
    report = runner.Report("a:b", "plain")
    report.results = [runner.Result("not applicable", "", check="float16", title="float16")]
    assert sentence(report) == "could not run: nothing to judge in any of 1 check"


def test_a_long_list_of_several_types_is_compared_in_a_moment(tmp_path):
    """jsonschema's own uniqueItems compares each pair of it."""
    pytest.importorskip("jsonschema", reason="gravity vectors needs it")
    content = json.loads(
        next(f for f in files() if f.name == "coefficients.json").read_text("utf-8")
    )
    content["groups"][0]["tests"][0]["flags"] = [1, *map(str, range(20_000)), "0"]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    place = "groups[0].tests[0].flags"
    first, second = check.check(path)
    assert first == f"{place}[0]: 1 is not of type 'string'"
    assert second.startswith(f"{place}: [1, '0', '1'")
