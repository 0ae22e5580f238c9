"""Reports on a terminal: no word is cut at any width, and colours come only where wanted."""

import io
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gravity_conformance import _terminal
from gravity_conformance._output import Line, Table, joined, plain
from gravity_conformance.conform import report as conform_reports
from gravity_conformance.conform.checks.registry import CHECKS
from gravity_conformance.conform.command import _of_checks
from gravity_conformance.conform.runner import Report, Result
from gravity_conformance.parity import report as parity_reports
from gravity_conformance.parity import run as parity
from gravity_conformance.parity.grading import Grade

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


class Terminal(io.StringIO):
    """Standard output that is a terminal."""

    encoding = "utf-8"

    def isatty(self):
        return True


def shown(parts, columns, output=Terminal, **environment):
    """Return what `show` writes."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            patch.delenv(name, raising=False)
        bare = {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "40"}
        for name, value in (bare | environment).items():
            patch.setenv(name, value)
        patch.setattr(sys, "stdout", output())
        _terminal.show(parts)
        return sys.stdout.getvalue()


def a_parity_report():
    result = parity.new_report(seed=0)
    result.steps = 900
    for name, mode in (("numpy", "blocked"), ("tensorflow", "function"), ("torch", "default")):
        grade = Grade("divergent" if mode == "function" else "exact", bound=[1.9e-4])
        result.replays.append(parity.ReplayRow(name, mode, "eager", "float32", 28.2, grade=grade))
        result.trainings.append(parity.TrainingRow(name, "float32", losses=[1.0], images=357))
    return parity_reports.parts(result, [])


def a_conform_report():
    note = "V of tensor 0 after step 1, element [0, 0]: -0.0682373047, not -0.0681995433 ± 3e-05"
    results = [Result("pass", check="update", title="one update", worst=3.9)]
    results.append(
        Result("differs", note, check="own-v0", title="trajectory from its own V₀", worst=0.574,
               diagnosis="missing square")
    )  # fmt: skip
    results.append(Result("not applicable", "not offered", check="x", title="weight decay"))
    return conform_reports.parts(Report("a:b", "plain", results=results))


REPORTS = {"parity": a_parity_report(), "conform": a_conform_report()}


def words(parts):
    for part in parts:
        if isinstance(part, Line):
            yield from part.text.split()
        else:
            for row in part.rows:
                yield from (word for cell in row for word in cell.split())


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("columns", [40, 60, 80, 100, 120, 200])
def test_a_report_fits_the_terminal_and_no_word_is_cut(name, columns):
    lines = ESCAPE.sub("", shown(REPORTS[name], columns)).splitlines()
    assert max(map(len, lines)) <= columns + sum("β̂" in line for line in lines)
    found = " ".join(lines).replace(",", " ").split()
    for word in words(REPORTS[name]):
        assert word.rstrip(",") in found or word.rstrip(",").replace(",", " ") in " ".join(found)


@pytest.mark.parametrize("name", REPORTS)
def test_the_tables_are_tables_at_80_columns(name):
    lines = ESCAPE.sub("", shown(REPORTS[name], 80)).splitlines()
    if name == "parity":
        (header,) = [line for line in lines if line.startswith("backend") and "grade" in line]
        row = next(line for line in lines if line.startswith("tensorflow  function"))
        assert row.index("divergent") == header.index("grade")
    else:
        (header,) = [line for line in lines if line.startswith("check")]
        row = next(line for line in lines if line.startswith("trajectory from"))
        assert row.index("differs") == header.index("result")
        assert lines[lines.index(row) + 1].startswith(
            "    diagnosis: missing square; V of tensor 0"
        )


CELLS = st.text("ab β̂-₀1", min_size=0, max_size=30)


@given(
    st.integers(20, 130),
    st.booleans(),
    st.lists(st.lists(CELLS, min_size=4, max_size=4), min_size=1, max_size=4),
)
def test_any_table_keeps_its_words(columns, long, rows):
    table = Table(["name", "result", "of bound", "what"], rows, long=long)
    found = ESCAPE.sub("", shown([table], columns))
    cut = [w for row in rows for cell in row for w in cell.split() if len(w) <= columns - 4]
    for word in cut:
        assert word in re.split(r"[\s,]+", found)


@pytest.mark.parametrize("name", REPORTS)
def test_colours_come_only_where_they_are_wanted(name):
    parts = REPORTS[name]
    assert "\x1b[1;31m" in shown(parts, 80)
    for environment in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\x1b" not in shown(parts, 80, **environment)
    pipe = shown(parts, 80, io.StringIO)
    assert pipe == shown(parts, 200, io.StringIO, TERM="dumb") == plain(parts)
    assert "\x1b" not in pipe
    forced = shown(parts, 80, io.StringIO, FORCE_COLOR="1")
    assert "\x1b[1;31m" in forced
    assert "\x1b" not in shown(parts, 80, io.StringIO, FORCE_COLOR="1", NO_COLOR="1")


def test_a_pipe_gets_one_line_for_each_row():
    text = plain([Line("first"), Table(["a", "long"], [["1", "x " * 200]], "title"), Line("last")])
    assert text == "first\n\ntitle\na  long\n1  " + ("x " * 200).rstrip() + "\n\nlast\n"
    assert joined(["", "a ", "", "", "b"]) == "a\n\nb\n"


def test_a_check_that_compiles_says_so():
    said = []
    started = _of_checks(["update", "compiled"], lambda *line: said.append(line))
    for name in ("update", "compiled"):
        started(CHECKS[name].title)
    assert said == [
        ("import", 0, 2),
        (CHECKS["update"].title, 0, 2),
        ("compiled: compiling", 1, 2),
    ]


def test_progress_is_silent_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with _terminal.progress() as advance:
        advance("update", 1, 2)
    assert capsys.readouterr() == ("", "")


def test_progress_shows_what_runs(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    for name, value in (("TERM", "xterm-256color"), ("COLUMNS", "80")):
        monkeypatch.setenv(name, value)
    with _terminal.progress() as advance:
        advance("jax jit float32: compiling", 0, 900)
    assert "jax jit float32: compiling" in sys.stderr.getvalue()
    assert "0/900" in sys.stderr.getvalue()
