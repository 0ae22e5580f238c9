"""Write the explorable page as one file that needs no network and no server.

    python docs/explore/build.py OUT.html

Guarantee: the file has the text of every module as it is in the repository, but for `import` and
`export`: a module becomes a function that returns its exports, because browsers import no modules
from disk. It also has the conformance vectors, without their hexadecimal floats and half types.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
VECTORS = HERE.parents[1] / "gravity_conformance" / "vectors"

IMPORT = re.compile(
    r'^import (?:\* as (?P<all>\w+)|(?P<some>\{[^}]*\})) from "(?P<path>[^"]+)";\n', re.M
)
COURSE = re.compile(r'<a href="\.\./course/index\.html">(.*?)</a>', re.S)
EXPORT = re.compile(r"^export (?=(?:async )?(?:const|function) (?P<name>\w+))", re.M)


def modules(path: Path, known: dict[Path, str]) -> dict[Path, str]:
    """Add the module, after those that it imports, to `known`: the JavaScript text of each."""
    path = path.resolve()
    if path in known:
        return known
    text = path.read_text(encoding="utf-8")
    for match in IMPORT.finditer(text):
        modules(path.parent / match["path"], known)
    names = ", ".join(match["name"] for match in EXPORT.finditer(text))
    body = IMPORT.sub(lambda m: f"const {m['all'] or m['some']} = {m_name(m['path'])};\n", text)
    body = EXPORT.sub("", body)
    if re.search(r"^(import|export)\b", body, re.M):
        raise SystemExit(f"build.py cannot read an import or export of {path.name}")
    known[path] = f"const {m_name(path.name)} = (() => {{\n{body}return {{ {names} }};\n}})();\n"
    return known


def m_name(path: str) -> str:
    """Return the name of a module in the built page."""
    return f"module_{Path(path).stem}"


def without_bits(value: Any) -> Any:
    """Return the JSON without hexadecimal floats, comments and flags."""
    if isinstance(value, dict):
        left_out = {"hex", "comment", "flags", "notes"}
        return {k: without_bits(v) for k, v in value.items() if k not in left_out}
    return [without_bits(each) for each in value] if isinstance(value, list) else value


def vectors() -> str:
    """Return the vectors as JSON: pairs of a file's name and its object."""
    files = []
    for path in sorted(VECTORS.glob("*.json")):
        groups = json.loads(path.read_text(encoding="utf-8")).get("groups", [])
        groups = [group for group in groups if group["dtype"] in ("uint32", "float32", "float64")]
        files.append([path.name, {"groups": without_bits(groups)}])
    return json.dumps(files, ensure_ascii=False, separators=(",", ":"))


def page(in_site: bool = False) -> str:
    """Return the page. Its link to the course is a link in the site only."""
    text = (HERE / "index.html").read_text(encoding="utf-8")
    style = (HERE / "style.css").read_text(encoding="utf-8")
    script = "\n".join(modules(HERE / "page.mjs", {}).values())
    parts = {
        '<link rel="stylesheet" href="style.css">': f"<style>\n{style}</style>",
        ' src="page.mjs"></script>': f">\n{script}</script>",
        "[]</script>": f"{vectors()}</script>",
    }
    for old, new in parts.items():
        before, after = text.split(old)  # exactly once
        text = before + new + after
    return text if in_site else COURSE.sub(r"\1", text)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python docs/explore/build.py OUT.html")
    out = Path(sys.argv[1])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(), encoding="utf-8", newline="\n")
