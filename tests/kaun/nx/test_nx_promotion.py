"""Dtype promotion: the array API's table, weak Python numbers, and questions about dtypes."""

import itertools

import numpy as np
import pytest
from kaun.compiler.ir import dtypes

from kaun import nx

NUMPY_KNOWN = [d for d in dtypes.ALL if d is not dtypes.bfloat16]


def test_pairs_of_one_kind_promote_as_numpy():
    for a, b in itertools.product(NUMPY_KNOWN, NUMPY_KNOWN):
        mixed = a.is_float != b.is_float and "bool" not in (a.kind, b.kind)
        if mixed or (dtypes.uint64 in (a, b) and "signed" in (a.kind, b.kind)):
            continue
        assert nx.result_type(a, b).numpy == np.result_type(a.numpy, b.numpy), (a, b)
        assert (nx.ones(1, dtype=a) == nx.ones(1, dtype=b)).shape == (1,)


def test_integers_take_the_dtype_of_floats():
    floats = ("float16", "bfloat16", "float32", "float64")
    for integer, number in itertools.product(("int8", "uint32", "int64"), floats):
        assert nx.result_type(integer, number).name == number
        assert (nx.ones(2, dtype=integer) * nx.ones(2, dtype=number)).dtype.name == number


def test_bfloat16_with_float16_gives_float32():
    assert (nx.ones(2, dtype="bfloat16") + nx.ones(2, dtype="float16")).dtype is nx.float32


def test_signed_with_uint64_is_an_error_that_asks_for_a_cast():
    with pytest.raises(TypeError, match=r"nx\.add: got int64 and uint64.*cast"):
        nx.ones(1, dtype="int64") + nx.ones(1, dtype="uint64")


@pytest.mark.parametrize(
    "dtype, number, expected",
    [
        ("float16", 2.0, "float16"), ("bfloat16", 2, "bfloat16"), ("float64", 2.5, "float64"), ("int8", 2, "int8"),
        ("int8", 2.5, "float32"), ("int64", 0.5, "float32"), ("bool", 2, "int64"), ("bool", 2.5, "float32"),
        ("uint8", True, "uint8"), ("float32", True, "float32"),
    ],
)  # fmt: skip
def test_python_numbers_are_weak(dtype, number, expected):
    tensor = nx.ones(2, dtype=dtype)
    assert (tensor * number).dtype.name == (number * tensor).dtype.name == expected
    assert nx.result_type(tensor, number).name == nx.where(True, number, tensor).dtype.name == expected


def test_integers_outside_of_the_dtype_are_refused():
    with pytest.raises(ValueError, match=r"nx\.add: the number 200 is outside of int8"):
        nx.ones(1, dtype="int8") + 200


def test_dtype_questions_answer_as_the_standard_says():
    assert nx.isdtype(nx.float16, "real floating") and nx.isdtype("uint8", ("signed integer", "unsigned integer"))
    assert not nx.isdtype(nx.bool, "numeric") and nx.isdtype(nx.int8, nx.int8)
    assert nx.can_cast(nx.int8, nx.int16) and not nx.can_cast(nx.int16, nx.int8)
    assert nx.finfo(nx.float32).eps == np.finfo(np.float32).eps and nx.finfo("bfloat16").max > 3e38
    assert nx.iinfo(nx.uint8).max == 255
    with pytest.raises(ValueError, match=r"nx\.isdtype: unknown kind 'floating'"):
        nx.isdtype(nx.float32, "floating")
    with pytest.raises(TypeError, match=r"nx\.finfo: got int8"):
        nx.finfo(nx.int8)


def test_the_scalar_types_of_the_library_are_numpys_where_it_has_them():
    for dtype in NUMPY_KNOWN:
        assert dtypes.of(np.dtype(dtype.name)) is dtype
