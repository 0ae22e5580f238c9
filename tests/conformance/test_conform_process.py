"""`gravity conform` and the process of the implementation: its output and its end."""

import functools
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
from importlib import resources
from pathlib import Path

import jsonschema
import pytest

from gravity_conformance import _process
from gravity_conformance._guard import clean, one_line
from gravity_conformance.conform import report as reports
from gravity_conformance.conform import runner
from tests.support.command import RIGHT, gravity_conform, quick, written
from tests.support.limits import HANG

SCHEMA = json.loads(
    (resources.files("gravity_conformance.conform") / "schema.json").read_text("utf-8")
)

STEP = "def step(w, v, g, t, lr, beta):\n    "


@pytest.fixture
def odd(tmp_path):
    return functools.partial(written, tmp_path)


# Unusual exceptions

RAISES = {
    "surrogate": (r"raise ValueError('\udcff \0 \x1b[31m')", r"ValueError: \udcff \x00 \x1b[31m"),
    "GeneratorExit": ("raise GeneratorExit('bye')", "GeneratorExit: bye"),
    "KeyboardInterrupt": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "no message": (
        "class Bad(Exception):\n        def __str__(self): raise RuntimeError\n    raise Bad",
        "Bad: (it has no message: its __str__ raises)",
    ),
}


@pytest.mark.parametrize("name", RAISES)
def test_every_exception_is_shown_in_one_line(odd, name, tmp_path):
    code, message = RAISES[name]
    files = ["--json", tmp_path / "a.json", "--html", tmp_path / "a.html"]
    done = gravity_conform(odd(STEP + code), "--only", "update", *files)
    assert (done.returncode, done.stderr) == (2, "")
    assert message in done.stdout
    (line,) = json.loads((tmp_path / "a.json").read_text("utf-8"))["results"]
    assert (line["outcome"], line["note"]) == ("error", message)
    assert message.replace("'", "&#x27;") in (tmp_path / "a.html").read_text("utf-8")


def test_a_base_exception_at_import_is_reported(odd):
    assert quick(odd("raise GeneratorExit('bye')")).error == (
        "SPEC cannot be used: GeneratorExit: bye"
    )


def test_messages_are_bounded():
    assert one_line(ValueError("x" * 10**6)) == f"ValueError: {'x' * 487}…"
    assert len(clean("\x1b" * 10**6)) == 500
    assert clean("β̂ ≠ 1 — “ok”\n") == "β̂ ≠ 1 — “ok”"


def test_lone_surrogates_in_a_spec_are_written_to_json(tmp_path):
    done = gravity_conform(b"/none/\xff.py:step".decode("utf-8", "surrogateescape"), "--json", "-")
    assert (done.returncode, done.stderr) == (2, "")
    assert json.loads(done.stdout)["spec"] == "/none/\udcff.py:step"


# Output to the descriptor of the worker's lines

FINDING = {"event": "finding", "check": "update", "outcome": "pass", "note": "", "worst": None}
FINDING |= {"first": None, "diagnosis": None, "plot": {}, "seconds": 0.0}
WRITTEN = {
    "forged": json.dumps(FINDING).encode() + b"\n",
    "not UTF-8": b"\xff\xfe no\n[1]\n3\n",
    "no end of line": b"0123456789abcdef" * 10,
    "deep": b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("name", WRITTEN)
def test_writes_to_every_descriptor_give_no_finding(odd, name):
    code = f"{STEP}for fd in range(1, 1100):\n        try: os.write(fd, {WRITTEN[name]!r})\n"
    code += "        except OSError: pass\n    return "
    only = ["update", "float16"]
    report = quick(odd(code + "right(w, v, g, t, lr, beta)"), only=only)
    assert [(line.check, line.outcome) for line in report.results] == [(c, "pass") for c in only]
    report = quick(odd(code + "w, v"), only=only)
    assert [(line.check, line.outcome) for line in report.results] == [(c, "differs") for c in only]


def test_closed_descriptors_are_tolerated(odd):
    report = quick(
        odd(STEP + "os.closerange(0, 50); return right(w, v, g, t, lr, beta)"), only=["update"]
    )
    assert report.status == 0
    closed = quick(
        odd(STEP + "os.closerange(3, 5000); return right(w, v, g, t, lr, beta)"), only=["update"]
    )
    (line,) = closed.results
    assert line.outcome == "error"
    assert "Bad file descriptor" in line.note


def test_lines_are_recognised_by_their_token():
    found = []
    lines = _process.Lines("token", found.append)
    for chunk in (b"other {}\ngarbage", b'\ntoken {"a"', b": 1}\n", b"token no\n", b"\xff\n"):
        lines.take(chunk)
    lines.take(b"x" * 10**6)
    assert len(lines._rest) < 10
    lines.take(b"\ntoken [2]\ntoken null\ntoken {}\n")
    assert found == [{"a": 1}, {}]


@pytest.mark.parametrize(
    "events",
    [
        [3, None],
        [{"event": "finding", "check": "update", "outcome": "pass"}],
        [{"event": "start", "check": "none"}, {"event": "finding", "check": "none"}],
        [{"event": "start", "check": "update"}, {"event": "finding", "check": "update"}],
        [{"event": "start", "check": "update"}, FINDING | {"note": 3}],
        [{"event": "start", "check": "update"}, FINDING | {"outcome": 3}],
        [{"event": "ready"}, {"event": "error", "message": 3}, {}],
    ],
    ids=str,
)
def test_unexpected_and_malformed_events_are_ignored(events, monkeypatch, tmp_path):
    """Code with the token can lie, but it cannot cause a traceback or skip a check."""
    program = "import json, pickle, sys\nsys.stdin.buffer.read(8)\n"
    program += "job = pickle.load(sys.stdin.buffer)\n"
    program += f"for event in {[*events, {'event': 'done'}]!r}:\n"
    program += "    print(job['token'], json.dumps(event))\n"
    monkeypatch.setattr(_process, "_program", lambda module: program)
    report = quick("a:b", only=["update"])
    assert report.status == 2
    assert [line.outcome for line in report.results] == ["error"]
    assert reports.text(report)


# The end of the process


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX sessions")
@pytest.mark.parametrize("how", ["fork", "popen"])
def test_processes_that_an_implementation_leaves_are_not_awaited(odd, how, tmp_path):
    noted = tmp_path / "process"
    leave = {
        "fork": f"pid = os.fork()\nif not pid:\n    os.setsid(); time.sleep({HANG}); os._exit(0)\n",
        "popen": f"pid = subprocess.Popen(['sleep', '{HANG}'], start_new_session=True).pid\n",
    }[how]
    leave += f"open({str(noted)!r}, 'w').write(str(pid))\n"
    report = quick(odd(f"{leave}step = right"), only=["update"])
    assert report.status == 0
    os.kill(int(noted.read_text()), signal.SIGKILL)  # it is still there


@pytest.mark.skipif(os.name != "posix", reason="needs fork")
def test_a_surviving_fork_reports_nothing(odd):
    code = STEP + "if not hasattr(os, 'mine'): os.mine = os.fork()\n    "
    report = quick(odd(code + "return right(w, v, g, t, lr, beta)"), only=["update"])
    assert [line.outcome for line in report.results] == ["pass"]


def test_the_last_words_of_a_process_are_its_reason(odd):
    code = STEP + "os.write(2, b'first\\nlibfoo: out of memory\\n\\n'); os._exit(3)"
    (line,) = quick(odd(code), only=["update"]).results
    assert (
        line.note
        == "its process ended with status 3; its last line of output: libfoo: out of memory"
    )


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_the_signal_that_ended_a_process_is_its_reason(odd):
    (line,) = quick(odd(STEP + "os.kill(os.getpid(), 11)"), only=["update"]).results
    assert line.note == "its process was ended by SIGSEGV"


def test_output_is_counted_and_not_stored(odd, monkeypatch):
    taken = []
    monkeypatch.setattr(
        _process.Said,
        "take",
        lambda self, chunk, take=_process.Said.take: (
            take(self, chunk),
            taken.append(len(self._end)),
        ),
    )
    report = quick(odd("print('x' * 10**7)\nstep = right"), only=["update"])
    assert report.status == 0
    assert report.printed == 10**7 + 1
    assert max(taken) <= 4096


class Stopped(queue.Queue):
    """A queue whose reader is stopped, with its writer, in every second wait and for all of it."""

    stops = False

    def get(self, block=True, timeout=None):
        self.stops = not self.stops
        if self.stops and timeout is not None:
            raise queue.Empty
        return super().get(block, timeout)


def test_time_in_which_the_command_is_stopped_does_not_count(odd, monkeypatch):
    """Ctrl-Z stops the command and the implementation, which then has no chance to answer."""
    monkeypatch.setattr(queue, "Queue", Stopped)
    report = quick(odd("step = right"), only=["update"])
    assert report.error is None
    assert report.status == 0


# The current directory, and others that Python searches


@pytest.mark.parametrize("name", ["json", "random", "numpy", "dataclasses"])
def test_modules_of_the_current_directory_shadow_no_others(tmp_path, name):
    inside = tmp_path / "here"
    inside.mkdir()
    (inside / f"{name}.py").write_text("raise SystemError('the wrong module')")
    (tmp_path / "odd.py").write_text(RIGHT)
    (inside / "port.py").write_text(RIGHT)
    run = "import sys; sys.path.pop(0); sys.path[:0] = [p for p in sys.argv.pop(1).split('|') if p]"
    run += "; from gravity_conformance.__main__ import main; main()"
    root = str(Path(runner.gravity_core.__file__).parents[1])
    for spec in ("../odd.py:right", "port.py:right", "port:right"):
        command = [sys.executable, "-c", run, root, "conform", spec, "--quick", "--only", "update"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=inside)
        assert done.returncode == 0, (spec, done.stdout, done.stderr)


@pytest.mark.parametrize("flag", ["-I", "-P"])
def test_the_process_has_the_packages_of_the_command(flag, tmp_path):
    """Also if the environment and the current directory have others of these names."""
    for name in ("gravity_core", "gravity_conformance"):
        for folder in ("here", "other"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{name}.py").write_text("raise SystemError('the wrong package')")
        package = Path(sys.modules[name].__file__).parent
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(package, tmp_path / "root" / name, ignore=ignored)
    (tmp_path / "root" / "beside.py").write_text("raise SystemError('this hides a module')")
    (tmp_path / "here" / "beside.py").touch()
    code = "import gravity_core, gravity_core.update, gravity_conformance.protocol\n"
    code += "packages = (gravity_core, gravity_conformance.protocol)\n"
    code += f"assert all(p.__file__.startswith({str(tmp_path / 'root')!r}) for p in packages)\n"
    code += "assert sys.stdout.encoding == sys.stderr.encoding == 'utf-8'\n"
    if flag == "-I":  # the process is isolated, too, so it does not have PYTHONPATH
        code += "assert sys.flags.isolated\nimport beside\n"
    written(tmp_path / "here", code)
    run = f"import sys; sys.path.insert(0, {str(tmp_path / 'root')!r})\n"
    run += "from gravity_conformance.__main__ import main; main()"
    words = ["conform", "odd.py:right", "--quick", "--only", "update"]
    path = os.pathsep.join(str(tmp_path / name) for name in ("other", "root"))
    done = subprocess.run(
        [sys.executable, flag, "-c", run, *words],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=tmp_path / "here",
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == 0, (done.stdout, done.stderr)


# The report


def test_standard_output_holds_the_json_alone(odd):
    done = gravity_conform(
        odd("print('hello')\nstep = right"), "--json", "-", "--quick", "--only", "update"
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert (found["format"], found["version"], found["printed"]) == ("gravity-conform", 4, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--html", "-"], "--html must be a file, got '-'"),
        (["--json", "file/a.json"], "--json cannot write '"),
    ],
    ids=str,
)
def test_an_unusable_report_path_is_refused_before_the_run(odd, arguments, message, tmp_path):
    (tmp_path / "file").touch()
    spec = odd("open('ran', 'w')\nstep = right")
    done = gravity_conform(spec, *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"gravity: {message}")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "code",
    [
        "step = right",
        STEP + "raise ValueError('\\udcff')",
        STEP + "return w * np.inf, v * np.nan",
        STEP + "os._exit(1)",
        "raise OSError",
    ],
)
def test_the_json_matches_its_schema(odd, code):
    only = ["update", "trajectory", "v0"]
    report = quick(odd(code), only=only)
    text = reports.as_json(report)
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    jsonschema.validate(found, SCHEMA)
    for name in found:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({k: v for k, v in found.items() if k != name}, SCHEMA)


def test_the_page_loads_nothing_and_has_no_links(odd):
    report = quick(odd("step = right"), only=["trajectory"])
    page = reports.page(report, "gravity conform")
    policy = "default-src &#x27;none&#x27;; img-src data:; style-src &#x27;unsafe-inline&#x27;"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in page
    assert "<svg" in page
    assert not re.search("http:|https:|<metadata|rdf:|xlink", page)


def test_errors_that_a_spec_sets_are_not_those_of_the_checks(odd):
    """Subnormal gradients underflow while the checks make them."""
    spec = odd("np.seterr(all='raise')\ndef step(*given):\n    return right(*given)")
    done = gravity_conform(spec, "--quick", "--only", "subnormal", "--kind", "plain")
    assert done.returncode == 0, done.stdout
