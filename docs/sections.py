"""Replace a generated section of a page, between its two comments."""

import re
from pathlib import Path


def with_section(text: str, name: str, content: str, page: str) -> str:
    """Return the text of a page with new content between `<!-- name: … -->` and `<!-- /name -->`.

    Raises:
        SystemExit: unless the page has exactly one such section.
    """
    marked = re.compile(rf"(<!-- {name}: .*? -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    new, count = marked.subn(lambda found: f"{found[1]}\n{content.strip()}\n\n{found[2]}", text)
    if count != 1:
        raise SystemExit(f"{page} must have one section {name!r} between two comments, got {count}")
    return new


def write_section(page: Path, name: str, content: str) -> None:
    """Replace the section in a file."""
    text = with_section(page.read_text(encoding="utf-8"), name, content, page.name)
    page.write_text(text, encoding="utf-8")
