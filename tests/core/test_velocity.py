"""V₀: the generator against known answers, JAX and plain integers; distribution; slices."""

import math
import re
import statistics
from itertools import chain
from types import SimpleNamespace

import array_api_compat
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gravity_core import initial_velocity, velocity
from tests.support.backends import BACKENDS, numpy_dtype
from tests.support.values import shapes

MASK = 0xFFFFFFFF
words = st.integers(0, MASK)
seeds = st.one_of(st.integers(0, 9), st.integers(0, 2**64 - 1))
WORD_TYPES = [("numpy-int32", BACKENDS[0], np.int32)] + [
    (backend.name, backend, np.uint32) for backend in BACKENDS
]
on_word_types = pytest.mark.parametrize(
    ("backend", "dtype"), [case[1:] for case in WORD_TYPES], ids=[case[0] for case in WORD_TYPES]
)


# The recipe of the module's docstring in Python integers, from the paper on Threefry:
# rotate left, add mod 2³², inject the key after every fourth round.


def threefry(key, counter):
    ks = (*key, 0x1BD11BDA ^ key[0] ^ key[1])
    x, y = (counter[0] + ks[0]) & MASK, (counter[1] + ks[1]) & MASK
    for r in range(20):
        n = (13, 15, 26, 6, 17, 29, 16, 24)[r % 8]
        x = (x + y) & MASK
        y = (((y << n) | (y >> (32 - n))) & MASK) ^ x
        if r % 4 == 3:
            i = r // 4 + 1
            x, y = (x + ks[i % 3]) & MASK, (y + ks[(i + 1) % 3] + i) & MASK
    return x, y


def halfword(i, seed, index):
    """Return k of element i."""
    key = threefry((seed >> 32, seed & MASK), (0, index))
    y = threefry(key, (i // 4 >> 32, i // 4 & MASK))
    return y[i % 4 // 2] >> 16 * (i % 2) & 0xFFFF


def z_by_hand(start, stop, seed=0, index=0):
    ks = [halfword(i, seed, index) for i in range(start, stop)]
    return np.asarray([statistics.NormalDist().inv_cdf((k + 0.5) / 65_536) for k in ks], np.float32)


def as_words(numbers, dtype=np.uint32):
    return np.asarray(numbers, np.uint32).view(dtype)


def z_slice(start, stop, **stream):
    chunks = list(velocity.standard_normal(start, stop, **stream))
    assert [a for a, _, _ in chunks[1:]] == [b for _, b, _ in chunks[:-1]]
    assert all(z.shape == (b - a,) for a, b, z in chunks)
    if stop > start:
        assert (chunks[0][0], chunks[-1][1]) == (start, stop)
    return np.concatenate([np.empty(0, np.float32), *(z for _, _, z in chunks)])


KNOWN_ANSWERS = [  # counter, key, output: Random123's kat_vectors
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((MASK, MASK), (MASK, MASK), (0x1CB996FC, 0xBB002BE7)),
    ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
]


def hashed(k0, k1, c0, c1, *, xp):
    return velocity.threefry2x32((k0, k1), (c0, c1), xp=xp)


def call_hashed(backend, dtype, *numbers):
    got = backend.call(hashed, *(as_words([n], dtype) for n in numbers))
    return tuple(int(np.asarray(word).view(np.uint32)[0]) for word in got)


@on_word_types
@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_threefry_known_answers(backend, dtype, counter, key, output):
    backend.load()
    assert call_hashed(backend, dtype, *key, *counter) == output
    assert threefry(key, counter) == output  # the test's own implementation


@on_word_types
@given(key=st.tuples(words, words), counter=st.tuples(words, words))
def test_threefry_equals_plain_integer_arithmetic(backend, dtype, key, counter):
    backend.load()
    assert call_hashed(backend, dtype, *key, *counter) == threefry(key, counter)


@given(key=st.tuples(words, words), counters=st.lists(st.tuples(words, words), min_size=1))
def test_threefry_equals_jaxs(key, counters):
    pytest.importorskip("jax", reason="compares with jax.extend.random", exc_type=ImportError)
    from jax.extend import random

    c0, c1 = as_words(counters).T
    want = random.threefry_2x32(as_words(key), np.concatenate([c0, c1]))  # first half, second half
    got = velocity.threefry2x32(tuple(as_words(key)[:, None]), (c0, c1))
    np.testing.assert_array_equal(np.concatenate(got), want)


def test_the_first_key_is_a_known_answer():
    assert tuple(int(word[0]) for word in velocity.tensor_key()) == KNOWN_ANSWERS[0][2]


@given(seed=seeds, index=words)
def test_tensor_key_equals_fold_in_of_jax(seed, index):
    jax = pytest.importorskip("jax", reason="compares with jax.random", exc_type=ImportError)
    seed_words = as_words([seed >> 32, seed & MASK])
    key = jax.random.wrap_key_data(seed_words, impl="threefry2x32")
    want = jax.random.key_data(jax.random.fold_in(key, np.uint32(index)))
    np.testing.assert_array_equal(np.concatenate(velocity.tensor_key(seed, index)), want)
    got = velocity.fold_in(tuple(seed_words[:, None]), as_words([index]))
    np.testing.assert_array_equal(np.concatenate(got), want)


def normal(k0, k1, hi, lo, quantiles, *, xp):
    return velocity.normal_blocks((k0, k1), (hi, lo), quantiles, xp=xp)


@on_word_types
@given(seed=seeds, index=words, blocks=st.lists(st.tuples(words, words), min_size=9, max_size=9))
def test_normal_blocks_have_the_same_bits_everywhere(backend, dtype, seed, index, blocks):
    backend.load()
    key = [word.view(dtype) for word in velocity.tensor_key(seed, index)]
    hi, lo = (np.ascontiguousarray(column) for column in as_words(blocks, dtype).T)
    got = backend.call(normal, *key, hi, lo, velocity.normal_quantiles())
    elements = [4 * (h << 32 | low) + i for h, low in blocks for i in range(4)]
    ks = [halfword(i, seed, index) for i in elements]
    assert (got.dtype, got.shape) == (np.float32, (36,))
    assert got.tobytes() == velocity.normal_quantiles()[ks].tobytes()


def elements(k0, k1, hi, lo, quantiles, *, xp):
    return velocity.normal_elements((k0, k1), (hi, lo), quantiles, xp=xp)


@on_word_types
@given(
    seed=seeds,
    index=words,
    chosen=st.lists(
        st.integers(0, 2**64 - 1) | st.integers(2**32 - 9, 2**32 + 9) | st.integers(0, 40),
        min_size=9,
        max_size=9,
    ),
)
def test_normal_elements_equal_the_recipe(backend, dtype, seed, index, chosen):
    backend.load()
    key = [word.astype(dtype) for word in velocity.tensor_key(seed, index)]
    hi, lo = (as_words(n, dtype) for n in zip(*(divmod(i, 2**32) for i in chosen), strict=True))
    quantiles = velocity.normal_quantiles()
    got = backend.call(elements, *key, hi, lo, quantiles)
    assert got.tolist() == [float(quantiles[halfword(i, seed, index)]) for i in chosen]


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b.mode == "eager"], ids=str)
def test_standard_normal_on_every_library(backend):
    backend.load()
    got = [
        backend.to_numpy(z)
        for _, _, z in velocity.standard_normal(
            3, 70_001, seed=5, index=2, asarray=backend.asarray, xp=backend.xp
        )
    ]
    assert np.concatenate(got).tobytes() == z_slice(3, 70_001, seed=5, index=2).tobytes()


class Minimal(SimpleNamespace):
    """A namespace with nothing but what the generator needs, in the standard's strictest form."""

    bitwise_left_shift, bitwise_right_shift = map(staticmethod, (np.left_shift, np.right_shift))
    stack, where = staticmethod(np.stack), staticmethod(np.where)

    @staticmethod
    def take(x, indices, *, axis):
        assert axis == 0  # optional since 2023.12
        return np.take(x, indices, axis)

    @staticmethod
    def reshape(x, shape):
        assert min(shape, default=0) >= -1  # NumPy accepts every negative number
        return np.reshape(x, shape)


def test_only_the_given_namespace_is_used(monkeypatch):
    key, hi = velocity.tensor_key(3, 1), np.zeros(6, np.uint32)
    words, quantiles = (hi, np.arange(6, dtype=np.uint32)), velocity.normal_quantiles()
    calls = [
        lambda **xp: np.stack(velocity.threefry2x32(key, words, **xp)),
        lambda **xp: np.stack(velocity.fold_in(key, words[1], **xp)),
        lambda **xp: velocity.normal_blocks(key, words, quantiles, **xp),
        lambda **xp: velocity.element_halfwords(key, words, **xp),
        lambda **xp: velocity.normal_elements(key, words, quantiles, **xp),
    ]
    inferred = [call() for call in calls]

    def refuse(*arrays):
        raise AssertionError("the arrays must not be asked")

    monkeypatch.setattr(velocity, "tensor_key", lambda seed, index: key)  # made by NumPy
    monkeypatch.setattr(array_api_compat, "array_namespace", refuse)
    given = [call(xp=Minimal()) for call in calls]
    for got, want in zip(given, inferred, strict=True):
        assert got.tobytes() == want.tobytes()
    z = next(velocity.standard_normal(2, 9, seed=3, index=1, xp=Minimal()))[2]
    monkeypatch.undo()
    assert z.tobytes() == z_by_hand(2, 9, 3, 1).tobytes()


def test_quantiles_equal_scipys():
    scipy = pytest.importorskip("scipy.special", reason="compares with scipy.special.ndtri")
    z = velocity.normal_quantiles()
    # Two float64 implementations. No value is so close to the middle of two float32 numbers
    # that the results round differently.
    want = scipy.ndtri((np.arange(65_536) + 0.5) / 65_536).astype(np.float32)
    np.testing.assert_array_equal(z, want)
    assert (np.diff(z) > 0).all()


@given(k=st.one_of(st.integers(0, 65_535), st.sampled_from([0, 1, 32_767, 32_768, 65_535])))
def test_quantiles_are_the_nearest_float32_to_the_true_ones(k):
    mpmath = pytest.importorskip("mpmath", reason="computes the quantiles to 40 digits")
    with mpmath.workdps(40):
        p = mpmath.mpf(2 * k + 1) / 131_072
        true = mpmath.sqrt(2) * mpmath.erfinv(2 * p - 1)
        z = velocity.normal_quantiles()[k]
        error = abs(mpmath.mpf(float(z)) - true)
        assert error <= mpmath.mpf(float(np.spacing(np.abs(z)))) / 2


def test_quantiles_are_odd_shared_and_read_only():
    z = velocity.normal_quantiles()
    assert z is velocity.normal_quantiles()
    assert not z.flags.writeable
    np.testing.assert_array_equal(z, -z[::-1])


@given(start=st.integers(0, 40), size=st.integers(0, 40), seed=seeds, index=st.integers(0, 9))
def test_standard_normal_equals_the_recipe(start, size, seed, index):
    stream = {"seed": seed, "index": index}
    want = z_by_hand(start, start + size, **stream)
    assert z_slice(start, start + size, **stream).tobytes() == want.tobytes()


WHOLE = 2 * 4 * velocity._CHUNK + 5
near_edges = st.one_of(
    st.integers(0, WHOLE),
    st.sampled_from([4 * velocity._CHUNK, 8 * velocity._CHUNK]).flatmap(
        lambda edge: st.integers(edge - 5, edge + 5)
    ),
)


@given(bounds=st.tuples(near_edges, near_edges).map(sorted))
def test_any_slice_is_the_slice_of_the_whole(bounds):
    start, stop = bounds
    assert z_slice(start, stop).tobytes() == z_slice(0, WHOLE)[start:stop].tobytes()


@given(
    start=st.one_of(
        st.integers(2**34 - 20, 2**34 + 20),  # block 2³²: the high word becomes 1
        st.integers(2**36 - 20, 2**36 + 20),
        st.integers(2**34, 2**60),
    )
)
@example(start=2**60 + 1)  # stop / 4 is no float64
def test_elements_beyond_the_low_counter_word(start):
    assert z_slice(start, start + 11, seed=3).tobytes() == z_by_hand(start, start + 11, 3).tobytes()


def test_the_distribution_is_normal_within_sampling_error():
    n, p = 2**20, 1e-9  # p: the probability that a sample of N(0, 1) fails a check
    z = np.sort(z_slice(0, n, seed=11).astype(np.float64))
    deviations = statistics.NormalDist().inv_cdf(1 - p / 2)
    levels = velocity.normal_quantiles().astype(np.float64)
    variance = (levels**2).mean()  # slightly below 1, because there are 65 536 values
    assert abs(z.mean()) <= deviations / math.sqrt(n)
    assert abs((z**2).mean() - variance) <= deviations * math.sqrt(2 / n)  # var z² = 2
    # Massart's bound on the distance of an empirical distribution, and half a step of the 65 536.
    cdf = np.asarray([statistics.NormalDist().cdf(x) for x in levels])
    counts = np.searchsorted(z, levels, side="right") / n
    distance = np.abs(counts - cdf).max()
    assert distance <= math.sqrt(math.log(2 / p) / (2 * n)) + 0.5 / 65_536
    assert np.abs(z).max() <= levels[-1] < 4.33


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"index": 0}, {"index": 1}),
        ({"seed": 0}, {"seed": 1}),
        ({"seed": 1}, {"seed": 2**32}),
        ({"seed": 0, "index": 1}, {"seed": 1, "index": 0}),
    ],
    ids=str,
)
def test_streams_are_not_correlated(first, second):
    n, p = 2**16, 1e-9
    product = z_slice(0, n, **first).astype(np.float64) * z_slice(0, n, **second)
    assert abs(product.mean()) <= statistics.NormalDist().inv_cdf(1 - p / 2) / math.sqrt(n)


def test_neighbours_are_not_correlated():
    n, p = 2**18, 1e-9
    z = z_slice(0, n + 4).astype(np.float64)
    for lag in (1, 2, 3, 4):
        limit = statistics.NormalDist().inv_cdf(1 - p / 2) / math.sqrt(n)
        assert abs((z[:n] * z[lag : n + lag]).mean()) <= limit


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@given(shape=shapes(), std=st.floats(0, 100), seed=seeds, index=st.integers(0, 9))
def test_initial_velocity_is_sigma_z_in_each_dtype(dtype, shape, std, seed, index):
    dtype = numpy_dtype(dtype)
    v = initial_velocity(shape, dtype, std=std, seed=seed, index=index)
    z = z_by_hand(0, math.prod(shape), seed, index)
    wide = np.float64 if dtype == np.float64 else np.float32
    want = (z.astype(wide) * wide(std)).astype(dtype)
    assert (v.shape, v.dtype) == (shape, dtype)
    assert v.tobytes() == want.tobytes()


@pytest.mark.parametrize("index", [-1, 2**32, 1.0, True, None, "1"])
def test_an_index_that_is_no_word_is_refused(index):
    message = re.escape(f"index must be an integer in [0, 2**32), got {index!r}")
    with pytest.raises(ValueError, match=f"^{message}$"):
        velocity.tensor_key(0, index)
    with pytest.raises(ValueError, match=f"^{message}$"):
        initial_velocity((1,), std=1.0, index=index)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (5, "shape must be a tuple of integers, got 5"),
        (None, "shape must be a tuple of integers, got None"),
        ((2, -1), "each size in shape must be an integer >= 0, got -1"),
        ((2.0,), "each size in shape must be an integer >= 0, got 2.0"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_a_shape_that_is_none_is_refused(shape, message, dtype):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        initial_velocity(shape, dtype, std=1.0)


def test_the_last_index_and_seed_have_a_velocity_of_their_own():
    stream = {"seed": 2**64 - 1, "index": 2**32 - 1}
    v = initial_velocity((5,), std=1.0, **stream)
    assert v.tobytes() == z_by_hand(0, 5, **stream).tobytes()


@pytest.mark.parametrize(
    ("dtype", "std", "message"),
    [
        # 65 504 / 4.328, 65 504 being the largest number of float16
        ("float16", 15_200.0, r"std must be in \[0, 15100\] for V_0 in float16, got 15200.0"),
        ("float16", -1.0, r"std must be None or a number in \[0, 7.86e\+37\], got -1.0"),
        ("complex64", 1e38, r"std must be None or a number in \[0, 7.86e\+37\], got 1e\+38"),
        ("float64", "1", r"std must be None or a number in \[0, 7.86e\+37\], got '1'"),
        ("float64", None, r"std must be a number in \[0, 7.86e\+37\], got None"),
    ],
)
def test_a_velocity_that_overflows_is_refused(dtype, std, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        initial_velocity((2,), dtype, std=std)


def test_a_velocity_of_integers_is_refused():
    with pytest.raises(TypeError, match=r"^dtype must be .* got dtype int32$"):
        initial_velocity((2,), np.int32, std=1.0)


@pytest.mark.parametrize(("dtype", "real"), [("complex64", "float32"), ("complex128", "float64")])
@given(shape=shapes())
def test_complex_velocities_are_pairs_of_reals(dtype, real, shape):
    v = initial_velocity(shape, dtype, std=0.3, seed=1, index=2)
    pairs = initial_velocity((*shape, 2), real, std=0.3, seed=1, index=2)
    assert (v.shape, v.dtype) == (shape, np.dtype(dtype))
    assert v.real.tobytes() == np.ascontiguousarray(pairs[..., 0]).tobytes()
    assert v.imag.tobytes() == np.ascontiguousarray(pairs[..., 1]).tobytes()


def test_large_velocities_are_made_in_chunks():
    shape = (3, 4 * velocity._CHUNK + 1)
    v = initial_velocity(shape, std=1.0, seed=4)
    assert v.tobytes() == z_slice(0, math.prod(shape), seed=4).tobytes()
    edges = [0, *(4 * velocity._CHUNK * i for i in (1, 2, 3)), math.prod(shape)]
    ends = [(a, b) for a, b, _ in velocity.standard_normal(0, math.prod(shape), seed=4)]
    assert list(chain.from_iterable(ends)) == sorted([*edges, *edges[1:-1]])
