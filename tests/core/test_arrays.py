"""The helpers that the array-API standard lacks, alone."""

import contextlib
import re
from types import SimpleNamespace

import array_api_compat.numpy
import ml_dtypes
import numpy as np
import pytest

from gravity_core import _arrays

LONG = np.dtype(np.longdouble).name
# IEEE 754: p digits and the largest exponent; bfloat16 has the exponents of float32.
FORMATS = {
    "float16": (16, 11, 15),
    "bfloat16": (16, 8, 127),
    "float32": (32, 24, 127),
    "float64": (64, 53, 1023),
}
NUMPY_DTYPE = {name: np.dtype(name if name != "bfloat16" else "V2") for name in FORMATS}
NUMPY_DTYPE["bfloat16"] = np.dtype(ml_dtypes.bfloat16)


class Dtype:
    """A dtype without a name, as those of torch and array-api-strict."""

    def __init__(self, text):
        self.text = text

    def __str__(self):
        return self.text


def test_the_namespace_is_the_given_one_or_that_of_the_arrays():
    given = object()
    assert _arrays.namespace(given, grad=np.ones(1)) is given
    assert _arrays.namespace(None, grad=np.ones(1), v=np.ones(1)) is array_api_compat.numpy
    with pytest.raises(TypeError) as caught:
        _arrays.namespace(None, grad=[1.0], v=np.ones(1))
    assert str(caught.value) == (
        "cannot tell the array namespace of grad list, v ndarray: pass arrays of one array-API "
        "library, or xp= (keras.ops for TensorFlow tensors)"
    )
    assert isinstance(caught.value.__cause__, TypeError)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (np.dtype(">f4"), "float32"),
        (Dtype("torch.float32"), "float32"),
        (Dtype("some.library.bfloat16"), "bfloat16"),
        (Dtype("float16"), "float16"),
        (SimpleNamespace(name=""), "namespace(name='')"),
    ],
    ids=str,
)
def test_the_name_of_a_dtype(dtype, name):
    assert _arrays.dtype_name(dtype) == name


def test_only_floating_dtypes_have_a_name():
    for name, dtype in NUMPY_DTYPE.items():
        assert _arrays.float_name(np.ones(1, dtype), "x") == name
    assert _arrays.float_name(np.ones(1, "g"), "x", long_double=True) == LONG
    for dtype in ("int32", "complex64", "bool", LONG):
        with pytest.raises(TypeError) as caught:
            _arrays.float_name(np.ones(1, dtype), "x")
        assert str(caught.value) == (
            "x must be a real floating-point array (float16, bfloat16, float32 or float64; view "
            f"complex as pairs of reals), got dtype {dtype}"
        )
    with pytest.raises(TypeError, match=r"^x must be .* got dtype int64$"):
        _arrays.float_name(np.ones(1, "int64"), "x", long_double=True)


@pytest.mark.parametrize("name", FORMATS)
def test_the_limits_of_a_dtype_follow_from_ieee_754(name):
    width, digits, exponent = FORMATS[name]
    limits = (2.0**-digits, 2.0 ** (1 - exponent), (2 - 2.0 ** (1 - digits)) * 2.0**exponent)
    for dtype in (name, NUMPY_DTYPE[name], Dtype(f"torch.{name}")):
        assert _arrays.float_info(dtype) == (name, width, *limits)


def test_other_dtypes_have_no_limits():
    for arguments, name in ((("int8",), "dtype"), (("int8", "w"), "w")):
        message = f"{name} must be float16, bfloat16, float32 or float64, got 'int8'"
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            _arrays.float_info(*arguments)
    with pytest.raises(TypeError, match=r"^dtype must be .* got 'numpy.float32'$"):
        _arrays.float_info("numpy.float32")  # text is a name, and not a dtype's text


def test_the_working_dtype_is_the_widest_and_at_least_float32():
    half, single, double, long = (np.ones(1, d) for d in ("float16", "float32", "float64", "g"))
    xp = SimpleNamespace(float32=object())
    for arrays, want in (
        ({"a": half}, xp.float32),
        ({"a": half, "b": half}, xp.float32),
        ({"a": single, "b": half}, single.dtype),
        ({"a": single, "b": double}, double.dtype),
        ({"a": double, "b": single}, double.dtype),
        ({"a": double, "b": long}, long.dtype),
    ):
        assert _arrays.working_dtype(xp, **arrays) is want
    assert _arrays.working_dtype(SimpleNamespace(), a=half) == "float32"
    with pytest.raises(TypeError, match=r"^b must be .* got dtype int64$"):
        _arrays.working_dtype(xp, a=half, b=np.ones(1, int))


def test_a_cast_changes_the_dtype_only():
    xp, array = array_api_compat.numpy, np.asarray([1.5, 2], np.float32)
    for same in (0.5, array):
        assert _arrays.cast(same, np.dtype("float32"), xp) is same
    for wide in (_arrays.cast(array, np.float64, xp), _arrays.cast(array[0], np.float64, xp)):
        assert wide.dtype == np.float64
        assert wide.tolist() in ([1.5, 2.0], 1.5)
    assert _arrays.cast(np.ones(1), np.dtype("float32"), xp).dtype == np.float32
    calls = []
    keras = SimpleNamespace(cast=lambda *arguments: calls.append(arguments))
    _arrays.cast(array, "float64", keras)
    assert calls == [(array, "float64")]


def test_only_an_integer_array_is_cast_as_a_counter():
    xp, dtype = array_api_compat.numpy, np.dtype("float32")
    for t in (3, 3.0, np.int64(3), np.ones(1, np.float64), np.ones(1, ml_dtypes.bfloat16)):
        assert _arrays.float_counter(t, dtype, xp) is t
    got = _arrays.float_counter(np.asarray(3), dtype, xp)
    assert (got.dtype, got.item()) == (dtype, 3)


def test_libraries_other_than_torch_compute_quietly():
    before = np.geterr()
    for xp in (np, SimpleNamespace(), SimpleNamespace(__name__="torchlike")):
        with _arrays.quiet(xp, over="ignore", divide="raise"):
            assert np.geterr() == before | {"over": "ignore", "divide": "raise"}
    for name in ("torch", "array_api_compat.torch"):
        quiet = _arrays.quiet(SimpleNamespace(__name__=name), over="ignore")
        assert isinstance(quiet, contextlib.nullcontext)


def test_shapes_must_agree_where_they_are_known():
    def shapes(*shapes):
        arrays = (SimpleNamespace(shape=shape) for shape in shapes)
        _arrays.check_same_shape(**dict(zip("abc", arrays, strict=False)))

    shapes((2, 3), [2, 3], (None, 3))
    shapes((None, 3), (2, 3))
    for others, name, got in (
        (((2, 3), (2, 4)), "c", (2, 4)),
        (((2, 3, 1),), "b", (2, 3, 1)),
        (((2,),), "b", (2,)),
        (((3, None), (2, 3)), "b", (3, None)),
    ):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            shapes((2, 3), *others)
        assert str(caught.value) == f"{name} must have the shape of a, (2, 3), got {got}"
