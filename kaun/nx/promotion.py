"""Which dtype an operation on several dtypes computes in, and questions about dtypes.

The rules are those of the array API standard (2024.12, "Type Promotion Rules"), extended where it leaves them open:

- bool with any other dtype gives the other dtype;
- an integer with a float gives the float, whatever their sizes;
- float16 with bfloat16 gives float32;
- a signed integer with an unsigned one gives the smallest signed type that holds both; with uint64 there is none,
  and the operation is a TypeError that asks for an explicit cast;
- Python numbers are weak: they take the tensor's dtype, except that a float turns integers and bools into float32
  (the default float), and an int turns bools into int64 (the default integer).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from kaun.compiler.ir import dtypes
from kaun.compiler.ir.dtypes import DType

from .errors import invalid_type, invalid_value, restated


def dtype_of(function: str, value: object) -> DType:
    """The DType for a DType, a name, a NumPy dtype or a Python type; TypeError in the name of `function`."""
    if type(value) is DType:
        return value
    try:
        return dtypes.of(value)
    except TypeError as error:
        raise restated(function, error) from None


def _promoted(a: DType, b: DType) -> DType | None:
    if a is b or b.kind == "bool":
        return a
    if a.kind == "bool":
        return b
    if a.kind == b.kind:
        if a.bits == b.bits:  # float16 with bfloat16
            return dtypes.float32
        return a if a.bits > b.bits else b
    if a.is_float or b.is_float:
        return a if a.is_float else b
    signed, unsigned = (a, b) if a.kind == "signed" else (b, a)
    if signed.bits > unsigned.bits:
        return signed
    return dtypes.BY_NAME.get(f"int{2 * unsigned.bits}")


_TABLE = {(a, b): _promoted(a, b) for a in dtypes.ALL for b in dtypes.ALL}
_BOUNDS = {d: dtypes.value_bounds(d) for d in dtypes.ALL}


def promote(function: str, a: DType, b: DType) -> DType:
    """The common dtype of two dtypes; TypeError in the name of `function` if there is none."""
    result = _TABLE[a, b]
    if result is None:
        raise invalid_type(function, f"got {a} and {b}, which no integer type holds; cast one of them explicitly")
    return result


def promote_number(function: str, dtype: DType, number: float) -> DType:
    """The dtype of a tensor of `dtype` combined with the Python number `number`.

    ValueError if the number is an integer that the resulting integer dtype cannot hold.
    """
    if isinstance(number, bool) or dtype.kind == "float":
        return dtype
    if isinstance(number, float):
        return dtypes.float32
    if dtype.kind == "bool":
        return dtypes.int64
    low, high = _BOUNDS[dtype]
    if not low <= number <= high:
        raise invalid_value(function, f"the number {number} is outside of {dtype}'s range [{low}, {high}]")
    return dtype


def number_dtype(number: float) -> DType:
    """The dtype of a tensor made from a Python number: bool, int64 or float32."""
    if isinstance(number, bool):
        return dtypes.bool_
    if isinstance(number, float):
        return dtypes.float32
    return dtypes.int64 if number < 2**63 else dtypes.uint64


def accumulator(dtype: DType) -> DType:
    """The dtype sums and products of `dtype` are returned in: small integers widen to 64 bits, floats stay."""
    if dtype.kind in ("bool", "signed"):
        return dtypes.int64
    return dtypes.uint64 if dtype.kind == "unsigned" else dtype


def result_type(*arguments: Any) -> DType:
    """The dtype that an operation on `arguments` (tensors, dtypes and Python numbers) computes in.

    Raises ValueError without arguments; TypeError if the dtypes do not promote. Array API: `result_type`.
    """
    strong: DType | None = None
    numbers: list[float] = []
    for argument in arguments:
        if isinstance(argument, (bool, int, float)) and not isinstance(argument, np.generic):
            numbers.append(argument)
            continue
        found = getattr(argument, "dtype", argument)
        dtype = dtype_of("nx.result_type", found)
        strong = dtype if strong is None else promote("nx.result_type", strong, dtype)
    if strong is None:
        if not numbers:
            raise invalid_value("nx.result_type", "expected at least one argument")
        strong, numbers = number_dtype(numbers[0]), numbers[1:]
        for number in numbers:
            strong = promote("nx.result_type", strong, number_dtype(number))
        return strong
    for number in numbers:
        strong = promote_number("nx.result_type", strong, number)
    return strong


def can_cast(from_: Any, to: Any, /) -> bool:
    """Whether promotion turns dtype `from_` (or the dtype of a tensor) into `to`. Array API: `can_cast`."""
    source = dtype_of("nx.can_cast", getattr(from_, "dtype", from_))
    target = dtype_of("nx.can_cast", to)
    return _TABLE[source, target] is target


_KINDS = {
    "bool": ("bool",),
    "signed integer": ("signed",),
    "unsigned integer": ("unsigned",),
    "integral": ("signed", "unsigned"),
    "real floating": ("float",),
    "complex floating": (),
    "numeric": ("signed", "unsigned", "float"),
}


def isdtype(dtype: Any, kind: Any) -> bool:
    """Whether `dtype` is of `kind`: a dtype, one of the array API's kind names, or a tuple of those.

    Kind names: "bool", "signed integer", "unsigned integer", "integral", "real floating", "complex floating",
    "numeric". Raises ValueError for another name.
    """
    dtype = dtype_of("nx.isdtype", dtype)
    if isinstance(kind, tuple):
        return any(isdtype(dtype, one) for one in kind)
    if isinstance(kind, str) and kind in _KINDS:
        return dtype.kind in _KINDS[kind]
    if isinstance(kind, str) and kind not in dtypes.BY_NAME:
        raise invalid_value("nx.isdtype", f"unknown kind {kind!r}; expected one of {', '.join(map(repr, _KINDS))}")
    return dtype is dtype_of("nx.isdtype", kind)


class FloatInfo(NamedTuple):
    """Limits of a float dtype: `eps` is the gap after 1, `smallest_normal` the least positive normal number."""

    bits: int
    eps: float
    max: float
    min: float
    smallest_normal: float
    dtype: DType


class IntegerInfo(NamedTuple):
    """Limits of an integer dtype."""

    bits: int
    max: int
    min: int
    dtype: DType


def finfo(dtype: Any, /) -> FloatInfo:
    """The limits of a float dtype, or of the dtype of a tensor. TypeError for other dtypes."""
    dtype = dtype_of("nx.finfo", getattr(dtype, "dtype", dtype))
    if not dtype.is_float:
        raise invalid_type("nx.finfo", f"got {dtype}, expected a float dtype")
    limits = ml_dtypes.finfo(dtype.numpy)  # type: ignore[no-untyped-call]
    return FloatInfo(
        dtype.bits, float(limits.eps), float(limits.max), float(limits.min), float(limits.smallest_normal), dtype
    )


def iinfo(dtype: Any, /) -> IntegerInfo:
    """The limits of an integer dtype, or of the dtype of a tensor. TypeError for other dtypes."""
    dtype = dtype_of("nx.iinfo", getattr(dtype, "dtype", dtype))
    if not dtype.is_integer:
        raise invalid_type("nx.iinfo", f"got {dtype}, expected an integer dtype")
    limits = np.iinfo(dtype.numpy)
    return IntegerInfo(dtype.bits, int(limits.max), int(limits.min), dtype)
