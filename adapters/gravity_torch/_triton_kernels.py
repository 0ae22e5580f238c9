"""The kernels of `fused=True` on a GPU, in Triton: each launch works on many tensors.

Guarantees: V and W have the bits of the NumPy reference. The kernels make the operations of
`gravity_core.update` one by one. They are launched with `enable_fp_fusion=False`, so that no
product is fused with a sum, and they divide with correct rounding (see `divide`). Subnormal
numbers stay. Half types are computed in float32, and V and W are rounded once.

Everything that a kernel needs is in one table of 64-bit integers: a header, a row for each tensor,
and a row for each chunk of a tensor, which is the work of one program. float64 numbers are in the
table by their bits, because Triton passes a Python float as a float32.

Importing this file imports Triton, so only `_fused_cuda` imports it. Before version 3.6, which
comes with torch 2.10, that is an ImportError.
"""

import triton
import triton.language as tl

if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 6):
    raise ImportError("Triton's division flushes subnormal numbers to zero before version 3.6")

# The header: the address of η, where η itself is if it is no tensor, λ, β, the first t, and the
# sign of the gradient, which is −1 to maximize.
LR, LR_VALUE, WEIGHT_DECAY, BETA, FIRST_STEP, SIGN, HEADER = map(tl.constexpr, range(7))
# The row of a tensor: addresses, the number of elements, the address of max|G|, which is 0 if a
# kernel is to find it, β̂ and 1 − β̂ in float64, and the bits of max|G| that `find` found.
(P, GRAD, VELOCITY, STEP, SIZE, MAX_ABS, OLD, NEW, FOUND, ROW) = map(tl.constexpr, range(10))
# The row of a chunk: the tensor's index, the first element, the number of elements, and how many
# of these are in whole blocks that can be moved 16 bytes at a time.
TENSOR, START, LENGTH, WHOLE, CHUNK = map(tl.constexpr, range(5))


@triton.jit
def number(place):
    """Return the float64 whose bits are in the table."""
    return tl.load(place).to(tl.float64, bitcast=True)


@triton.jit
def divide(x, y):
    """Return x / y, correctly rounded.

    For float32, Triton's `/` may be off by 2 ulp, and `div_rn` is the IEEE operation. For float64,
    Triton has no `div_rn`, and `/` is the IEEE operation.
    """
    return x / y if x.dtype == tl.float64 else tl.div_rn(x, y)


# Triton's interpreter, which tests the kernels without a GPU, truncates to bfloat16.
ROUNDS_TO_BFLOAT16 = tl.constexpr(isinstance(divide, triton.JITFunction))

# Access to the tensors. The bits of a bfloat16 are moved as an integer.


@triton.jit
def place(row, column: tl.constexpr, dtype: tl.constexpr, start, masked: tl.constexpr):
    """Return the address of a chunk of a tensor.

    What is promised of an address holds wherever it is used. So whole blocks, which promise that
    the address is a multiple of 16, load it apart from the rest.
    """
    stored: tl.constexpr = tl.uint16 if dtype == tl.bfloat16 else dtype
    address = tl.load(row + column).to(tl.pointer_type(stored))
    if not masked:
        address = tl.multiple_of(address, 16)
    return address + start


@triton.jit
def load(address, mask, masked: tl.constexpr, dtype: tl.constexpr, real: tl.constexpr):
    """Return numbers in the type to compute in, 0 where the mask is false.

    Without a mask, the compiler can load 16 bytes at a time.
    """
    x = tl.load(address, mask=mask, other=0) if masked else tl.load(address)
    return widen(x, dtype, real)


@triton.jit
def store(address, x, mask, masked: tl.constexpr):
    """Store numbers that `narrow` has made."""
    if masked:
        tl.store(address, x, mask=mask)
    else:
        tl.store(address, x)


@triton.jit
def widen(x, dtype: tl.constexpr, real: tl.constexpr):
    """Return stored numbers in the type to compute in."""
    if dtype == tl.bfloat16:
        x = (x.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(real)


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """Return numbers as they are stored, rounded to nearest, ties to even."""
    if dtype == tl.bfloat16 and ROUNDS_TO_BFLOAT16:
        x = x.to(tl.bfloat16).to(tl.uint16, bitcast=True)
    elif dtype == tl.bfloat16:
        u = x.to(tl.uint32, bitcast=True)
        rounded = (u + 0x7FFF + ((u >> 16) & 1)) >> 16
        x = tl.where(x == x, rounded, 0x7FC0).to(tl.uint16)
    else:
        x = x.to(dtype)
    return x


# The kernels, in the order of their launches. Those on one stream run one after the other.


@triton.jit(do_not_specialize=["tensors"])
def count(table, tensors, block: tl.constexpr):
    """Add 1 to every counter on the GPU, and set β̂ and 1 − β̂ of every tensor.

    A counter is read and written here only, by one thread, so no reader can see it too late.
    """
    i = tl.program_id(0) * block + tl.arange(0, block)
    mask = i < tensors
    row = table + HEADER + i * ROW
    counter = tl.load(row + STEP, mask=mask, other=0).to(tl.pointer_type(tl.float32))
    step = tl.load(counter, mask=mask, other=0.0)
    tl.store(counter, step + 1.0, mask=mask)
    t = step.to(tl.float64) + number(table + FIRST_STEP)
    beta = number(table + BETA)
    old = divide(beta * t + 1.0, t + 2.0)
    # The gradient term is odd in G: of −G, it is −ζ.
    new = divide((1.0 - beta) * t + 1.0, t + 2.0) * number(table + SIGN)
    tl.store(row + OLD, old.to(tl.int64, bitcast=True), mask=mask)
    tl.store(row + NEW, new.to(tl.int64, bitcast=True), mask=mask)


@triton.jit(do_not_specialize=["chunks"])
def find(table, chunks, grad_type: tl.constexpr, real: tl.constexpr, block: tl.constexpr):
    """Find max|G|, where it is not given, over the bits of |G|, which have the order of numbers.

    The bits of NaN are the greatest.
    """
    integer: tl.constexpr = tl.int64 if real == tl.float64 else tl.int32
    absolute: tl.constexpr = 0x7FFFFFFFFFFFFFFF if real == tl.float64 else 0x7FFFFFFF
    chunk = table + chunks + tl.program_id(0) * CHUNK
    row = table + HEADER + tl.load(chunk + TENSOR) * ROW
    if tl.load(row + MAX_ABS) == 0:
        start = tl.multiple_of(tl.load(chunk + START), block)
        length, whole = tl.load(chunk + LENGTH).to(tl.int32), tl.load(chunk + WHOLE).to(tl.int32)
        m = tl.full([block], 0, integer)
        for masked in tl.static_range(2):  # whole blocks, and the rest
            grad = place(row, GRAD, grad_type, start, masked)
            for i in range(whole if masked else 0, length if masked else whole, block):
                j = i + tl.arange(0, block)
                g = load(grad + j, j < length, masked, grad_type, real)
                m = tl.maximum(m, g.to(integer, bitcast=True) & absolute)
        # The next kernel starts when this one has ended, so the order of memory may be relaxed.
        tl.atomic_max((row + FOUND).to(tl.pointer_type(integer)), tl.max(m, 0), sem="relaxed")


@triton.jit(do_not_specialize=["chunks"])
def update(
    table,
    chunks,
    p_type: tl.constexpr,
    grad_type: tl.constexpr,
    velocity_type: tl.constexpr,
    real: tl.constexpr,
    decays: tl.constexpr,
    block: tl.constexpr,
):
    """V ← β̂ V + (1 − β̂) G / (1 + s·s)  with s = G max|G|, and W ← W − η λ W − η V."""
    # The last chunks first: the cache still has their gradients, from `find`.
    chunk = table + chunks + (tl.num_programs(0) - 1 - tl.program_id(0)) * CHUNK
    row = table + HEADER + tl.load(chunk + TENSOR) * ROW
    given, maximum = tl.load(row + MAX_ABS), row + FOUND
    if given != 0:
        maximum = given.to(tl.pointer_type(tl.int64))
    m = tl.load(maximum.to(tl.pointer_type(real)))
    lr = tl.load(tl.load(table + LR).to(tl.pointer_type(tl.float64)))
    # Each of these is rounded once, from float64.
    decay = (lr * number(table + WEIGHT_DECAY)).to(real)
    old, new, lr = number(row + OLD).to(real), number(row + NEW).to(real), lr.to(real)
    start = tl.multiple_of(tl.load(chunk + START), block)
    length, whole = tl.load(chunk + LENGTH).to(tl.int32), tl.load(chunk + WHOLE).to(tl.int32)
    for masked in tl.static_range(2):  # whole blocks, and the rest
        p = place(row, P, p_type, start, masked)
        grad = place(row, GRAD, grad_type, start, masked)
        velocity = place(row, VELOCITY, velocity_type, start, masked)
        for i in range(whole if masked else 0, length if masked else whole, block):
            j = i + tl.arange(0, block)
            mask = j < length
            g = load(grad + j, mask, masked, grad_type, real)
            v = load(velocity + j, mask, masked, velocity_type, real)
            w = load(p + j, mask, masked, p_type, real)
            s = g * m
            v = narrow(old * v + new * divide(g, 1.0 + s * s), velocity_type)
            store(velocity + j, v, mask, masked)
            if decays:
                w = w - w * decay
            w = w - widen(v, velocity_type, real) * lr
            store(p + j, narrow(w, p_type), mask, masked)
