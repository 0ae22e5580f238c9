"""Put the tables and the picture of the last `make parity` into the README.

python docs/readme_parity.py parity
"""

import datetime
import json
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MARKED = re.compile(r"(<!-- parity: .*? -->\n).*?(<!-- /parity -->)", re.DOTALL)


def main(folder: Path) -> None:
    """Copy the report in `folder` into README.md and docs/images."""
    report = json.loads((folder / "parity.json").read_text(encoding="utf-8"))
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    when = datetime.date.today().strftime("%-d %B %Y")
    caption = (
        f"Measured once on {when}, {report['platform']['cpu']}, {report['platform']['system']}; "
        f"{versions}. {report['steps']} steps, seed {report['seed']}."
    )
    picture = "![Loss curves, and deviations under their certified bound](docs/images/parity.png)"
    tables = (folder / "parity.md").read_text(encoding="utf-8")
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    new, count = MARKED.subn(
        lambda found: f"{found[1]}\n{caption}\n\n{tables}\n{picture}\n\n{found[2]}", text
    )
    if count != 1:
        raise SystemExit("README.md must have one parity section between its two markers")
    readme.write_text(new, encoding="utf-8")
    shutil.copyfile(folder / "parity.png", ROOT / "docs" / "images" / "parity.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
