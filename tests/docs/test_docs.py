"""The documentation's code runs, and its links and names exist.

A ```python block is run in order with the others of its page, in one namespace. A block with
`>>>` is a doctest: its output is compared. A block under the line

    <!-- needs: torch, gravity_torch -->

runs in a namespace of its own, in a fresh interpreter that it shares with the blocks of its page
that need the same, and is skipped if a module is not installed. The mark `needs: torch; alone`
gives a block its own interpreter: it configures the framework for the whole process.
"""

import doctest
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

import gravity_core
from tests.support.limits import HANG
from tests.support.pages import FENCE, Block, is_there, python_blocks

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
FRONT = [DOCS.parent / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
IMAGES = sorted((DOCS / "images").glob("*.svg"))

# Code hosts render inline maths only without spaces inside its dollar signs.
MATH = re.compile(r"\$\$.*?\$\$|\$(?=\S)[^$`\n]+(?<=\S)\$(?!\w)", re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")
NAME = re.compile(r"`(?P<name>[A-Za-z_][\w.]*)(?:\(\)|=[^`]*)?`")
ADAPTERS = {"gravity_torch", "gravity_jax", "gravity_tf", "tensorflow"}
FRAMEWORKS = {"array_api_compat", "jax", "jnp", "keras", "np", "numpy", "optax", "tf", "torch"}


def run_blocks(blocks: list[Block], name: str) -> str:
    """Run the blocks in one namespace; return the failures as doctest reports them."""
    namespace: dict[str, object] = {"__name__": name}
    parser = doctest.DocTestParser()
    runner = doctest.DocTestRunner(verbose=False)
    report: list[str] = []
    for block in blocks:
        if ">>>" in block.code:
            test = parser.get_doctest(block.code, namespace, name, name, block.line)
            # DocTest copies its globals; the page has one namespace.
            test.globs = namespace
            runner.run(test, out=report.append, clear_globs=False)
        else:
            padding = "\n" * block.line  # so that a traceback has the line of the page
            exec(compile(padding + block.code, name, "exec"), namespace)
    return "".join(report)


def is_word(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] in "LM" or category in ("Nd", "Pc")


def heading_anchors(text: str) -> set[str]:
    """Return the anchors that code hosts make from the headings."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {
        "".join(c for c in title.lower() if is_word(c) or c in " -").replace(" ", "-")
        for title in titles
    }


def broken_links(text: str, folder: Path) -> list[str]:
    broken = []
    for target in (match["target"] for match in LINK.finditer(FENCE.sub("", text))):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        destination = folder / path if path else None
        if destination is not None and not destination.is_file():
            broken.append(target)
        elif anchor:
            page = destination.read_text(encoding="utf-8") if destination else text
            if anchor not in heading_anchors(page):
                broken.append(target)
    return broken


def core_names() -> set[str]:
    """Return every public name of gravity_core: functions, classes, members, arguments."""
    names = set(gravity_core.__all__) | {"gravity_core"}
    modules = [gravity_core] + [
        importlib.import_module(f"gravity_core.{module.name}")
        for module in pkgutil.iter_modules(gravity_core.__path__)
        if not module.ispkg and not module.name.startswith("_")
    ]
    for module in modules:
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
                continue
            names.add(name)
            if inspect.isclass(value):
                members = {m for m in dir(value) if not m.startswith("_")}
                members |= set(getattr(value, "__annotations__", ()))
                names |= members | {f"{name}.{member}" for member in members}
                callables = [value, *(getattr(value, m, None) for m in members)]
            else:
                callables = [value]
            for function in filter(callable, callables):
                names |= set(inspect.signature(inspect.unwrap(function)).parameters)
    return names


def resolves(dotted: str) -> bool:
    """Return whether `dotted`, which begins with a package, leads to an object."""
    parts = dotted.split(".")
    value: object = importlib.import_module(parts[0])
    for i, part in enumerate(parts[1:], start=2):
        if not hasattr(value, part):
            try:
                importlib.import_module(".".join(parts[:i]))
            except ImportError:
                return False
        value = getattr(value, part)
    return True


def unknown_names(text: str) -> list[str]:
    """Return the names in backticks that are neither the core's, the page's nor a framework's."""
    known = core_names()
    code = " ".join(block.code for block in python_blocks(text))
    known |= set(re.findall(r"[A-Za-z_][\w.]*", code))
    prose = MATH.sub("", FENCE.sub("", text))
    unknown = []
    for name in (match["name"] for match in NAME.finditer(prose)):
        if name.split(".")[0] in FRAMEWORKS:
            continue
        if name.startswith("gravity_core."):
            if not resolves(name):
                unknown.append(name)
        elif name not in known:
            unknown.append(name)
    return unknown


@pytest.fixture(params=PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def page(request):
    return request.param


def test_the_pages_are_found():
    assert {"slope.md", "exercises.md", "numerics.md"} <= {page.name for page in PAGES}


def test_code_runs_and_prints_what_the_page_says(page):
    blocks = [block for block in python_blocks(page.read_text(encoding="utf-8")) if not block.needs]
    assert run_blocks(blocks, page.name) == ""


def groups(page: Path) -> list[list[Block]]:
    """Return the marked blocks of a page, those together that may share an interpreter."""
    together: dict[tuple[str, ...], list[Block]] = {}
    alone = []
    for block in python_blocks(page.read_text(encoding="utf-8")):
        # tests/clients runs the recipes for other libraries.
        others = set(block.needs) - ADAPTERS - FRAMEWORKS
        if not block.needs or (page.parent.name == "recipes" and others):
            continue
        if block.alone:
            alone.append([block])
        else:
            together.setdefault(block.needs, []).append(block)
    return [*together.values(), *alone]


MARKED = [
    pytest.param(page, blocks, id=f"{page.stem}:{blocks[0].line}")
    for page in PAGES
    for blocks in groups(page)
]
# A failure's traceback names the page and the line in it.
RUN_EACH = """
import json, sys
for page, line, code in json.load(sys.stdin):
    exec(compile("\\n" * line + code, page, "exec"), {"__name__": "__main__"})
"""


def run_in_one_process(page: Path, blocks: list[Block]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", RUN_EACH],
        input=json.dumps([(page.name, block.line, block.code) for block in blocks]),
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("page", "blocks"), MARKED)
def test_code_for_a_framework_runs(page, blocks):
    absent = [module for module in blocks[0].needs if not is_there(module)]
    if absent:
        pytest.skip(f"not installed: {', '.join(absent)}")
    done = run_in_one_process(page, blocks)
    assert done.returncode == 0, done.stderr[-2000:]


def test_links_and_images_exist(page):
    assert broken_links(page.read_text(encoding="utf-8"), page.parent) == []


@pytest.mark.parametrize("page", FRONT, ids=lambda page: page.name)
def test_links_of_the_front_pages_exist(page):
    assert broken_links(page.read_text(encoding="utf-8"), page.parent) == []


@pytest.mark.parametrize(
    "page",
    # recipes name what is in other libraries
    [page for page in PAGES if page.parent.name != "recipes"],
    ids=lambda page: str(page.relative_to(DOCS)),
)
def test_names_in_backticks_exist(page):
    assert unknown_names(page.read_text(encoding="utf-8")) == []


def test_every_fence_and_formula_is_closed(page):
    text = page.read_text(encoding="utf-8")
    rest = FENCE.sub("", text)
    assert "```" not in rest
    assert "$" not in MATH.sub("", rest)


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_every_image_is_used_and_small(image):
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert f"images/{image.name})" in text
    assert image.stat().st_size < 80_000


# The checks above must find planted faults.


def test_a_wrong_output_is_reported():
    (block,) = python_blocks("text\n\n```python\n>>> 1 + 1\n3\n```\n")
    assert "Expected:\n    3\nGot:\n    2\n" in run_blocks([block], "planted")


def test_blocks_of_a_page_share_one_namespace():
    blocks = python_blocks("```python\nx = 2\n```\n\n```python\n>>> x\n2\n>>> y = 3\n```\n")
    blocks += python_blocks("```python\n>>> x + y\n5\n```\n")
    assert run_blocks(blocks, "planted") == ""


def test_a_failing_plain_block_raises():
    with pytest.raises(AssertionError):
        run_blocks(python_blocks("```python\nassert 1 == 2\n```\n"), "planted")


def test_a_failing_marked_block_is_reported_with_its_line():
    text = "\n<!-- needs: torch -->\n```python\nx = 1\n```\n"
    text += "<!-- needs: torch -->\n```python\nassert x == 1\n```\n"
    done = run_in_one_process(Path("planted.md"), python_blocks(text))
    assert done.returncode == 1
    assert 'File "planted.md", line 8' in done.stderr
    assert "NameError: name 'x' is not defined" in done.stderr


@pytest.mark.parametrize("alone", [False, True])
def test_a_mark_is_read(alone):
    mark = "needs: torch, gravity_torch" + "; alone" * alone
    (block,) = python_blocks(f"<!-- {mark} -->\n```python\nx = 1\n```\n")
    assert (block.needs, block.alone) == (("torch", "gravity_torch"), alone)


def test_a_block_runs_after_those_above():
    first = "<!-- needs: torch -->\n```python\nx = 1\n```\n"
    plain = "```python\nz = 1\n```\n"
    second = "<!-- needs: above -->\n```python\ny = x\n```\n"
    *_, last = python_blocks(first + plain + second)
    assert (last.code, last.needs) == ("x = 1\ny = x\n", ("torch",))


def test_broken_links_are_found():
    text = (
        "# A title: V₀\n[a](#a-title-v) [b](#none) ![c](images/none.svg) [d](https://example.org)\n"
    )
    assert broken_links(text, DOCS) == ["#none", "images/none.svg"]


def test_unknown_names_are_found():
    text = (
        "`gravity_core.update` `gravity_core.updat` `beta_hat` `bet_hat` `first_step=0` `jax.jit`"
    )
    assert unknown_names(text) == ["gravity_core.updat", "bet_hat"]
