"""Code that misbehaves, and odd environments: no verdict of `gravity conform` depends on them."""

import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from gravity_conformance.conform import runner
from tests.hostile import environments, misbehaving
from tests.hostile.running import Case, repeat


def _deck(names: list[str], random: Random) -> Iterator[str]:
    """Return all names in random order, again and again."""
    while True:
        yield from random.sample(names, len(names))


def misbehaving_cases(random: Random, folder: Path) -> Iterator[Case]:
    """Return functions that are right but for one act, without end."""
    acts = misbehaving.ACTS
    path = folder / "odd.py"
    for name in _deck(
        [n for n, act in acts.items() if os.name == "posix" or not act.posix], random
    ):

        def attempt(name: str = name) -> str:
            path.write_text(misbehaving.function(name), encoding="utf-8")
            (found,) = runner.conform(f"{path}:step", level="quick", only=["update"]).results
            if acts[name].outcome == misbehaving.RIGHT:
                assert found.outcome == "pass", found
                return "right"
            assert found.outcome == "error", found
            assert re.search(acts[name].outcome, found.note), found
            return "reported"

        yield Case("misbehaving function", name, attempt)


def environment_cases(random: Random, folder: Path) -> Iterator[Case]:
    """Return environments for a right and a wrong function, without end."""
    path = folder / "even.py"
    wrong = "def wrong(w, v, g, t, lr, beta):\n    return right(w, v, g, t, lr, 0.5)\n"
    path.write_text(misbehaving.RIGHT_FUNCTION.replace("{act}", "pass") + wrong, encoding="utf-8")
    for name in _deck(list(environments.ENVIRONMENTS), random):
        function, status = random.choice([("right", 0), ("wrong", 1)])
        chosen = environments.ENVIRONMENTS[name]

        def attempt(chosen: Any = chosen, function: str = function, status: int = status) -> str:
            words = ["-m", "gravity_conformance", "conform", f"even.py:{function}"]
            words += ["--only", "update", "--quick", "--json", "report.json"]
            (folder / "report.json").unlink(missing_ok=True)
            done = environments.run(words, chosen, folder)
            assert done.returncode == status, done.stdout + done.stderr
            report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
            assert [row["outcome"] for row in report["results"]] == [["pass"], ["differs"]][status]
            return "the same verdict"

        yield Case("environment", f"{name}, {function}", attempt)


def run(random: Random, folder: Path, **limits: Any) -> Counter[str]:
    """Try both in turn until a limit of `running.repeat`."""
    kinds = misbehaving_cases(random, folder), environment_cases(random, folder)
    return repeat(itertools.chain.from_iterable(zip(*kinds, strict=False)), **limits)
