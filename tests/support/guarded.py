"""Tensors between bytes that nobody may write, and comparisons of bits."""

import torch

EDGE = 64  # bytes around a tensor that nobody may write


class Guarded:
    """A tensor with other bytes on both sides, `shift` bytes from a multiple of 64."""

    def __init__(self, numbers, shift=0):
        own = numbers.numel() * numbers.itemsize
        self.memory = torch.full((own + 2 * EDGE + 64,), 0xA5, dtype=torch.uint8)
        start = -self.memory.data_ptr() % 64 + EDGE + shift
        self.own = slice(start, start + own)
        self.bytes = self.memory[self.own]
        self.bytes.copy_(numbers.reshape(-1).view(torch.uint8))
        self.address = self.memory.data_ptr() + start
        self.dtype, self.size = numbers.dtype, numbers.numel()

    def numbers(self):
        """Return a copy: torch itself wants aligned memory."""
        return self.bytes.clone().view(self.dtype)

    def assert_intact(self):
        outside = torch.ones(len(self.memory), dtype=torch.bool)
        outside[self.own] = False
        assert (self.memory[outside] == 0xA5).all()


def real(x):
    return torch.view_as_real(x) if x.is_complex() else x


def assert_same_bits(x, y):
    """Compare bits; all NaN are equal."""
    assert x.dtype == y.dtype
    x, y = real(x), real(y)
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.itemsize]
    same = (x.view(integer) == y.view(integer)) | (x.isnan() & y.isnan())
    assert same.all(), f"{(~same).sum()} of {same.numel()}: {x[~same][:5]} {y[~same][:5]}"


def normal(size, dtype, generator, scale=1.0):
    numbers = torch.randn((size, 2) if dtype.is_complex else (size,), generator=generator).double()
    if dtype.is_complex:
        numbers = torch.view_as_complex(numbers)
    return (numbers * scale).to(dtype)
