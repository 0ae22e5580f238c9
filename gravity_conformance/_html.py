"""The pages of all reports: one style, one file each.

Guarantees: a page needs no other file and no network; its Content-Security-Policy forbids both. It
contains no script, and every text in it is escaped. It is readable on a phone and in the dark.
"""

from collections.abc import Iterable, Sequence
from html import escape

import gravity_core
from gravity_conformance._guard import visible
from gravity_conformance._output import Line, Part, Table, mood

# It fetches nothing and runs nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1c1e21; --faint: #5c6370; --line: #d0d4da;
  --code: #f0f1f3; --good: #17692c; --good-back: #e3f4e7; --bad: #a31515; --bad-back: #fbe4e4 }
@media (prefers-color-scheme: dark) {
  :root { --back: #16181c; --text: #e4e6ea; --faint: #a0a7b4; --line: #3c414a; --code: #262a31;
    --good: #7fd696; --good-back: #14301c; --bad: #ff9d94; --bad-back: #421a1a } }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; background: var(--back); color: var(--text);
  max-width: 76rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere }
h1 { font-size: 1.6rem; line-height: 1.25 } h2 { font-size: 1.2rem; margin-top: 2rem }
code { background: var(--code); padding: .1rem .3rem; border-radius: .2rem }
ul { padding-left: 1.2rem }
.verdict { padding: .6rem .9rem; border-radius: .4rem; border-left: .3rem solid; font-weight: 600 }
.verdict.good { color: var(--good); background: var(--good-back) }
.verdict.bad { color: var(--bad); background: var(--bad-back) }
.faint { color: var(--faint) }
.wide { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal;
  font-size: .9rem }
th, td { padding: .3rem .7rem; text-align: left; vertical-align: top; white-space: nowrap;
  border-bottom: 1px solid var(--line) }
th { color: var(--faint) }
td.good { color: var(--good) } td.bad { color: var(--bad); font-weight: 600 }
.long td:last-child { white-space: normal; overflow-wrap: anywhere; min-width: 20rem }
@media (max-width: 48rem) {
  .long, .long tbody, .long tr, .long td:last-child { display: block; min-width: 0 }
  .long th { display: none } .long tr { padding: .4rem 0; border-bottom: 1px solid var(--line) }
  .long td { display: inline-block; border: 0; padding: 0 .8rem 0 0 }
  .long td:first-child { font-weight: 600 } .long td:last-child:empty { display: none } }
.plots { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)) }
figure { margin: 0; background: #fff; border: 1px solid var(--line); border-radius: .4rem;
  padding: .4rem }
figure svg { display: block; width: 100%; height: auto }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """Return a page with a title, which is text, and parts, which are HTML."""
    return visible(
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n",
        keep="\n\t",
    )


def render(part: Part) -> str:
    """Return a part of a report as HTML."""
    return paragraph(part) if isinstance(part, Line) else table(part)


def paragraph(line: Line) -> str:
    """Return a line as a paragraph; a line with a mood stands out."""
    if line.mood:
        return f'<p class="verdict {line.mood}">{escape(line.text)}</p>'
    return f"<p>{escape(line.text)}</p>"


def table(content: Table) -> str:
    """Return a table, which scrolls by itself where the screen is narrow."""
    title = f"<h2>{escape(content.title)}</h2>\n" if content.title else ""
    rows = [f"<tr>{''.join(f'<th>{escape(name)}</th>' for name in content.header)}</tr>"]
    rows += [f"<tr>{''.join(map(_cell, row))}</tr>" for row in content.rows]
    kind = ' class="long"' if content.long else ""
    # With tabindex, the keyboard scrolls it too.
    return (
        f'{title}<div class="wide" tabindex="0"><table{kind}>\n'
        + "\n".join(rows)
        + ("\n</table></div>")
    )


def _cell(text: str) -> str:
    kind = mood(text)
    return f'<td class="{kind}">{escape(text)}</td>' if kind else f"<td>{escape(text)}</td>"


def bullets(items: Iterable[str]) -> str:
    """Return a list; its items are HTML."""
    lines = [f"<li>{item}</li>" for item in items]
    return "\n".join(["<ul>", *lines, "</ul>"]) if lines else ""


def plots(drawings: Sequence[str]) -> str:
    """Return SVG elements side by side, or below each other where the screen is narrow."""
    figures = (f"<figure>{drawing}</figure>" for drawing in drawings)
    return "\n".join(['<div class="plots">', *figures, "</div>"]) if drawings else ""


def origin(command: str) -> str:
    """Return the paragraph that says which command and version made the page."""
    return (
        f'<p class="faint">Made by gravity {gravity_core.__version__}. '
        f"To reproduce it: <code>{escape(command)}</code></p>"
    )
