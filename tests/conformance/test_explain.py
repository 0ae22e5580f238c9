"""`gravity vectors --explain` names the mistake of a port, and says so where it knows none."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from gravity_conformance import explain as module
from gravity_conformance.explain import explain
from gravity_conformance.explain.match import matches
from gravity_conformance.explain.table import FAILS, PASSES, Table, vectors
from gravity_conformance.mutations import MUTATIONS
from gravity_conformance.vectors import files
from gravity_core import coefficients, trace
from tests.support import strangers
from tests.support.ports import EVERY, results_of

COMMAND = [sys.executable, "-m", "gravity_conformance", "vectors", "--explain"]
README = (files()[0].parent / "README.md").read_text(encoding="utf-8")


def named(results):
    """Return the names in the explanation of a port's results."""
    lines = explain(json.dumps(results)).splitlines()
    one = [line for line in lines if re.match(r"Mistake.*?: ", line)]
    several = [line.removeprefix("  - ").rstrip(".") for line in lines if line.startswith("  - ")]
    return [line.partition(": ")[2].rstrip(".") for line in one] + several


# Four ports with one mistake each, written by hand.


def port(w, v, g, t, lr, beta, *, weight_decay, maximize, **wrong):
    dtype, wide = w.dtype, np.result_type(w.dtype, np.float32)
    w, v, g = (x.astype(wide) for x in (w, v, -g if maximize else g))
    t = wrong.get("counter", lambda t: t)(t)
    old, new = (beta * t + 1) / (t + 2), ((1 - beta) * t + 1) / (t + 2)
    with np.errstate(all="ignore"):
        largest = wrong.get("largest", lambda g: np.max(np.abs(g)))(g) if g.size else 0
        s = wrong.get("s", lambda s: s * s)(g * largest)
        v = old * v + new * (g / (1 + s))
        w = w - lr * v if not weight_decay else (1 - lr * weight_decay) * w - lr * v
        return w.astype(dtype), v.astype(dtype)


def broken(**wrong):
    return lambda *given, **options: port(*given, **options, **wrong)


BY_HAND = {
    "max|G| is the max of G": {"largest": np.max},
    "mean in place of max": {"largest": lambda g: np.mean(np.abs(g))},
    "β̂ uses t − 1": {"counter": lambda t: t - 1},
    "missing square": {"s": np.abs},
}


def test_the_port_without_a_mistake_passes():
    results = results_of(port)
    assert results["failed"] == []
    assert explain(json.dumps(results)) == (
        "120 tests were run, and none failed. There is nothing to explain."
    )


@pytest.mark.parametrize("dtypes", [EVERY, ("float32",), ("float64",)], ids="-".join)
@pytest.mark.parametrize("name", BY_HAND)
def test_a_port_written_by_hand_is_explained(name, dtypes):
    results = results_of(broken(**BY_HAND[name]), dtypes)
    assert named(results) == [name]
    assert "those of this mistake, within rounding." in explain(json.dumps(results))
    # Without values: with others that make the same tests fail, or alone.
    del results["got"]
    found = named(results)
    assert name in found
    assert len(found) <= 3


def test_the_flags_that_failed_tests_share_name_none_of_them():
    """This is why the whole table is needed."""
    for name, wrong in BY_HAND.items():
        results = results_of(broken(**wrong))
        failed, passed = (
            [set(vectors()[test].test.flags) for test in results[key]]
            for key in ("failed", "passed")
        )
        assert set.intersection(*failed) - set.union(*passed) == set(), name


STRANGE = {
    "half": "1 − β̂ in half precision",
    "weight": "(1 − β̂) omitted",
    "bare_beta": "β in place of β̂",
    "twice": "learning rate applied twice",
    "coupled": "weight decay coupled",
    "stops": "t is counted in float16 and stops at 2048",
    "difference": "1 − β̂ taken as a difference, which loses digits",
    "plus_one": "β̂ uses t + 1",
}


@pytest.mark.parametrize("mistake", STRANGE)
def test_other_ports_are_explained(mistake):
    """Those whose W is NaN for an infinite W have this second mistake named, too."""
    results = results_of(strangers.plain(mistake), ("float32", "float64"))
    assert named(results) == [STRANGE[mistake]]
    del results["got"]
    assert STRANGE[mistake] in named(results)
    second = "It may be this: 0 · ∞ in W where there is no weight decay."
    assert (second in explain(json.dumps(results))) == (mistake in ("stops", "difference"))


@pytest.mark.parametrize("dtypes", [EVERY, ("float32",), ("float64",)], ids="-".join)
def test_every_known_mistake_is_named_from_its_failed_tests(dtypes):
    """Each in every form. Those that no test shows are listed."""
    table = Table([v for v in vectors().values() if v.dtype in (*dtypes, "uint32")])
    names = {mistake.name for mistake in table.mistakes}
    assert names >= {variant.description for variant in MUTATIONS}
    shown = set()
    for name, rows in table.rows.items():
        for row in rows:
            observed = np.where(row == FAILS, FAILS, PASSES)
            if observed.any():
                (match,) = matches(table, observed)
                assert match.exact
                assert name in match.names
                shown.add(name)
    coarse = {"computed in half precision, not in float32 and rounded once"}
    epsilon = {"1e-8 is added to the denominator"}  # half a unit roundoff of 1 hides it
    # Only float32 has an infinite W, and gradients that are given twice.
    single = {"0 · ∞ in W where there is no weight decay"}
    single |= {name for name in names if name.startswith("gradient ")}
    hidden = {EVERY: set(), ("float32",): coarse | epsilon, ("float64",): coarse | single}
    assert names - shown == hidden[dtypes]


def test_each_dtype_may_have_its_own_mistake():
    single, double = (broken(**BY_HAND[name]) for name in list(BY_HAND)[::3])

    def step(w, *given, **options):
        return (double if w.dtype == np.float64 else single)(w, *given, **options)

    for values in (True, False):
        text = explain(json.dumps(results_of(step, ("float32", "float64"), values=values)))
        assert "Mistake in float32: max|G| is the max of G." in text
        assert "Mistake in float64: missing square." in text


def test_one_dtype_may_be_right():
    def step(w, *given, **options):
        return (broken(s=np.abs) if w.dtype == np.float64 else port)(w, *given, **options)

    results = results_of(step, ("float32", "float64"), values=False)
    assert "Mistake in float64: missing square." in explain(json.dumps(results))


def test_a_mistake_that_nobody_knows_is_not_named():
    cube = broken(s=lambda s: np.abs(s * s * s))
    text = explain(json.dumps(results_of(cube)))
    assert "No known mistake: some make these tests fail, but the values" in text
    assert "First wrong result of one_step.json/1 (float32" in text
    arbitrary = {"failed": [], "passed": []}
    for number, name in enumerate(vectors()):
        arbitrary["failed" if number % 5 == 0 else "passed"].append(name)
    assert named(arbitrary) == []
    assert "No known mistake" in explain(json.dumps(arbitrary))


@pytest.mark.parametrize("name", BY_HAND)
def test_no_known_mistake_gives_nan_in_ordinary_tests(name):
    """The failed tests are those of a known mistake, but all values are NaN."""
    results = results_of(broken(**BY_HAND[name]))
    for got in results["got"].values():
        for step in got["steps"]:
            for tensor in step["tensors"]:
                tensor.update({symbol: ["NaN"] * len(x) for symbol, x in tensor.items()})
    text = explain(json.dumps(results))
    assert "No known mistake: some make these tests fail, but the values" in text


def test_a_mistake_whose_values_were_not_compared_is_not_affirmed():
    """One half-precision test has arbitrary values, and several mistakes cannot be simulated."""
    name = "half_precision.json/1"
    test = vectors()[name].test
    tensors = [{"V": [12.5] * w.size, "W": [77.25] * w.size} for w in test.w]
    results = {"failed": [name], "passed": [], "got": {name: {"steps": [{"tensors": tensors}]}}}
    text = explain(json.dumps(results))
    assert "within rounding" not in text
    assert "(got) cannot rule that out" in text


def test_a_few_more_failed_tests_do_not_hide_a_mistake():
    """Half-way to the next mistake, it is not named any more."""
    table = Table(list(vectors().values()))
    name = "max|G| along the last axis only"
    observed = table.rows[name][0].copy()
    passes = [i for i, x in enumerate(observed) if not x and table.tests[i].type == "coefficients"]
    observed[passes[:3]] = FAILS
    (match,) = matches(table, observed)
    assert match.names == [name]
    assert match.disagree.sum() == 3
    observed[passes] = FAILS
    assert matches(table, observed) == []


def test_a_changed_gradient_is_said_first():
    name = "one_step.json/14"
    text = explain(
        json.dumps({"failed": [name], "passed": ["one_step.json/1"], "gradients_changed": [name]})
    )
    assert f"A step changed a gradient array in {name}." in text
    assert "Mistake" not in text


def test_values_tell_the_ways_of_drawing_v0_apart():
    every = [v for v in vectors().values() if v.type == "initial_velocity"]
    failed = [v for v in every if v.test.std and v.test.velocity_std is None]
    results = {"failed": [v.name for v in failed]}
    results["passed"] = [v.name for v in every if v not in failed]
    assert {"V₀ is zero", "V₀ variance, not std, is α / η"} == set(named(results))
    rest = {v.name: {"V": [0.0] * v.test.elements} for v in failed}
    assert named({**results, "got": rest}) == ["V₀ is zero"]


# The file and the command


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting property name"),
        ('{"failed": [], "passed": [], "failed": []}', "the key 'failed' appears twice"),
        ('{"failed": []}', "$: 'passed' is a required property"),
        ('{"failed": [], "passed": []}', "no test was run"),
        ('{"failed": ["one_step/1"], "passed": []}', "$.failed[0]: 'one_step/1' does not match"),
        ('{"failed": ["none.json/1"], "passed": []}', "failed: there is no test 'none.json/1'"),
        (
            '{"failed": ["one_step.json/1"], "passed": ["one_step.json/1"]}',
            "passed: 'one_step.json/1' is in failed, too",
        ),
        (
            '{"failed": [], "passed": ["one_step.json/1"], "got": {"one_step.json/1": {}}}',
            "got: 'one_step.json/1' is not in failed",
        ),
        ('{"failed": ["one_step.json/1"], "passed": [], "got": {"one_step.json/1": %s}}', None),
    ],
)
def test_a_wrong_file_gives_one_line_and_status_2(text, message, tmp_path):
    cases = [(text, message)]
    if message is None:
        cases = [
            (text % '{"beta_hat": NaN}', "JSON has no number NaN; write it as a string"),
            (text % '{"beta_hat": 1}', "a test of type update has steps only"),
            (text % '{"steps": [{"tensors": []}]}', "step 0: it has 1 tensors, got 0"),
            (text % '{"steps": [{"tensors": [{"W": [1]}]}]}', "W has 4 elements, got 1"),
            (text % '{"steps": [{"tensors": []}, {"tensors": []}]}', "it has 1 steps, got 2"),
        ]
    for content, wanted in cases:
        with pytest.raises(ValueError, match=re.escape(wanted)):
            explain(content)
    path = tmp_path / "failed.json"
    path.write_text(cases[0][0], encoding="utf-8")
    done = subprocess.run([*COMMAND, path], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"gravity: --explain {str(path)!r}: ")
    assert cases[0][1] in line


def test_the_command_reads_standard_input_and_answers_with_status_0():
    results = json.dumps(results_of(broken(s=np.abs), ("float32",)))
    done = subprocess.run([*COMMAND, "-"], input=results, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == explain(results) + "\n"
    assert "Mistake: missing square.\n" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= module.WIDTH


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
def test_a_closed_standard_input_is_named():
    closed = ["sh", "-c", 'exec "$@" <&-', "sh", *COMMAND, "-"]
    done = subprocess.run(closed, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "gravity: --explain '-' cannot be read: standard input is closed\n"


# The page


def test_the_worked_example_is_recomputed():
    test = vectors()["one_step.json/1"].test
    step, (w, v, g) = test.steps[0], (test.w[0], test.v[0], test.steps[0].g[0].astype(np.float64))
    zeta = g / (1 + (g * g.max()) ** 2)
    after = 1.9 / 3 * v + 1.1 / 3 * zeta
    wrong = (1.9 / 3, 1.1 / 3, 1 / g.max(), zeta, after, w - 0.1 * after)
    parts = (step.beta_hat, step.one_minus_beta_hat, step.m[0], step.zeta[0], step.v[0], step.w[0])
    rows = re.findall(r"^\| (\S+(?: − β̂)?) \| (−?[\d.]+) \| (−?[\d.]+) \|(.*)\|$", README, re.M)
    symbols = ("β̂", "1 − β̂", "m", "ζ", "V", "W")
    first = [" **first wrong** " if symbol == "m" else " " for symbol in symbols]
    assert rows == [
        (symbol, number(part.value), number(x), note)
        for symbol, part, x, note in zip(symbols, parts, wrong, first, strict=True)
    ]
    gradient = ", ".join(f"{x:.7f}".rstrip("0").replace("-", "−") for x in g.ravel())
    assert f"The gradient is [{gradient}]" in README
    results = results_of(broken(largest=np.max), ("float32",), values=False)
    run = sum(map(len, (results["failed"], results["passed"])))
    assert f"fails {len(results['failed'])} of the {run} float32 tests" in README
    answer = explain(json.dumps(results_of(broken(largest=np.max), ("float32",))))
    assert "".join(f"    {line}\n" for line in answer.splitlines()) in README


def number(x):
    return f"{float(np.ravel(x)[0]):.7f}".replace("-", "−")


def first_wrong(form, vector):
    """Return the first wrong result, in the order of the page, of an implementation."""
    variant, test = form.variant, vector.test
    if variant.replaced == {"std"}:
        return "V before the first step"
    if variant.replaced == {"left"}:
        return "the gradient array, after the step"
    options, wide = test.hyperparameters, {"float32": np.float64}.get(vector.dtype, np.longdouble)
    w, start = ([x.astype(wide) for x in arrays] for arrays in (test.w, test.v))
    v, count = start, test.steps[0].t - options.first_step
    for step in test.steps:
        if step.reload:
            v, count = variant.loaded(v, count, start)
        found = []
        rate = variant.learning_rate(step.learning_rate, options.learning_rate)
        given = {"lr": wide(rate), "decay": wide(options.weight_decay)}
        grads = [
            variant.gradient(g.astype(wide), x, given["decay"], options.maximize)
            for g, x in zip(step.g, w, strict=True)
        ]
        after = []
        for i, g in enumerate(grads):
            t = wide(variant.counter(count, options.first_step, i, len(w)))
            old, new = variant.coefficients(t, wide(options.beta))
            size = variant.size(g, grads)
            zeta = variant.term(g, size)
            next_v = old * v[i] + new * zeta
            after.append((next_v, variant.weights(w[i], next_v, **given)))
            expected = (step.beta_hat, step.one_minus_beta_hat, step.m[i], step.zeta[i])
            computed = (old, new, 1 / size if np.ndim(size) == 0 else np.nan, zeta, *after[-1])
            for k, each in enumerate((*expected, step.v[i], step.w[i])):
                if not each.accepts(np.broadcast_to(computed[k], each.value.shape)).all():
                    found.append(k)
        if found:
            return ("β̂", "1 − β̂", "m", "ζ", "V", "W")[min(found)]
        v, w, count = [v for v, _ in after], [w for _, w in after], count + 1
    return None


@np.errstate(all="ignore")
def test_the_table_of_the_page_lists_every_mistake_where_it_shows_first():
    simple = sorted(vectors().values(), key=lambda v: (v.file != "one_step.json", not v.ordinary))
    simple = [v for v in simple if v.dtype in ("float32", "float64") and v.type == "update"]
    table, want = Table(simple), {}
    for mistake in table.mistakes:
        for form in mistake.forms:
            fails = [v for v in simple if form.fails(v) == FAILS]
            if form.outside:
                place = "ζ" if form.outside == "half_overflow" else "V before the first step"
            elif fails:
                place = first_wrong(form, fails[0])
            else:
                continue
            want.setdefault(place, {})[mistake.name] = None
    lines = README.partition("| first wrong | known")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (.*) \| (.*) \|$", lines, re.M)
    found = {place: set(names.replace(r"\|", "|").split("; ")) for place, names in rows}
    assert found == {place: set(names) for place, names in want.items()}


def test_the_code_of_the_page_runs(capsys):
    (code,) = re.findall(r"^    import numpy as np\n(?:    .*\n|\n)+", README, re.M)
    exec(re.sub("^    ", "", code, flags=re.M), {})
    g, v = np.asarray([1.0, -2.0]), np.zeros(2)
    want = f"{coefficients(1, 0.9)}\n{trace(g, v, t=1, beta=0.9)}\n"
    assert capsys.readouterr().out == want
