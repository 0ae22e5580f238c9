"""The sentence that says what a report proves."""

from gravity_conformance.conform.checks.inputs import NO_BFLOAT16
from gravity_conformance.conform.checks.registry import CHECKS
from gravity_conformance.conform.runner import Report
from gravity_conformance.mutations import COARSE


def sentence(report: Report) -> str:
    """Return the verdict: "conforms in float32 and float64; float16 and bfloat16: not offered"."""
    if report.error is not None:
        return f"could not run: {report.error}"
    outcomes: list[str] = [result.outcome for result in report.results]
    if report.status:
        bad = ["differs", "error", *(["remark"] if report.strict else [])]
        counts = [f"{what} in {outcomes.count(what)}" for what in bad if what in outcomes]
        text = "does not conform" if report.status == 1 else "could not run"
        named = [_explained(report, mistake) for mistake in report.diagnoses]
        found = ", ".join(counts) or "nothing to judge in any"
        return "; ".join([f"{text}: {found} of {_checks(outcomes)}", *named])
    right = ["float32", *(["float64"] if _of(report, "float64") == "right" else [])]
    text = f"conforms in {' and '.join(right)}"
    if any(name not in {result.check for result in report.results} for name in CHECKS):
        text += f", as far as {_checks(outcomes)} can show"
    others: dict[str, list[str]] = {}
    for dtype in ("float64", "float16", "bfloat16"):
        if dtype not in right and (what := _of(report, dtype)) is not None:
            others.setdefault(what, []).append(dtype)
    parts = [f"{' and '.join(names)}: {what}" for what, names in others.items()]
    return "; ".join([text, *parts])


def _explained(report: Report, mistake: str) -> str:
    """Return a mistake, and in how many of the checks that differ it is named, if not in all."""
    wrong = [result for result in report.results if result.outcome == "differs"]
    named = sum(result.diagnosis == mistake for result in wrong)
    return mistake if named == len(wrong) else f"{mistake} (in {named} of {len(wrong)} that differ)"


def _checks(outcomes: list[str]) -> str:
    return f"{len(outcomes)} check{'s' * (len(outcomes) != 1)}"


def _of(report: Report, dtype: str) -> str | None:
    """Return what the checks found in a dtype, or None if none of them ran."""
    result = next((r for r in report.results if r.check == dtype), None)
    if result is None:
        return None
    if result.outcome == "pass":
        return "right" if dtype == "float64" else "computed in float32 and rounded once"
    if result.outcome == "remark" and result.note.startswith(COARSE.description):
        return "computed in half precision"
    return "not checked, " + result.note if result.note == NO_BFLOAT16 else "not offered"
