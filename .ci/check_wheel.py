"""Build the wheel and the sdist; use the wheel, with no extras, away from the checkout.

python .ci/check_wheel.py [--tag v1.2.3] [--keep dist]    for a release: its version, the files
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

USE = """
import sys
import numpy as np
import gravity_core
from gravity_conformance.vectors import load_vectors

w = np.asarray([1.0, -2.0])
optimizer = gravity_core.Gravity()
optimizer.step([w], [np.asarray([0.1, 0.2])])
assert np.isfinite(w).all() and (w != [1.0, -2.0]).all()
assert "site-packages" in gravity_core.__file__, gravity_core.__file__
found = {name.partition(".")[0] for name in sys.modules}
assert load_vectors()
assert not found & {"torch", "jax", "optax", "tensorflow", "keras", "click", "sklearn"}, found
print("gravity-optimizer", gravity_core.__version__, "from its wheel: one update", w)
"""

PACKAGES = ("gravity_core", "gravity_conformance", "gravity_torch", "gravity_jax", "gravity_tf")


def run(*command: object, cwd: Path, **kwargs: object) -> subprocess.CompletedProcess[str]:
    """Run a command; stop if it fails."""
    return subprocess.run([str(c) for c in command], cwd=cwd, check=True, text=True, **kwargs)


def main(tag: str | None, keep: Path | None) -> None:
    """Raise if anything is amiss; else put what was checked into the folder `keep`."""
    with tempfile.TemporaryDirectory() as folder:
        away = Path(folder)
        dist = away / "dist"
        # The sdist is built from the checkout and the wheel from the sdist, as users get them.
        run(sys.executable, "-m", "build", "--outdir", dist, ROOT, cwd=away)
        (wheel,) = dist.glob("*.whl")
        assert len(list(dist.glob("*.tar.gz"))) == 1
        if tag is not None:
            version = wheel.name.split("-")[1]
            assert tag == f"v{version}", f"the tag is {tag}, and the version {version}"

        names = zipfile.ZipFile(wheel).namelist()
        tops = {name.partition("/")[0] for name in names}
        assert {t for t in tops if not t.endswith(".dist-info")} == set(PACKAGES), tops
        for package in PACKAGES:
            assert f"{package}/py.typed" in names, package
        vectors = ROOT / "gravity_conformance" / "vectors"
        for path in (*vectors.glob("*.json"), vectors / "README.md", *vectors.glob("examples/*.*")):
            assert path.relative_to(ROOT).as_posix() in names, path

        venv.create(away / "env", with_pip=True)
        python = away / "env" / "bin" / "python"
        constraints = ROOT / "constraints.txt"
        run(python, "-m", "pip", "install", "-q", "-c", constraints, wheel, cwd=away)
        run(python, "-c", USE, cwd=away)
        done = subprocess.run(
            [away / "env" / "bin" / "gravity", "parity"], cwd=away, capture_output=True, text=True
        )
        assert done.returncode == 2, done
        assert "needs click: pip install '" in done.stderr, done
        if keep is not None:
            shutil.rmtree(keep, ignore_errors=True)  # an older release must not be uploaded
            shutil.copytree(dist, keep)
    print("wheel and sdist: all is as it should be")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--tag")
    parser.add_argument("--keep", type=Path)
    main(**vars(parser.parse_args()))
