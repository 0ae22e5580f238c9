"""The data of the networks: splits that are the same for all seeds, as torch tensors.

Validation chooses the rate and gives the curves; test is only read once, at the end of a run.
"""

import functools
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn import datasets
from sklearn.model_selection import train_test_split

from benchmarks.compare.topics import topics
from benchmarks.data import load_images

Pair = tuple[torch.Tensor, torch.Tensor]


class Data(NamedTuple):
    """Inputs and targets of each split."""

    train: Pair
    validation: Pair
    test: Pair


def _split(x: np.ndarray, y: np.ndarray, *, stratified: bool = True) -> Data:
    """Give 60 % to training and 20 % each to validation and test."""
    options: dict[str, Any] = {"random_state": 0}
    x, x_rest, y, y_rest = train_test_split(
        x, y, test_size=0.4, stratify=y if stratified else None, **options
    )
    x_validation, x_test, y_validation, y_test = train_test_split(
        x_rest, y_rest, test_size=0.5, stratify=y_rest if stratified else None, **options
    )
    return _tensors((x, y), (x_validation, y_validation), (x_test, y_test))


def _tensors(*splits: tuple[np.ndarray, np.ndarray]) -> Data:
    return Data(
        *(
            (
                torch.as_tensor(np.ascontiguousarray(x, np.float32)),
                torch.as_tensor(np.ascontiguousarray(y, np.int64 if y.dtype.kind == "i" else "f4")),
            )
            for x, y in splits
        )
    )


def _standardised(data: Data, *, inputs: bool = True, targets: bool = False) -> Data:
    """Shift and scale by the mean and the standard deviation of the training split."""

    def scaled(values: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        return (values - by.mean(0)) / by.std(0, correction=0)

    by_x, by_y = data.train
    return Data(
        *((scaled(x, by_x) if inputs else x, scaled(y, by_y) if targets else y) for x, y in data)
    )


@functools.cache
def digits() -> Data:
    """8 × 8 images of ten digits, from 0 to 1."""
    x, y = datasets.load_digits(return_X_y=True)
    return _split(x / 16, y)


@functools.cache
def shifted_digits(labelled: int = 100) -> Data:
    """The digits, each shifted by a pixel; only a few have labels for training."""

    def shifted(x: torch.Tensor) -> torch.Tensor:
        return torch.roll(x.view(-1, 8, 8), 1, 2).flatten(1)

    (x, y), *rest = ((shifted(x), y) for x, y in digits())
    return Data((x[:labelled], y[:labelled]), *rest)


@functools.cache
def wine() -> Data:
    """Three cultivars by 13 measurements."""
    return _standardised(_split(*datasets.load_wine(return_X_y=True)))


@functools.cache
def breast_cancer() -> Data:
    """Two diagnoses by 30 measurements."""
    return _standardised(_split(*datasets.load_breast_cancer(return_X_y=True)))


@functools.cache
def diabetes(*, standardised: bool) -> Data:
    """The progression of a disease, from 25 to 346, by 10 measurements."""
    x, y = datasets.load_diabetes(return_X_y=True, scaled=False)
    return _standardised(_split(x, y[:, None], stratified=False), targets=standardised)


@functools.cache
def heavy_tailed() -> Data:
    """Friedman's function #1; the training targets have Cauchy noise of a tenth of their spread."""
    x, y = datasets.make_friedman1(2000, random_state=0)
    data = _standardised(_split(x, y[:, None], stratified=False), targets=True)
    x_train, y_train = data.train
    noise = np.random.default_rng(0).standard_cauchy(y_train.shape).astype(np.float32)
    return data._replace(train=(x_train, y_train + 0.1 * torch.as_tensor(noise)))


@functools.cache
def vocabulary() -> int:
    """Return the number of different characters."""
    return len(set(topics()))


@functools.cache
def characters(context: int, *, every: bool) -> Data:
    """`context` characters and the next one; or, with `every`, each of them and its next one.

    Training has the first 90 % of the text, validation the next 5 %, and test the rest. 60 windows
    each, or 4,000 with one target, stand for validation and test.
    """
    text = topics()
    codes = {character: code for code, character in enumerate(sorted(set(text)))}
    numbers = torch.tensor([codes[character] for character in text])
    ends = [0, int(0.9 * len(numbers)), int(0.95 * len(numbers)), len(numbers)]
    found = []
    for part, (start, end) in enumerate(itertools.pairwise(ends)):
        windows = numbers[start:end].unfold(0, context + 1, 1)
        if part:  # as many as wanted, at equal distances
            wanted = 60 if every else 4000
            windows = windows[:: max(1, len(windows) // wanted)][:wanted].clone()
        found.append((windows[:, :-1], windows[:, 1:] if every else windows[:, -1]))
    return Data(*found)


@functools.cache
def images(name: str, folder: Path) -> Data:
    """MNIST or Fashion-MNIST, pixels from 0 to 1; the last 10,000 for training are validation."""
    found = load_images(name, folder)
    x, x_test = (
        part.reshape(len(part), -1) / np.float32(255) for part in (found.x_train, found.x_test)
    )
    y = found.y_train
    return _tensors((x[:-10000], y[:-10000]), (x[-10000:], y[-10000:]), (x_test, found.y_test))
