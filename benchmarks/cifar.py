"""CIFAR-10 and CIFAR-100 from a folder of the user, or from keras.datasets.

`--data-dir DIR` may hold the archives as their authors publish them. Without one, keras.datasets
loads it, from its cache or from the internet.
"""

import hashlib
import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data import Images
from gravity_conformance._status import CouldNotError

PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
# For each archive: its checksum, and its files of training and of test images.
ARCHIVES = {
    "cifar-10-python.tar.gz": (
        "c58f30108f718f92721af3b95e74349a",
        tuple(f"cifar-10-batches-py/data_batch_{number}" for number in range(1, 6)),
        ("cifar-10-batches-py/test_batch",),
    ),
    "cifar-100-python.tar.gz": (
        "eb9058c3a382ffc7106e4002c42a8d85",
        ("cifar-100-python/train",),
        ("cifar-100-python/test",),
    ),
}
# For each data set: its archive, the key of its labels there, and arguments of keras.datasets.
SETS: dict[str, tuple[str, bytes, dict[str, str]]] = {
    "cifar10": ("cifar-10-python.tar.gz", b"labels", {}),
    "cifar100-coarse": ("cifar-100-python.tar.gz", b"coarse_labels", {"label_mode": "coarse"}),
    "cifar100-fine": ("cifar-100-python.tar.gz", b"fine_labels", {"label_mode": "fine"}),
}


def load_cifar(name: str, folder: Path) -> Images:
    """Return a data set of SETS: colour images as uint8, shape (n, 32, 32, 3), and labels.

    Raises:
        CouldNotError: naming the archive that is missing or has another content, and its source.
    """
    archive, labels, arguments = SETS[name]
    path = folder / archive
    if not path.is_file():
        return _from_keras(name, path, arguments)
    md5, train, test = ARCHIVES[archive]
    content = path.read_bytes()
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise CouldNotError(f"{path} has another content than {archive} (md5 {md5}): {PAGE}")
    with tarfile.open(fileobj=io.BytesIO(content)) as members:
        x_train, y_train = _part(members, train, labels)
        x_test, y_test = _part(members, test, labels)
    return Images(x_train, y_train, x_test, y_test)


def _part(
    members: tarfile.TarFile, names: tuple[str, ...], labels: bytes
) -> tuple[np.ndarray, np.ndarray]:
    """Return the images and labels of some files. Only a file with a known checksum comes here."""
    images, numbers = [], []
    for name in names:
        file = members.extractfile(name)
        assert file is not None  # the checksum says that it is there
        batch = pickle.load(file, encoding="bytes")
        images.append(batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        numbers.append(np.asarray(batch[labels], np.int64))
    return np.ascontiguousarray(np.concatenate(images)), np.concatenate(numbers)


def _from_keras(name: str, missing: Path, arguments: dict[str, str]) -> Images:
    try:
        import keras

        module: Any = getattr(keras.datasets, name.partition("-")[0])
        (x_train, y_train), (x_test, y_test) = module.load_data(**arguments)
    except Exception as error:  # keras raises Exception itself where a download fails
        raise CouldNotError(
            f"{missing} is missing, and keras.datasets cannot load {name} "
            f"({type(error).__name__}): get the archive from {PAGE}"
        ) from error
    return Images(
        x_train, y_train.ravel().astype(np.int64), x_test, y_test.ravel().astype(np.int64)
    )
