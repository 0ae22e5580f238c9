"""VGG16 and VGG19 at 32 × 32 pixels, described once for both frameworks.

Each has five blocks of 3 × 3 convolutions with ReLU, a 2 × 2 max-pooling after each block, two
dense layers of 4096 with ReLU, and logits; neither dropout nor batch normalization.
"""

from collections.abc import Sequence
from typing import NamedTuple

SIZE = 32  # of an image, after it is resized
BLOCKS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
WIDTHS = (64, 128, 256, 512, 512)
DENSE = 4096


class Layer(NamedTuple):
    """A layer with weights.

    Attributes:
        shape: of the kernel, as Keras stores it: (3, 3, in, out) or (in, out).
        pools: whether a max-pooling follows.
        last: whether it makes the logits, without a ReLU.
    """

    shape: tuple[int, ...]
    pools: bool = False
    last: bool = False


def layers(architecture: str, channels: int, classes: int) -> Sequence[Layer]:
    """Return the layers in order.

    Example:
        >>> layers("vgg16", channels=3, classes=10)[0]
        Layer(shape=(3, 3, 3, 64), pools=False, last=False)
    """
    found, width = [], channels
    for number, out in zip(BLOCKS[architecture], WIDTHS, strict=True):
        for index in range(number):
            found.append(Layer((3, 3, width, out), pools=index == number - 1))
            width = out
    # Five poolings leave one pixel of 32 × 32.
    for out in (DENSE, DENSE):
        found.append(Layer((width, out)))
        width = out
    return [*found, Layer((width, classes), last=True)]
