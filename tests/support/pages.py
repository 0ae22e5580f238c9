"""The code blocks of the documentation's pages, and the fences of Sphinx's directives."""

import importlib.util
import re
from typing import NamedTuple

FENCE = re.compile(
    r"(?:^<!-- needs: (?P<needs>[\w, .]+?)(?P<alone>; alone)? -->\n+)?"
    r"^```(?P<language>\w*|\{[\w-]+\}.*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """One ```python block; with the mark `needs: above`, after the marked blocks above it."""

    code: str
    line: int
    needs: tuple[str, ...]
    alone: bool = False  # it configures the framework for the whole process


def python_blocks(text: str) -> list[Block]:
    blocks: list[Block] = []
    for match in FENCE.finditer(text):
        if match["language"] != "python":
            continue
        code, needs = match["code"], tuple(re.findall(r"[\w.]+", match["needs"] or ""))
        if needs[:1] == ("above",):
            above = [block for block in blocks if block.needs][-1]
            code, needs = above.code + code, above.needs
        line = text.count("\n", 0, match.start("code"))
        blocks.append(Block(code, line, needs, alone=bool(match["alone"])))
    return blocks


def is_there(module: str) -> bool:
    """Return whether a module is installed. At most its parent package is imported."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # the parent package is missing
        return False
    return spec is not None and spec.origin is not None  # None: a folder without code
