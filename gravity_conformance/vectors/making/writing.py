"""Write the files of the vectors: `cases`, results from `answers`, and notes, as JSON text."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

from gravity_conformance import vectors
from gravity_conformance.vectors.making.answers import ANSWERS, Json
from gravity_conformance.vectors.making.cases import FILES
from gravity_conformance.vectors.making.notes import NOTES

HEADER = [
    "Conformance vectors of the Gravity optimizer (arXiv 2101.09192).",
    "Expected values are exact results, rounded once. README.md explains how to use them.",
]

COPIED = ("schema.json", "results_schema.json", "README.md")
EXAMPLES = ("bridge.py", "gravity.mjs", "numbers.mjs", "run_vectors.mjs", "serve.mjs")


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


def write(out: Path) -> list[Path]:
    """Write all files to a folder and return their paths."""
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, text in texts().items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(text, encoding="utf-8", newline="\n")
        paths.append(out / name)
    return paths
