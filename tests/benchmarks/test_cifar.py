"""CIFAR is read from its authors' archives, and what is missing or wrong is named."""

import hashlib
import io
import pickle
import re
import tarfile
import types

import numpy as np
import pytest

from benchmarks import cifar, fetch
from gravity_conformance._status import CouldNotError


def archive(files):
    """Return an archive of pickled dictionaries."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as members:
        for name, values in files.items():
            data = pickle.dumps(values, protocol=2)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            members.addfile(member, io.BytesIO(data))
    return content.getvalue()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with tiny archives: batch k has two images of the number 10 k and colour."""
    (tmp_path / "data").mkdir()
    for name, (_, train, test) in cifar.ARCHIVES.items():
        files = {}
        for number, member in enumerate([*train, *test]):
            pixels = np.full((2, 3, 32, 32), 10 * number, np.uint8) + np.arange(3)[:, None, None]
            pixels[:, :, 0, 1] += 100  # the first row, the second column
            labels = {
                b"labels": [number, 9],
                b"coarse_labels": [19, number],
                b"fine_labels": [99, 0],
            }
            files[member] = {b"data": pixels.astype(np.uint8).reshape(2, -1), **labels}
        content = archive(files)
        (tmp_path / "data" / name).write_bytes(content)
        md5 = hashlib.md5(content).hexdigest()
        monkeypatch.setitem(cifar.ARCHIVES, name, (md5, train, test))
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("name", "number", "labels"),
    [
        ("cifar10", 10, [0, 9, 1, 9]),
        ("cifar100-coarse", 2, [19, 0]),
        ("cifar100-fine", 2, [99, 0]),
    ],
)
def test_archives_become_images(folder, name, number, labels):
    found = cifar.load_cifar(name, folder)
    assert found.x_train.shape == (number, 32, 32, 3)
    assert found.x_train.dtype == np.uint8
    assert found.x_train[0, 5, 6].tolist() == [0, 1, 2]
    assert found.x_train[0, 0, 1].tolist() == [100, 101, 102]
    assert found.x_test.shape == (2, 32, 32, 3)
    assert found.x_test[0, 5, 6, 0] == 10 * len(cifar.ARCHIVES[cifar.SETS[name][0]][1])
    assert found.y_train[: len(labels)].tolist() == labels
    assert found.y_train.dtype == found.y_test.dtype == np.int64


def test_no_pickle_with_another_checksum_is_opened(folder, monkeypatch):
    path = folder / "cifar-10-python.tar.gz"
    path.write_bytes(path.read_bytes()[:-1])
    monkeypatch.setattr(cifar.tarfile, "open", None)
    named = f"^{re.escape(str(path))} has another content than .*: https://"
    with pytest.raises(CouldNotError, match=named):
        cifar.load_cifar("cifar10", folder)


def test_without_an_archive_keras_loads_it(tmp_path, monkeypatch):
    keras = pytest.importorskip("keras", reason="loads it")
    x, y = np.zeros((3, 32, 32, 3), np.uint8), np.asarray([[5], [6], [7]], np.uint8)
    asked = []

    def load_data(**arguments):
        asked.append(arguments)
        return (x, y), (x[:1], y[:1])

    monkeypatch.setattr(keras.datasets, "cifar100", types.SimpleNamespace(load_data=load_data))
    found = cifar.load_cifar("cifar100-coarse", tmp_path)
    assert asked == [{"label_mode": "coarse"}]
    assert found.y_train.tolist() == [5, 6, 7]

    def fails(**arguments):
        raise OSError("no network")

    keras.datasets.cifar100.load_data = fails
    missing = re.escape(str(tmp_path / "cifar-100-python.tar.gz"))
    named = f"^{missing} is missing, and keras.datasets cannot load cifar100-fine .*https://"
    with pytest.raises(CouldNotError, match=named):
        cifar.load_cifar("cifar100-fine", tmp_path)


def test_fetch_says_which_command_is_missing_or_fails(tmp_path, monkeypatch):
    monkeypatch.setitem(fetch.COMMANDS, "mnist", ("no-such-command-anywhere",))
    with pytest.raises(CouldNotError, match=r"^mnist needs the command no-such-command-anywhere$"):
        fetch.fetch("mnist", tmp_path)
    monkeypatch.setitem(fetch.COMMANDS, "mnist", ("tar -xzf none.tgz",))
    with pytest.raises(CouldNotError, match=r"^mnist: tar -xzf none\.tgz failed: "):
        fetch.fetch("mnist", tmp_path)
    assert list(tmp_path.iterdir()) == []
