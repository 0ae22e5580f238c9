"""The README's examples run, each in its own process, and print what they say."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"(?:<!-- needs: ([\w ]+) -->\n)?```python\n(.*?)```", README, re.DOTALL)


def test_there_is_an_example_per_framework():
    assert [needs for needs, _ in EXAMPLES] == ["torch", "jax optax", "tensorflow keras", ""]


@pytest.mark.parametrize(("needs", "code"), EXAMPLES, ids=[n or "numpy" for n, _ in EXAMPLES])
def test_example(needs, code):
    for module in needs.split():
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"the example needs {module}")
    (printed,) = re.findall(r"# (loss .*)", code)
    code += "\nassert float(loss) < 0.005, loss\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{printed}\n"


def test_the_commands_are_targets_of_the_makefile():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    commands = re.findall(r"(?:^    |`)make (\w+)", README, re.MULTILINE)
    assert {"parity", "test", "docs"} <= set(commands) <= set(targets)


def test_the_parity_section_is_filled_and_its_image_exists():
    section = README.split("<!-- parity: ")[1].split("<!-- /parity -->")[0]
    for backend in ("numpy", "torch", "jax", "tensorflow"):
        assert re.search(rf"^\| {backend} \|", section, re.MULTILINE)
    assert "divergent" not in section
    (picture,) = re.findall(r"!\[.*?\]\((.*?)\)", section)
    assert (ROOT / picture).is_file()
