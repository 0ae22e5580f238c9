"""The kernels of `fused=True` for CPUs: one call updates many tensors, given their addresses.

Guarantees: V and W have the bits of the NumPy reference, with any number of threads. The kernels
make the operations of `gravity_core.update` one by one; LLVM fuses none of them. Half types are
computed in float32, and V and W are rounded once.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, config, njit, types
from numba.extending import intrinsic

if config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set")

# Elements that are updated at a time: they stay in the innermost cache.
BLOCK = 1024
# Numbers of a thread's scratch memory: a block each of G, V and W, widened from a half type.
SCRATCH = 3 * BLOCK

# How a tensor stores its numbers: in the type that the kernel computes in, or in a half type.
SAME, BFLOAT16, FLOAT16 = range(3)
# All numbers that kernels use are in this file: numba's cache on the disk notices its changes only.
# The columns of the table of tensors are those of `_fused`. The counter is a float32.
P, GRAD, VELOCITY, STEP, SIZE, MAX_ABS, GROUP_INDEX = range(7)
# The columns of the table of pieces: the tensor's row, the first element, the number of elements.
TENSOR, START, LENGTH = range(3)
# What a call does. SET sets the coefficients and looks for counters without a number of steps.
# COUNT adds 1 to the counters. FIND finds max|G| of every piece, and updates each tensor that is
# one piece, while it is in the cache. MOVE updates the other pieces.
SET, COUNT, FIND, MOVE = range(4)

# The columns of the table of groups, float64; LR and DECAY are η and η λ.
FIRST_STEP, MAXIMIZE, DECAYS, BETA, LR, DECAY = range(6)
# The columns of the table of weights: β̂ and 1 − β̂ of a tensor.
OLD, NEW = range(2)
# The argument of a kernel: addresses of arrays, the lengths of the tables, and kinds of storage.
CALL = np.dtype(
    [
        *((name, np.int64) for name in ("tensors", "pieces", "groups", "weights", "maxima")),
        *((name, np.int64) for name in ("scratch", "counters", "tensor_count", "piece_count")),
        *((name, np.int64) for name in ("group_count", "p_kind", "grad_kind", "velocity_kind")),
        *((name, np.int64) for name in ("phase", "invalid")),
    ]
)


@intrinsic
def pointer(context, address, dtype):
    """Return an address as a pointer to numbers of a type."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(dtype.dtype)(address, dtype), codegen


@intrinsic
def take(context, address):
    """Return the number at an address and add 1 to it, atomically."""

    def codegen(context, builder, signature, args):
        place = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", place, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(address), codegen


@intrinsic
def bitcast(context, x, dtype):
    """Return a number of another type with the same bits."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(signature.return_type))

    return dtype.dtype(x, dtype), codegen


# NumPy's rules of division: the checks of Python's take more time than the division.
kernel = functools.partial(njit, error_model="numpy")


@kernel
def array(address, n, dtype):
    return carray(pointer(address, dtype), n)


# Numbers in a half type. All casts are written out: numba widens sums of uint32 to 64 bits.


@kernel
def from_bfloat16(half):
    return bitcast(np.uint32(np.uint32(half) << np.uint32(16)), np.float32)


@kernel
def to_bfloat16(x):
    u = bitcast(x, np.uint32)
    odd = np.uint32(np.uint32(u >> np.uint32(16)) & np.uint32(1))
    rounded = np.uint32(np.uint32(u + np.uint32(np.uint32(0x7FFF) + odd)) >> np.uint32(16))
    return np.uint16(rounded) if x == x else np.uint16(0x7FC0)


@kernel
def from_float16(half):
    sign = np.uint32(np.uint32(half & np.uint16(0x8000)) << np.uint32(16))
    u = np.uint32(half & np.uint16(0x7FFF))
    normal = np.uint32(np.uint32(u << np.uint32(13)) + np.uint32(112 << 23))
    infinite = np.uint32(normal + np.uint32(112 << 23))
    subnormal = bitcast(np.float32(np.int32(u)) * np.float32(2.0**-24), np.uint32)
    u = subnormal if u < np.uint32(0x400) else infinite if u >= np.uint32(0x7C00) else normal
    return bitcast(np.uint32(sign | u), np.float32)


@kernel
def to_float16(x):
    sign = np.uint32(np.uint32(bitcast(x, np.uint32) >> np.uint32(16)) & np.uint32(0x8000))
    u = np.uint32(bitcast(x, np.uint32) & np.uint32(0x7FFFFFFF))
    odd = np.uint32(np.uint32(u >> np.uint32(13)) & np.uint32(1))
    bias = np.uint32((15 - 127) * 2**23 + 0xFFF & 0xFFFFFFFF)
    normal = np.uint32(np.uint32(u + np.uint32(bias + odd)) >> np.uint32(13))
    # Below 2⁻¹⁴, the addition of 0.5 rounds to a multiple of 2⁻²⁴, the smallest float16.
    half = bitcast(bitcast(u, np.float32) + np.float32(0.5), np.uint32)
    small = np.uint32(half - np.uint32(126 << 23))
    infinite = np.uint32(0x7C00) if u <= np.uint32(255 << 23) else np.uint32(0x7E00)
    u = small if u < np.uint32(113 << 23) else infinite if u >= np.uint32(143 << 23) else normal
    return np.uint16(sign | u)


# Access to the tensors. `halves` is None if none of them is of a half type; numba then leaves the
# rest of the function out.


@kernel
def largest_bits(grad, n, unsigned, mask):
    """Return the bits of max|G|. Bits have the order of the numbers, and NaN is the largest."""
    g, m = array(grad, n, unsigned), unsigned(0)
    for i in range(n):
        m = max(m, unsigned(g[i] & mask))
    return m


@kernel
def find(grad, n, kind, halves, unsigned, mask):
    if halves is None or kind == SAME:
        return largest_bits(grad, n, unsigned, mask)
    u = largest_bits(grad, n, np.uint16, np.uint16(0x7FFF))
    return bitcast(from_bfloat16(u) if kind == BFLOAT16 else from_float16(u), unsigned)


@kernel
def load(address, n, kind, halves, scratch):
    """Return the address of the numbers in the type to compute in."""
    if halves is None or kind == SAME:
        return address
    x, half = array(scratch, n, np.float32), array(address, n, np.uint16)
    if kind == BFLOAT16:
        for i in range(n):
            x[i] = from_bfloat16(half[i])
    else:
        for i in range(n):
            x[i] = from_float16(half[i])
    return scratch


@kernel
def store(numbers, n, kind, halves, address):
    """Round the numbers into a tensor of a half type, and replace them by what it holds."""
    if halves is None or kind == SAME:
        return
    x, half = array(numbers, n, np.float32), array(address, n, np.uint16)
    if kind == BFLOAT16:
        for i in range(n):
            half[i] = to_bfloat16(x[i])
            x[i] = from_bfloat16(half[i])
    else:
        for i in range(n):
            half[i] = to_float16(x[i])
            x[i] = from_float16(half[i])


# The update.


@kernel
def update(grad, velocity, n, m, old, new, real):
    """V ← β̂ V + (1 − β̂) G / (1 + s·s)  with s = G max|G|."""
    g, v, one = array(grad, n, real), array(velocity, n, real), real(1)
    for i in range(n):
        s = g[i] * m
        v[i] = old * v[i] + new * (g[i] / (one + s * s))


@kernel
def descend(p, velocity, n, lr, decay, decays, real):
    """W ← W − η λ W − η V."""
    w, v = array(p, n, real), array(velocity, n, real)
    if decays:
        for i in range(n):
            w[i] = w[i] - w[i] * decay
    for i in range(n):
        w[i] = w[i] - v[i] * lr


@kernel
def bytes_of(kind, real_bytes):
    return real_bytes if kind == SAME else 2


@kernel
def set_coefficients(call, tensors, groups, weights, real):
    """Set β̂ and 1 − β̂ of every tensor, and return how many have no valid number of steps."""
    invalid = 0
    for i in range(call.tensor_count):
        group = groups[tensors[i, GROUP_INDEX]]
        step = np.float64(array(tensors[i, STEP], 1, np.float32)[0])
        if not 0 <= step < np.inf or step != np.floor(step):
            invalid += 1
        t = step + group[FIRST_STEP]
        new = ((1 - group[BETA]) * t + 1) / (t + 2)
        weights[i, OLD] = real((group[BETA] * t + 1) / (t + 2))
        # The gradient term is odd in G: of −G, it is −ζ.
        weights[i, NEW] = real(-new if group[MAXIMIZE] else new)
    return invalid


@kernel
def count(call, tensors):
    """Add 1 to every counter."""
    for i in range(call.tensor_count):
        step = array(tensors[i, STEP], 1, np.float32)
        step[0] += np.float32(1)


@kernel
def step(data, real, real_bytes, unsigned, mask, halves):
    call = carray(data, 1, CALL)[0]
    tensors = carray(pointer(call.tensors, np.int64), (call.tensor_count, 7))
    pieces = carray(pointer(call.pieces, np.int64), (call.piece_count, 3))
    groups = carray(pointer(call.groups, np.float64), (call.group_count, 6))
    weights = carray(pointer(call.weights, real), (call.tensor_count, 2))
    maxima = array(call.maxima, call.piece_count, real)
    bits = array(call.maxima, call.piece_count, unsigned)
    if call.phase == SET:
        call.invalid = set_coefficients(call, tensors, groups, weights, real)
        return
    if call.phase == COUNT:
        count(call, tensors)
        return
    p_bytes, grad_bytes = bytes_of(call.p_kind, real_bytes), bytes_of(call.grad_kind, real_bytes)
    velocity_bytes = bytes_of(call.velocity_kind, real_bytes)
    scratch_g = call.scratch + take(call.counters + 8) * SCRATCH * 4
    scratch_v, scratch_w = scratch_g + BLOCK * 4, scratch_g + 2 * BLOCK * 4
    while True:
        j = take(call.counters)
        if j >= call.piece_count:
            return
        i, start, length = pieces[j, TENSOR], pieces[j, START], pieces[j, LENGTH]
        whole = length == tensors[i, SIZE]
        p = tensors[i, P] + start * p_bytes
        grad = tensors[i, GRAD] + start * grad_bytes
        velocity = tensors[i, VELOCITY] + start * velocity_bytes
        if call.phase == FIND:
            if tensors[i, MAX_ABS]:
                bits[j] = array(tensors[i, MAX_ABS], 1, unsigned)[0]
            else:
                bits[j] = find(grad, length, call.grad_kind, halves, unsigned, mask)
        if whole != (call.phase == FIND):  # a whole tensor moves in FIND, a part in MOVE
            continue
        group = groups[tensors[i, GROUP_INDEX]]
        lr, decay, decays = real(group[LR]), real(group[DECAY]), group[DECAYS] != 0
        for a in range(0, length, BLOCK):
            n = min(BLOCK, length - a)
            g_now, v_now, p_now = (
                grad + a * grad_bytes,
                velocity + a * velocity_bytes,
                p + a * p_bytes,
            )
            g = load(g_now, n, call.grad_kind, halves, scratch_g)
            v = load(v_now, n, call.velocity_kind, halves, scratch_v)
            update(g, v, n, maxima[j], weights[i, OLD], weights[i, NEW], real)
            store(v, n, call.velocity_kind, halves, v_now)
            w = load(p_now, n, call.p_kind, halves, scratch_w)
            descend(w, v, n, lr, decay, decays, real)
            store(w, n, call.p_kind, halves, p_now)


def float32(data):
    step(data, np.float32, 4, np.uint32, np.uint32(2**31 - 1), None)


def float64(data):
    step(data, np.float64, 8, np.uint64, np.uint64(2**63 - 1), None)


def half(data):
    step(data, np.float32, 4, np.uint32, np.uint32(2**31 - 1), True)


@functools.cache
def compiled(function: Callable[[Any], None]) -> Any:
    """Return a kernel, from numba's cache on the disk if that has it and can be used."""
    try:
        return cfunc("void(voidptr)", cache=True)(function)
    except Exception:  # for example, no folder can be written, or a file there is spoilt
        return cfunc("void(voidptr)")(function)
