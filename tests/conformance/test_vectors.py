"""The vectors: independently verified, reproducible byte for byte, and sensitive to mistakes.

The reference passes them all, and each implementation with a mistake fails on every vector that is
flagged with the mistake.
"""

import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gravity_conformance.vectors import Expected, exact, files, flags, load_vectors
from gravity_conformance.vectors.making import writing
from gravity_conformance.vectors.making.answers import decimal, hexadecimal, value
from gravity_conformance.vectors.making.notes import NOTES
from gravity_core import ErrorBound, coefficients, hyperparameters, update, velocity
from tests.support import exact as second_opinion
from tests.support.backends import BACKENDS, numpy_dtype

COMMAND = [sys.executable, "-m", "gravity_conformance", "vectors"]
GROUPS = load_vectors()


def vectors_of(kind, but=None):
    """Return (dtype, test) of every test of a kind, except those with one flag."""
    return [
        pytest.param(group.dtype, test, id=f"{group.file[:-5]}-{test.id}")
        for group in GROUPS
        if group.type == kind
        for test in group.tests
        if but not in test.flags
    ]


def mistakes(test):
    return [flag for flag in test.flags if NOTES[flag]["kind"] == "mistake"]


@pytest.mark.parametrize(
    ("dtype", "test"),
    [case for kind in ("update", "coefficients", "initial_velocity") for case in vectors_of(kind)],
)
def test_the_reference_passes_and_every_flagged_mistake_fails(dtype, test):
    assert flags.accepts(test, dtype)
    assert flags.untrue(test, dtype, mistakes(test)) == []


def test_every_mistake_has_a_vector_and_every_note_is_used():
    used = {flag for group in GROUPS for test in group.tests for flag in test.flags}
    assert used == NOTES.keys()
    caught = {flag for flag in used if NOTES[flag]["kind"] == "mistake"}
    assert caught >= {
        "t_off_by_one",
        "coefficient_half",
        "mean_for_max",
        "global_max",
        "missing_square",
        "one_minus_beta_hat_omitted",
        "beta_for_beta_hat",
        "std_alpha",
        "learning_rate_twice",
        "weight_decay_coupled",
        "gradient_changed",
        "velocity_reset",
    }


@pytest.mark.parametrize(("dtype", "test"), vectors_of("coefficients"))
def test_the_core_has_the_coefficients_of_the_vectors(dtype, test):
    in_graph = coefficients(np.asarray(test.t, dtype), test.beta)  # four roundings each
    assert test.beta_hat.accepts(in_graph[0])
    assert test.one_minus_beta_hat.accepts(in_graph[1])


@pytest.mark.parametrize(("dtype", "test"), vectors_of("initial_velocity"))
def test_the_core_draws_the_velocities_of_the_vectors(dtype, test):
    first, last = test.first_element, test.first_element + test.elements
    chunks = velocity.standard_normal(first, last, seed=test.seed, index=test.index)
    z = np.concatenate([z for _, _, z in chunks])
    assert z.tobytes() == test.z.tobytes()
    assert tuple(int(word[0]) for word in velocity.tensor_key(test.seed, test.index)) == test.key
    if not first:
        v = velocity.initial_velocity(
            (last,), numpy_dtype(dtype), std=test.std, seed=test.seed, index=test.index
        )
        assert np.array_equal(v.astype(test.v.dtype), test.v)  # zeros of either sign, if σ is 0
    if test.velocity_std is None and test.learning_rate and test.alpha:
        assert test.std == hyperparameters.velocity_std(test.learning_rate, test.alpha)


@pytest.mark.parametrize(("dtype", "test"), vectors_of("threefry"))
def test_the_core_has_the_known_answers(dtype, test):
    words = [np.asarray([word], np.uint32) for word in (*test.key, *test.counter)]
    output = velocity.threefry2x32((words[0], words[1]), (words[2], words[3]))
    assert tuple(int(word[0]) for word in output) == test.output


# An independent verification: the tests' own rational arithmetic, the certified bound in
# float64, NumPy's rounding and the core's quantiles.


@pytest.mark.parametrize(("dtype", "test"), vectors_of("update", but="non_finite"))
def test_expected_values_and_tolerances_have_a_second_opinion(dtype, test):
    options = test.hyperparameters
    for i, shape in enumerate(w.shape for w in test.w):
        v, w = second_opinion.fractions(test.v[i]), second_opinion.fractions(test.w[i])
        bound = ErrorBound(test.w[i], stored=dtype)
        for steps, step in enumerate(test.steps, start=1):
            g = -step.g[i] if options.maximize else step.g[i]
            v_before, w_before = v, w
            v = second_opinion.velocity(second_opinion.fractions(g), v, step.t, options.beta)
            w = second_opinion.weights(w, v, step.learning_rate, options.weight_decay)
            for expected, x in ((step.v[i], v), (step.w[i], w)):
                assert rounded(x, dtype, shape).tobytes() == expected.value.tobytes()
            bound.step(
                step.g[i],
                *(in_float64(x, shape) for x in (v_before, v, w_before, w)),
                t=step.t,
                learning_rate=step.learning_rate,
                beta=options.beta,
                weight_decay=options.weight_decay,
            )
            for expected, x, limit in ((step.v[i], v, bound.v), (step.w[i], w, bound.w)):
                error = [
                    abs(Fraction(float(e)) - y) for e, y in zip(expected.value.flat, x, strict=True)
                ]
                want = limit + in_float64(error, shape)
                # float64 rounds as well; `ErrorBound` divides by 1 − 2u for a rounded reference.
                slack = 1 - (1 - 1e-9) * (1 - 2 * HALF_UNITS.get(dtype, 0.0)) ** steps
                assert (expected.tolerance >= want * (1 - slack)).all()
                assert (expected.tolerance <= want * (1 + 1.001e-3)).all()  # it has four digits


HALF_UNITS = {"float16": 2.0**-11, "bfloat16": 2.0**-8}


def in_float64(numbers, shape):
    return np.asarray([float(x) for x in numbers], np.float64).reshape(shape)


def rounded(numbers, dtype, shape):
    values = [float(exact.round_to(x, dtype)) for x in numbers]
    return np.asarray(values, "float32" if dtype == "bfloat16" else dtype).reshape(shape)


FORMATS = sorted(exact.FORMATS)
floats = st.floats(allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize("dtype", FORMATS)
@given(x=floats | st.floats(-70_000, 70_000, width=32) | st.floats(-1e-7, 1e-7))
def test_rounding_equals_numpys(dtype, x):
    """NumPy rounds once from float64."""
    with np.errstate(over="ignore"):
        want = float(np.float64(x).astype(numpy_dtype(dtype)))
    assert float(exact.round_to(Fraction(x), dtype)) == want


@given(n=st.integers(-(10**30), 10**30), d=st.integers(1, 10**30))
def test_rounding_to_float64_equals_pythons(n, d):
    assert float(exact.round_to(Fraction(n, d), "float64")) == n / d


@pytest.mark.parametrize("dtype", FORMATS)
@given(x=floats | st.sampled_from([float("inf"), float("-inf")]))
def test_both_notations_read_back(dtype, x):
    x = float(exact.round_to(Fraction(x) if np.isfinite(x) else x, dtype))
    assert value(hexadecimal(x)) == x == float.fromhex(hexadecimal(x))
    with np.errstate(over="ignore"):
        assert float(np.float64(decimal(x, dtype)).astype(numpy_dtype(dtype))) == x


def test_quantiles_equal_the_cores():
    ks = [0, 1, 32_767, 32_768, 65_534, 65_535, *range(17, 65_536, 131)]
    assert [float(exact.quantile(k)) for k in ks] == velocity.normal_quantiles()[ks].tolist()


@given(
    x=st.fractions(min_value=0) | floats.map(lambda x: abs(Fraction(x))),
    bound=st.fractions(min_value=0, max_value=1),
)
def test_tolerances_are_rounded_up_slightly(x, bound):
    found = exact.tolerance(x, bound, "float64")
    want = bound + abs(Fraction(float(exact.round_to(x, "float64"))) - x)
    assert want * (1 - Fraction(1, 2**52)) <= Fraction(found) <= want * Fraction(1002, 1000)


# The files


def test_the_files_are_reproduced_byte_for_byte(tmp_path):
    done = subprocess.run([*COMMAND, "--out", tmp_path / "new"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    made, shipped = contents(tmp_path / "new"), contents(files()[0].parent)
    names = {f"{name}.json" for name in writing.FILES}
    assert {file.name for file in files()} == names
    assert made.keys() == names | {*writing.COPIED, *(f"examples/{x}" for x in writing.EXAMPLES)}
    assert made == {name: shipped[name] for name in made}
    modules = {name for name in shipped.keys() - made.keys() if name.endswith((".py", ".pyc"))}
    assert shipped.keys() - made.keys() == modules  # all data and examples are written
    assert not any(name.startswith("examples/") for name in modules if "__pycache__" not in name)
    assert sum(map(len, made.values())) < 580_000


def contents(folder):
    found = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_the_files_pass_the_check():
    done = subprocess.run(
        [*COMMAND, *(part for file in files() for part in ("--check", file))],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"{file}: no fault" for file in files()]


def test_results_are_accepted_within_the_tolerance_and_non_finite_ones_only_if_equal():
    inf, nan = float("inf"), float("nan")
    expected = Expected(
        np.asarray([1, 1, 1, 1, nan, nan, inf, inf, inf, 1]),
        np.asarray([0.5, 0.5, 0.5, 0.5, 0, 0, 0, 0, 0, nan]),
    )
    got = np.asarray([1.5, 0.4, nan, inf, nan, 0, inf, -inf, nan, 7])
    want = [True, False, False, False, True, False, True, False, False, True]
    assert expected.accepts(got).tolist() == want
    assert expected.accepts(0.0).shape == (10,)


# Other implementations


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("backend", BACKENDS, ids=str)
def test_the_core_on_every_library_stays_inside_the_tolerances(backend, dtype):
    """The backends are eager and compiled; some flush subnormals or fuse operations."""
    backend.load(numpy_dtype(dtype))
    outside = []
    for group in GROUPS:
        if (group.type, group.dtype) != ("update", dtype):
            continue
        for test in group.tests:
            if backend.drops_nan and "nan_in_maximum" in test.flags:
                continue  # a documented deviation
            outside += [(group.file, test.id)] * (not updates_are_inside(test, backend, dtype))
    assert outside == []


def updates_are_inside(test, backend, dtype):
    real, options = numpy_dtype(dtype), test.hyperparameters
    for i, v in enumerate(test.v):
        v = v.astype(real)
        for step in test.steps:
            g = (-step.g[i] if options.maximize else step.g[i]).astype(real)
            t = np.asarray(step.t, "float64" if dtype == "float64" else "float32")
            v = backend.call(update, g, v, t, beta=options.beta)
            if not step.v[i].accepts(v).all():
                return False
    return True


def test_the_readme_names_every_file_and_type():
    text = (files()[0].parent / "README.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| `(\w+\.json)` \| (.*?) \|", text, re.MULTILINE))
    types = {group.file: set() for group in GROUPS}
    for group in GROUPS:
        types[group.file].add(group.type)
    assert {name: set(re.findall(r"\w+", kinds)) for name, kinds in table.items()} == types
