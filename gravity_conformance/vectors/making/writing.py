"""Write the files of the vectors: `cases`, results from `answers`, and notes, as JSON text."""

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from gravity_conformance import _output, vectors
from gravity_conformance._status import CouldNotError
from gravity_conformance.vectors.making.answers import ANSWERS, Json
from gravity_conformance.vectors.making.cases import FILES
from gravity_conformance.vectors.making.notes import NOTES

HEADER = [
    "Conformance vectors of the Gravity optimizer (arXiv 2101.09192).",
    "Expected values are exact results, rounded once. README.md explains how to use them.",
]

COPIED = ("schema.json", "results_schema.json", "README.md")
EXAMPLES = (
    *("bridge.py", "gravity.mjs", "judge.mjs"),
    *("numbers.mjs", "run_vectors.mjs", "serve.mjs"),
)


def document(name: str) -> Json:
    """Return the content of one file."""
    groups: list[Json] = []
    used: set[str] = set()
    count = 0
    for kind, dtypes, cases in FILES[name]:
        for dtype in dtypes:
            tests = []
            for test in cases(dtype):
                count += 1
                used.update(test["flags"])
                tests.append({"id": count, **ANSWERS[kind](test, dtype)})
            groups.append({"type": kind, "dtype": dtype, "tests": tests})
    return {
        "schema": "schema.json",
        "algorithm": "Gravity",
        "version": 1,
        "header": HEADER,
        "number_of_tests": count,
        "notes": {flag: note for flag, note in NOTES.items() if flag in used},
        "groups": groups,
    }


WIDTH = 100


def dump(content: Any, indent: int = 0) -> str:
    """Return JSON text with each tensor and each short value on one line."""
    line = json.dumps(content, ensure_ascii=False, allow_nan=False)
    if len(line) + indent <= WIDTH or not isinstance(content, dict | list):
        return line
    inner = list(content.values() if isinstance(content, dict) else content)
    if all(isinstance(x, list) for x in inner) or not any(
        isinstance(x, dict | list) for x in inner
    ):
        return line
    pad = " " * (indent + 1)
    if isinstance(content, list):
        parts = [dump(item, indent + 1) for item in content]
        return "[\n" + ",\n".join(pad + part for part in parts) + "\n" + " " * indent + "]"
    parts = [f"{json.dumps(key)}: {dump(item, indent + 1)}" for key, item in content.items()]
    return "{\n" + ",\n".join(pad + part for part in parts) + "\n" + " " * indent + "}"


def texts() -> dict[str, str]:
    """Return the text of every file by name: the vectors, the schemas, README.md and examples."""
    folder = resources.files(vectors)
    found = {f"{name}.json": dump(document(name)) + "\n" for name in FILES}
    for name in (*COPIED, *(f"examples/{name}" for name in EXAMPLES)):
        found[name] = (folder / name).read_text(encoding="utf-8")
    return found


def write(out: Path, *, force: bool = False) -> list[Path]:
    """Write all files to a folder, all of them or none, and return their paths.

    Args:
        out: the folder.
        force: whether the folder may hold other things, of which those of the same names are
            replaced.

    Raises:
        CouldNotError: if one of the files is a link; without `force`, if the folder holds anything
            else than these files.
        OSError: if they cannot be written.
    """
    names = {*(f"{name}.json" for name in FILES), *COPIED, *(f"examples/{x}" for x in EXAMPLES)}
    if not force:
        _refuse(out, next(_others(out, names), None))
    _output.check_no_links("--out", out, sorted(names))
    _output.checked(("--out", out / name) for name in sorted(names))
    contents = {out / name: text.encode("utf-8") for name, text in texts().items()}
    if not force:
        changed = (p for p, data in contents.items() if p.exists() and p.read_bytes() != data)
        _refuse(out, next(changed, None))
    _output.write(contents)
    return list(contents)


def _others(out: Path, names: set[str]) -> Iterator[Path]:
    """Return what is in a folder beside the files and what a killed write left of them."""
    for path in out.rglob("*") if out.is_dir() else ():
        known = path.relative_to(out).as_posix() in {*names, "examples"}
        if not known and not path.name.startswith(".gravity-"):
            yield path


def _refuse(out: Path, found: Path | None) -> None:
    if found is not None:
        raise CouldNotError(
            f"--out must be a new folder or one that holds these files alone, got {str(out)!r}, "
            f"which holds {str(found.relative_to(out))!r}; --force writes there all the same"
        )
