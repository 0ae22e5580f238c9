"""The protocol of the comparison: what chooses a rate, what is reported, and how it is judged."""

import itertools
import math

import numpy as np
import pytest

from benchmarks.compare import analysis, protocol
from benchmarks.compare.optimizers import OPTIMIZERS, Optimizer, Tensors, sgd
from benchmarks.compare.problems import VALUE, WRONG, Problem
from benchmarks.compare.protocol import EVALUATIONS, FRESH, Plan

STEPS = 50
TINY = Plan(rates=4, tuning_seeds=2, seeds=3, steps=1.0)


class Bowl:
    """½ x² from x = 1, which says who reads a split, and has another error on test."""

    def __init__(self, seed, read, test=0.0):
        x = np.ones(1)
        self.weights = Tensors(x, [x])
        self._seed, self._read, self._test = seed, read, test

    def gradient(self):
        x = self.weights.flat
        return float(0.5 * x[0] * x[0]), Tensors(x.copy(), [x.copy()])

    def score(self, split):
        self._read.append((self._seed, split))
        error = float(abs(self.weights.flat[0]))
        return (self._test - error if split == "test" else error), error


def bowl(read, **options):
    return Problem("bowl", VALUE, STEPS, 1e-2, lambda seed: Bowl(seed, read, **options))


def plain(low, high):
    return Optimizer("SGD", sgd, (low, high), default=low)


def test_rates_are_one_in_each_part_of_the_range():
    rates = protocol.stratified(1e-3, 10.0, 16)
    parts = [math.floor(4 * (math.log10(rate) + 3)) for rate in rates]
    assert parts == list(range(16))
    assert all(rate == float(f"{rate:.2e}") for rate in rates)  # three digits
    assert rates == protocol.stratified(1e-3, 10.0, 16)


def test_tuning_reads_validation_only_and_the_report_reads_test_once():
    read = []
    # On test, the rates that are worst on validation would be best.
    found = protocol.cell(bowl(read, test=10.0), plain(1e-3, 1.0), TINY)
    tuning = {(seed, split) for seed, split in read if seed < FRESH}
    assert tuning == {(0, "validation"), (1, "validation")}
    tests = [seed for seed, split in read if split == "test"]
    assert tests == 2 * [FRESH, FRESH + 1, FRESH + 2]  # tuned, and untuned
    errors = {t["rate"]: protocol.mean_score(t["runs"])[0] for t in found["tuning"]}
    assert found["rate"] == min(errors, key=errors.get)
    assert found["untuned"][0]["seed"] == FRESH
    assert [run["test"] for run in found["tuned"]] != [run["test"] for run in found["untuned"]]


def attempts(error):
    """Return a function that tries a rate, and the rates that it has tried."""
    tried = []

    def attempt(rate):
        tried.append(rate)
        return [{"start": [1.0, 1.0], "validation": [error(rate), 0.0]}]

    return attempt, tried


@pytest.mark.parametrize("best", [1e-4, 0.1, 40.0])
def test_the_range_grows_until_the_best_rate_is_inside(best):
    attempt, tried = attempts(lambda rate: abs(math.log10(rate / best)) / 10)
    found = protocol.tuned(attempt, 1e-3, 10.0, 16)
    assert not found["at_edge"]
    assert abs(math.log10(found["rate"] / best)) < 0.25  # half of two parts of a quarter decade
    assert [t["rate"] for t in found["tuning"]] == sorted(tried)
    inside = [rate for rate in tried if 1e-3 <= rate <= 10]
    assert len(inside) == 16
    assert (len(tried) > 16) == (best != 0.1)
    grown = [rate for rate in tried if rate not in inside]
    assert all((rate < 1e-3) == (best < 1e-3) for rate in grown)


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_range_grows_by_two_decades_at_most(sign):
    attempt, tried = attempts(lambda rate: 0.5 - 0.01 * sign * math.log10(rate))
    found = protocol.tuned(attempt, 1e-3, 10.0, 16)
    assert found["at_edge"]
    assert found["rate"] == (max(tried) if sign > 0 else min(tried))
    beyond = math.log10(max(tried) / 10) if sign > 0 else math.log10(1e-3 / min(tried))
    assert 1.75 < beyond <= 2
    assert len(tried) == 24  # as dense as before


def test_errors_decide_before_divergence_and_divergence_before_losses():
    def score(*runs):
        return protocol.mean_score([{"start": [1.0, 9.0], "validation": run} for run in runs])

    assert score([0.1, 8.0], [0.1, 8.0]) < score([0.2, 0.0], [0.2, 0.0])
    assert score([0.1, 0.5]) < score([0.1, 0.6])
    assert score([1.0, 9.0]) < score([None, None])
    assert score([5.0, 9.0]) == score([1.0, 9.0])  # not worse than the start


def test_a_run_that_diverges_ends_and_counts_as_its_start():
    read = []
    found = protocol.run(bowl(read), plain(1e-3, 1.0), 1e200, 5, STEPS)
    assert found["validation"] == found["test"] == [None, None]
    assert len(found["curve"]) == EVALUATIONS + 1
    assert found["curve"][0] == 1.0
    assert found["curve"][-1] is None
    assert (5, "test") not in read
    summary = analysis.summary([found] * 2, 1e-2, STEPS)
    assert summary["median"] == 1.0
    assert (summary["diverged"], summary["reached"], summary["of"]) == (2, 0, 2)


def test_curves_have_an_error_after_each_25th_of_the_steps():
    rate = 0.1
    found = protocol.run(bowl([]), plain(1e-3, 1.0), rate, 0, STEPS)
    expected = [(1 - rate) ** n for n in range(0, STEPS + 1, STEPS // EVALUATIONS)]
    np.testing.assert_allclose(found["curve"], expected, rtol=STEPS * 2**-52)
    # 0.9 ** 44 is the first power below 0.01 at an even number of steps.
    assert analysis.steps_to(1e-2, found, STEPS) == 44
    assert analysis.steps_to(1e-3, found, STEPS) is None


def runs(*curves):
    """Return runs whose errors on test are those at the end of their curves."""
    return [
        {
            "seed": FRESH + i,
            "start": [1.0, 1.0],
            "curve": [1.0, *curve],
            "validation": [curve[-1], curve[-1]],
            "test": [curve[-1], curve[-1]],
        }
        for i, curve in enumerate(curves)
    ]


def flat(*errors):
    return runs(*([e] * EVALUATIONS for e in errors))


def test_misses_count_as_slower_than_every_hit():
    missed, hit, late = [0.5] * 25, [0.1] * 25, [0.5] * 20 + [0.1] * 5
    steps = [
        analysis.summary(runs(*some), 0.2, 100) for some in ([hit, late, missed], [hit, missed])
    ]
    assert [s["steps_to_target"] for s in steps] == [84, None]
    assert [(s["reached"], s["of"]) for s in steps] == [(2, 3), (1, 2)]


def cell(tuned, untuned, tuning=((0.1, 0.5), (1.0, 0.2))):
    listed = [{"rate": r, "runs": [{"start": [1.0, 1.0], "validation": [e, e]}]} for r, e in tuning]
    return {
        "steps": 100,
        "rate": 1.0,
        "at_edge": False,
        "tuning": listed,
        "tuned": tuned,
        "untuned": untuned,
    }


def test_the_report_names_the_best_and_its_ties():
    errors = [0.10, 0.12, 0.14, 0.16, 0.18]
    slightly = [0.11, 0.11, 0.15, 0.16, 0.17]  # better and worse by turns
    cells = {
        "adam": cell(flat(*slightly), flat(*[0.9] * 5)),
        "sgd": cell(flat(*errors), flat(*[0.9] * 5)),
        "momentum": cell(flat(*(e + 0.05 for e in errors)), flat(*[0.9] * 5)),
    }
    problem = Problem("p", WRONG, 100, 0.15, lambda seed: None)
    found = analysis.problem_report(problem, cells)
    assert found["best"] == "sgd"
    ties = {name: result["ties_with_best"] for name, result in found["results"].items()}
    assert ties == {"sgd": True, "adam": True, "momentum": False}
    tuned = found["results"]["sgd"]["tuned"]
    assert (tuned["median"], tuned["quartiles"]) == (0.14, [0.12, 0.16])
    low, high = tuned["interval"]
    assert 0.10 <= low < 0.14 < high <= 0.18
    assert found["results"]["sgd"]["untuned"]["median"] == 0.9
    # On the way from 1 to 0.14.
    progress = found["results"]["momentum"]["tuned"]["progress"]
    assert math.isclose(progress, (1 - 0.19) / (1 - 0.14))
    assert found["results"]["sgd"]["tuned"]["progress"] == 1.0
    assert math.isclose(found["results"]["sgd"]["untuned"]["progress"], 0.1 / 0.86)


def test_values_that_are_rounding_errors_tie():
    untuned = flat(*[1.0] * 5)
    cells = {
        "sgd": cell(flat(*[1e-20] * 5), untuned),
        "adam": cell(flat(*[1e-40] * 5), untuned),
        "momentum": cell(flat(*[1e-10] * 5), untuned),
    }
    problem = Problem("p", VALUE, 100, 1e-3, lambda seed: None)
    results = analysis.problem_report(problem, cells)["results"]
    ties = {name: result["ties_with_best"] for name, result in results.items()}
    assert ties == {"sgd": True, "adam": True, "momentum": False}
    assert [r["tuned"]["progress"] for r in results.values()] == [1.0, 1.0, 10 / 16]


def test_sensitivity_counts_the_decades_of_rates_that_work():
    tuning = [(10.0**k, e) for k, e in zip(range(-3, 2), (1.0, 0.27, 0.2, 0.29, 1.0), strict=True)]
    problem = Problem("p", WRONG, 100, 0.15, lambda seed: None)
    found = analysis.problem_report(problem, {"sgd": cell(flat(0.2, 0.2), flat(0.9, 0.9), tuning)})
    # Errors up to 1 − 0.9 (1 − 0.2) = 0.28 have nine tenths of the best progress.
    assert found["results"]["sgd"]["decades"] == 2.0


def test_the_profile_is_the_share_of_problems_within_a_factor():
    def problem(**steps):
        return {"results": {o: {"tuned": {"steps_to_target": s}} for o, s in steps.items()}}

    problems = {
        "a": problem(sgd=10, adam=20),
        "b": problem(sgd=None, adam=30),
        "c": problem(sgd=None, adam=None),
        "d": problem(sgd=80, adam=10),
    }
    found = analysis.profile(problems, ["sgd", "adam"])
    shares = {o: dict(zip(found["factors"], s, strict=True)) for o, s in found["shares"].items()}
    assert shares["adam"][1.0] == 0.5
    assert shares["adam"][2.0] == shares["adam"][10.0] == 0.75
    assert shares["sgd"][1.0] == 0.25
    assert shares["sgd"][7.94] == 0.25
    assert shares["sgd"][10.0] == 0.5


def test_a_budget_scales_rates_seeds_and_steps():
    assert protocol.FULL.scaled(1.0) == protocol.FULL == Plan(16, 2, 10, 1.0)
    assert protocol.FULL.scaled(0.25) == Plan(8, 1, 5, 0.5)
    assert protocol.FULL.scaled(1e-6) == Plan(4, 1, 2, 1e-3)
    assert protocol.FULL.scaled(4.0) == Plan(32, 4, 20, 2.0)
    assert protocol.SMALL.seeds >= 5
    problem = Problem("p", WRONG, 300, 0.1, lambda seed: None)
    assert [protocol.FULL.scaled(b).steps_of(problem) for b in (1.0, 0.25, 1e-6)] == [300, 150, 25]


def test_a_study_tries_the_ordinary_rate_under_every_setting():
    class Scaled(Bowl):
        def __init__(self, seed, loss_scale):
            super().__init__(seed, [])
            self._scale = loss_scale

        def gradient(self):
            loss, gradient = super().gradient()
            flat = self._scale * gradient.flat
            return loss, Tensors(flat, [flat])

    study = protocol.STUDIES["loss-scale"]._replace(settings=(0.1, 1, 10))
    problem = Problem("bowl", VALUE, STEPS, 1e-2, lambda seed, **option: Scaled(seed, **option))
    found = protocol.study_cell(study, problem, plain(1e-3, 10.0), TINY)
    little, ordinary, much = found["cells"]
    assert little["rate"] > ordinary["rate"] > much["rate"]
    assert ordinary["tuned"] == ordinary["ordinary"]
    ends = [c["ordinary"][0]["validation"][0] for c in found["cells"]]
    # |1 − η s| to the power of the steps; a distance above 1 diverges or grows.
    rate = ordinary["rate"]
    assert math.isclose(ends[0], abs(1 - 0.1 * rate) ** STEPS, rel_tol=1e-12)
    assert ends[2] is None or ends[2] > 1


@pytest.mark.parametrize("settings", [s.settings for s in protocol.STUDIES.values()])
def test_studies_contain_their_ordinary_setting(settings):
    study = next(s for s in protocol.STUDIES.values() if s.settings == settings)
    assert study.ordinary in settings
    assert list(settings) == sorted(settings)
    assert all(b > a for a, b in itertools.pairwise(settings))


def test_every_optimizer_makes_a_cell():
    for name, optimizer in OPTIMIZERS.items():
        found = protocol.cell(bowl([]), optimizer, Plan(4, 1, 2))
        end = [run["validation"][0] for run in found["tuned"]]
        assert max(end) < 0.5, name
