"""The tensor shapes of real models, for timing optimizers."""

import numpy as np

Shape = tuple[int, ...]


def resnet50() -> list[Shape]:
    """Return ResNet-50's 161 parameter shapes (He et al. 2016), 25.6 M elements."""
    shapes: list[Shape] = [(64, 3, 7, 7), (64,), (64,)]
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += [(width, channels, 1, 1), (width,), (width,)]
            shapes += [(width, width, 3, 3), (width,), (width,)]
            shapes += [(4 * width, width, 1, 1), (4 * width,), (4 * width,)]
            if block == 0:
                shapes += [(4 * width, channels, 1, 1), (4 * width,), (4 * width,)]
            channels = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def gpt2() -> list[Shape]:
    """Return GPT-2 small's 148 parameter shapes (Radford et al. 2019), 124 M elements."""
    d = 768
    shapes: list[Shape] = [(50257, d), (1024, d)]
    for _ in range(12):
        shapes += [(d,), (d,), (d, 3 * d), (3 * d,), (d, d), (d,)]
        shapes += [(d,), (d,), (d, 4 * d), (4 * d,), (4 * d, d), (d,)]
    return [*shapes, (d,), (d,)]


CASES: dict[str, list[Shape]] = {
    "16M": [(2**24,)],
    "resnet50": resnet50(),
    "1000x1000": [(1000,)] * 1000,
    "gpt2": gpt2(),
    "100-groups": [(16,)] * 100,
}
# The tensors of these cases have a group of parameters each, which only torch's optimizers have.
# They show what a group costs the host.
GROUPED = ("100-groups",)


def gradients(shapes: list[Shape]) -> list[np.ndarray]:
    """Return one normal gradient for each shape, the same for every contender."""
    rng = np.random.default_rng(0)
    return [np.asarray(0.1 * rng.standard_normal(s, np.float32)) for s in shapes]
