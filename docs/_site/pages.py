"""What Sphinx lacks for this site: MathML, links that leave docs/, and a check of the API pages."""

import importlib
import posixpath
import re
import runpy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import logging
from sphinx_design.shared import create_component

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
# Pages that show a file from outside docs/. In the repository they are only a link to it.
SHOWN = {
    "about/changelog": "CHANGELOG.md",
    "about/contributing": "CONTRIBUTING.md",
    "about/security": "SECURITY.md",
    "api/vectors": "gravity_conformance/vectors/README.md",
}
PACKAGES = (
    "gravity_core",
    "gravity_torch",
    "gravity_jax",
    "gravity_tf",
    "gravity_conformance.vectors",
)
LINK = re.compile(r"(?<=\]\()(?P<path>[^)\s#:]+)(?=[)#])")


def relinked(text: str, file: str, page: str) -> str:
    """Return the text of `file` with the links that `page` needs in its place.

    Both are paths from the repository's root. A link to a file that has a page leads to that page.
    """
    pages = {shown: f"docs/{name}.md" for name, shown in SHOWN.items()}

    def link(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(file), found["path"]))
        if not (ROOT / target).is_file():
            return found["path"]  # no link, or a broken one: Sphinx warns
        return posixpath.relpath(pages.get(target, target), posixpath.dirname(page))

    return LINK.sub(link, text)


def read_source(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace the text of a page: see `SHOWN` and `relinked`.

    An example for doctest ends with an empty line, which its block does not show.
    """
    page = f"docs/{docname}.md"
    if not (ROOT / page).is_file():
        return  # a notebook
    file = SHOWN.get(docname, page)
    text = source[0] if file == page else (ROOT / file).read_text(encoding="utf-8")
    source[0] = relinked(text, file, page).replace("\n\n```\n", "\n```\n")


def undocumented(documented: Iterable[str]) -> list[str]:
    """Return the public names of our packages that are not among the documented ones."""
    public = {
        f"{package}.{name}"
        for package in PACKAGES
        for name in importlib.import_module(package).__all__
    }
    protocol = importlib.import_module("gravity_conformance.protocol")
    public |= {
        f"{protocol.__name__}.{name}"
        for name, value in vars(protocol).items()
        if getattr(value, "__module__", None) == protocol.__name__ and not name.startswith("_")
    }
    return sorted(public - set(documented))


def check_names(app: Sphinx, env: Any) -> None:
    """Warn, which `make docs` takes as an error, of every public name without an entry."""
    for name in undocumented(env.domaindata["py"]["objects"]):
        logger.warning("no page in docs/api has an entry for %s", name)


def read_docstring(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Give plain text the marks of reStructuredText.

    A block that is indented by four after an empty line, with formulas or code, becomes literal.
    Elsewhere |G| and * mean themselves, outside of backticks and examples.
    """
    marked: list[str] = []
    text = literal = 0  # the indents of the text above, and of the literal block; 0: none
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if not line or line.lstrip().startswith((">>>", "...")) or 0 < literal <= indent:
            marked.append(line)
            continue
        literal = indent + 1 if line.lstrip().startswith(".. ") else 0  # a directive
        if i and not lines[i - 1] and indent >= text + 4:
            literal = indent
            marked += [" " * text + "::", "", line]
            continue
        text = indent + (2 if line.lstrip().startswith("- ") else 0)
        parts = re.split(r"(`[^`]*`)", line)
        parts[::2] = [re.sub(r"[|*]", r"\\\g<0>", part) for part in parts[::2]]
        marked.append("".join(parts))
    lines[:] = marked


def skip(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Skip the fields of a named tuple, whose class describes them."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field") else None


class Tabs(SphinxTransform):
    """Show the subsections of a section with the comment `<!-- tabs -->` as tabs.

    On a code host they stay sections. MyST-NB runs no code cell inside a directive of tabs.
    """

    default_priority = 500

    def apply(self, **kwargs: Any) -> None:
        """Replace the subsections."""
        for comment in list(self.document.findall(nodes.raw)):
            if comment.astext().strip() == "<!-- tabs -->":
                section = comment.parent
                tabs = create_component("tab-set", ["sd-tab-set"])
                for part in [node for node in section if isinstance(node, nodes.section)]:
                    title, *content = part.children
                    name = title.astext()
                    label = nodes.rubric(name, name, classes=["sd-tab-label"])
                    panel = create_component("tab-content", ["sd-tab-content"], children=content)
                    tabs += create_component("tab-item", ["sd-tab-item"], children=[label, panel])
                    section.remove(part)
                section.replace(comment, tabs)


class LongCells(SphinxTransform):
    """Give cells of tables with several words the class "long".

    Where a table is wider than the page, browsers break their lines after each word.
    """

    default_priority = 500

    def apply(self, **kwargs: Any) -> None:
        """Add the class."""
        for cell in self.document.findall(nodes.entry):
            if len(cell.astext()) > 24:
                cell["classes"].append("long")


class Unbroken(SphinxTransform):
    """Keep a formula on one line with the marks that touch it, such as brackets and commas.

    Browsers break lines on both sides of MathML.
    """

    default_priority = 500

    def apply(self, **kwargs: Any) -> None:
        """Put each such formula and its marks into a span."""
        for formula in list(self.document.findall(nodes.math)):
            parent = formula.parent
            place = parent.index(formula)
            parts: list[nodes.Node] = [formula]
            for beside, marks in ((place + 1, r"^[^\s\w]+"), (place - 1, r"[^\s\w]+$")):
                text = parent[beside] if 0 <= beside < len(parent) else None
                if isinstance(text, nodes.Text) and (found := re.search(marks, text)):
                    parent[beside] = nodes.Text(text[: found.start()] + text[found.end() :])
                    parts.insert(len(parts) if beside > place else 0, nodes.Text(found[0]))
            if len(parts) > 1:
                parent[place] = nodes.inline("", "", *parts, classes=["unbroken"])


def mathml(self: Any, node: nodes.math | nodes.math_block) -> None:
    """Write a formula as MathML, which browsers draw themselves."""
    block = isinstance(node, nodes.math_block)
    # Code hosts need these two commands, and docutils lacks them.
    tex = re.sub(r"\\(lt|gt)\b", lambda found: {"lt": "<", "gt": ">"}[found[1]], node.astext())
    try:
        formula = tex2mathml(tex, as_block=block)
    except MathError as error:
        logger.warning("not a formula: %s (%s)", node.astext(), error, location=node)
        formula = ""
    # Bars of |G| are fences and no operators.
    bar = '<mo stretchy="false" lspace="0" rspace="0">|</mo>'
    formula = re.sub(r"<mo[^>]*>\|</mo>", bar, formula)
    # The index of β̂ stands beside it. docutils puts it below.
    hat = r"<munderover>\s*(<mi>.*</mi>)\s*(<m[in]>.*</m[in]>)\s*(<mo.*ˆ</mo>)\s*</munderover>"
    formula = re.sub(hat, r"<msub><mover>\1\3</mover>\2</msub>", formula)
    # sin θ, not sinθ.
    function = r'<mo form="infix" lspace="0.17em" rspace="0.17em">\1</mo>'
    formula = re.sub(r"<mi>(sin|cos|tan|log|ln)</mi>", function, formula)
    self.body.append(f'<div class="math">{formula}</div>\n' if block else formula)
    raise nodes.SkipNode


def write_explorable_page(app: Sphinx, exception: Exception | None) -> None:
    """Put the explorable page, one file, where docs/explorable.md links it."""
    if exception is None and app.builder.format == "html":
        build = runpy.run_path(str(ROOT / "docs" / "explore" / "build.py"))
        folder = Path(app.outdir) / "explore"
        folder.mkdir(exist_ok=True)
        (folder / "index.html").write_text(build["page"](in_site=True), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect all of it."""
    app.add_html_math_renderer("mathml", (mathml, None), (mathml, None))
    for transform in (Tabs, LongCells, Unbroken):
        app.add_transform(transform)
    app.connect("source-read", read_source)
    app.connect("autodoc-process-docstring", read_docstring, priority=400)  # before napoleon
    app.connect("autodoc-skip-member", skip)
    app.connect("env-check-consistency", check_names)
    app.connect("build-finished", write_explorable_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
