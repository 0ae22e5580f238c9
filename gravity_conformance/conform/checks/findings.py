"""The result of a check, and the judge that turns a trial into one."""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from gravity_conformance._guard import ANYTHING, one_line
from gravity_conformance.conform.checks.subject import OPTIONAL, Subject
from gravity_conformance.conform.judge.compare import Verdict, compare, worst
from gravity_conformance.conform.judge.diagnosis import diagnose, how_tolerated, refuted
from gravity_conformance.conform.judge.perform import perform_in_turn
from gravity_conformance.conform.judge.trial import Case, Run, Trial
from gravity_conformance.mutations import COARSE, MUTATIONS, REFERENCE

Outcome = Literal["pass", "differs", "error", "remark", "not applicable"]


_MANY = 8  # tensors; of more, only the smallest ones that differ are diagnosed
_LONGEST = 2**21  # elements for which all mistakes are simulated
_LARGE = 4_096  # elements; of the smallest ones, only the first may be larger


@dataclass
class Finding:
    """The outcome of one check.

    Attributes:
        outcome: pass, differs, error, not applicable, or remark: it refuses what is not the
            algorithm itself, or gives it less than this project does.
        note: what the check recognised, or why it could not run.
        worst: the greatest error, in u·S.
        first: a description of the first differing element.
        diagnosis: the known mistake that explains the difference.
        plot: the curves of a trajectory by name: the deviation of W and its bound after each step,
            and the first element of three tensors.
    """

    outcome: Outcome
    note: str = ""
    worst: float | None = None
    first: str | None = None
    diagnosis: str | None = None
    plot: dict[str, list[float]] = field(default_factory=dict)


def joined(*notes: str) -> str:
    """Return the notes that say something as one."""
    return "; ".join(filter(None, notes))


def first_wrong(findings: Iterable[Finding]) -> Finding:
    """Return the first finding that is neither a pass nor "not applicable".

    If all pass, or some are not applicable, return one pass with the greatest error and all notes.
    If none is applicable, return the last one. An iterator makes each finding when it is asked
    for, so nothing is judged after the first wrong one.
    """
    result = None
    for finding in findings:
        if finding.outcome not in ("pass", "not applicable"):
            return finding
        if result is None or result.outcome != "pass":
            result = finding
        elif finding.outcome == "pass":
            note = result.note if finding.note in result.note else joined(result.note, finding.note)
            result = Finding("pass", note, max(result.worst or 0.0, finding.worst or 0.0))
    return result or Finding("pass")


class Judge:
    """Judges the runs of one implementation.

    Attributes:
        subject: the implementation.
        touched: the finding on the first gradient that a check overwrote, or None.
        findings: those of the checks that ran, by name.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.touched: Finding | None = None
        self.findings: dict[str, Finding] = {}
        self._certain: set[str] = set()  # each was the only mistake that explained some check

    def passes(self, name: str, check: "Callable[[Subject, Judge], Finding]") -> bool:
        """Tell whether a check passes; it may not have run."""
        if name not in self.findings:
            try:
                self.findings[name] = check(self.subject, self)
            except ANYTHING as error:
                self.findings[name] = Finding("error", one_line(error))
        return self.findings[name].outcome == "pass"

    def observe(self, case: Case) -> Trial:
        """Feed a case to the implementation, and note whether it overwrote a gradient."""
        run = self.subject.run(case)
        self.touched = self.touched or touched(case, run)
        return Trial(case, run, self.subject.first_step)

    def in_turn(self, cases: Sequence[Case], *, shared: bool) -> list[Trial]:
        """Feed several cases step by step in turn, to one optimizer or to one each."""
        subject = self.subject
        how = {"at_rest": subject.at_rest, "hidden": subject.hidden, "shared": shared}
        runs = perform_in_turn(subject.driver, cases, **how)
        return [Trial(case, run, subject.first_step) for case, run in zip(cases, runs, strict=True)]

    def judge(self, case: Case, note: str = "", *, plot: bool = False) -> Finding:
        """Feed a case to the implementation, and judge every step; `note` is for what differs."""
        return self.found(self.observe(case), note, plot=plot)

    def found(
        self, trial: Trial, note: str = "", *, what: str = "VW", plot: bool = False
    ) -> Finding:
        """Return the finding on a trial: how it compares with the exact update.

        A pass has a note if an accepted variant explains it. `note` is for what differs.
        """
        verdict = compare(trial, what=what)
        finding = Finding("pass", "", worst(trial))
        if not verdict.inside:
            injects_beta = self.subject.injects_beta
            if (tolerated := how_tolerated(trial, injects_beta=injects_beta)) is not None:
                finding.note = tolerated
            else:
                finding.outcome, finding.note, finding.first = "differs", note, verdict.first
                passed = None
                sizes = [w.size for w in trial.case.weights]
                if len(sizes) > _MANY or sum(sizes) > _LONGEST:
                    wrong = sorted(verdict.wrong, key=lambda i: trial.size(i))
                    every = len(sizes)
                    shapes = list(dict.fromkeys(trial.case.weights[i].shape for i in wrong))
                    verb = "differs" if len(wrong) == 1 else "differ"
                    finding.note = f"{len(wrong)} of {every} tensors {verb}, of shapes "
                    finding.note += ", ".join(map(str, shapes[:_MANY]))
                    small = [i for i in wrong[1:_MANY] if trial.size(i) <= _LARGE]
                    right = (i for i in range(every) if i not in verdict.wrong)
                    fine = [i for i in right if trial.size(i) <= _LARGE][:_MANY]
                    passed = trial.only(fine) if fine else None
                    trial = trial.only([*wrong[:1], *small])
                mistakes = diagnose(trial, what=what).distinct if trial.size(0) <= _LONGEST else []
                if passed is not None:  # a mistake may affect only some tensors, but is no other
                    mistakes = [m for m in mistakes if not refuted(m, passed)]
                finding.diagnosis = self.named(mistakes)
        elif what != "V" and any(
            d > b for d, b in zip(verdict.deviation, verdict.bound, strict=True)
        ):
            return Finding("error", "inside the bound by element, and outside of it as a whole")
        if plot:
            finding.plot = _plot(trial, verdict)
        return finding

    def named(self, mistakes: list[str]) -> str | None:
        """Return the mistakes as one diagnosis.

        Of several, it names those that were the only mistake in some check, if there are any.
        """
        if COARSE.description in mistakes and not self._right_in_float32:
            mistakes = [m for m in mistakes if m != COARSE.description]
        if len(mistakes) == 1:
            self._certain.update(mistakes)
        return " or ".join([m for m in mistakes if m in self._certain] or mistakes) or None

    @functools.cached_property
    def _right_in_float32(self) -> bool:
        """Whether a trajectory in float32 is right. Only then can a half type be the mistake."""
        weights, gradients = self.subject.normal(20, seed=28)
        return compare(self.observe(Case(weights, gradients, self.subject.options()))).inside


def touched(case: Case, run: Run) -> Finding | None:
    """Return the finding on the first gradient that a step overwrote, or None."""
    for step, (grads, left) in enumerate(zip(case.gradients, run.left, strict=True), start=1):
        for i, (g, after) in enumerate(zip(grads, left, strict=True)):
            if g.tobytes() == after.tobytes():
                continue
            differs = np.argwhere(~((g == after) | (np.isnan(g) & np.isnan(after))))
            k = tuple(int(n) for n in differs[0]) if len(differs) else (0,) * g.ndim
            where = f"gradient of tensor {i} after step {step}, element {list(k)}"
            known = [m for m in MUTATIONS if m.left is not REFERENCE.left and len(differs)]
            with np.errstate(all="ignore"):
                mistakes = [m.description for m in known if np.allclose(m.left(g), after, atol=0)]
            asked = [name.replace("_", " ") for name in OPTIONAL if case.options.get(name)]
            when = f"with {' and '.join(asked)}" if asked else ""
            diagnosis = " or ".join(mistakes) or "gradient overwritten"
            first = f"{where}: {float(after[k]):.17g}, not {float(g[k]):.17g}"
            return Finding("differs", when, None, first, diagnosis)
    if run.fault is not None:
        first = f"a step {run.fault}"
        return Finding("differs", "", None, first, "inputs overwritten")
    return None


def _plot(trial: Trial, verdict: Verdict) -> dict[str, list[float]]:
    curves = {"deviation": verdict.deviation, "bound": verdict.bound}
    for name, run in (("implementation", trial.run), ("reference", trial.exact)):
        for i in range(3):
            curves[f"{name} {i}"] = [float(w[i].reshape(-1)[0]) for _, w in run.states]
    return curves
