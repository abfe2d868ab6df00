"""The element types of tensors, declared once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np


@dataclass(frozen=True, eq=False)
class DType:
    """An element type, each one object, so that comparing two costs nothing.

    `kind` is one of "bool", "signed", "unsigned", "float"; `bits` is its size in memory.
    """

    name: str
    kind: str
    bits: int

    @property
    def itemsize(self) -> int:
        """Bytes of one element in memory."""
        return max(1, self.bits // 8)

    @property
    def numpy(self) -> np.dtype[Any]:
        """The NumPy dtype with the same name, size and meaning."""
        return _NUMPY[self.name]

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def is_integer(self) -> bool:
        """True for signed and unsigned integers, not for bool."""
        return self.kind in ("signed", "unsigned")

    @property
    def compute(self) -> DType:
        """The type arithmetic happens in: narrow floats are stored narrow and computed in float32."""
        return float32 if self.kind == "float" and self.bits < 32 else self

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies and unpickled types are the one object again.
        return _named, (self.name,)



def _named(name: str) -> DType:
    return BY_NAME[name]


bool_ = DType("bool", "bool", 8)
int8, int16, int32, int64 = (DType(f"int{b}", "signed", b) for b in (8, 16, 32, 64))
uint8, uint16, uint32, uint64 = (DType(f"uint{b}", "unsigned", b) for b in (8, 16, 32, 64))
float16 = DType("float16", "float", 16)
bfloat16 = DType("bfloat16", "float", 16)
float32 = DType("float32", "float", 32)
float64 = DType("float64", "float", 64)

ALL: tuple[DType, ...] = (
    bool_, int8, int16, int32, int64, uint8, uint16, uint32, uint64, float16, bfloat16, float32, float64,
)  # fmt: skip
BY_NAME: dict[str, DType] = {d.name: d for d in ALL}
_NUMPY = {d.name: np.dtype(ml_dtypes.bfloat16 if d is bfloat16 else d.name) for d in ALL}
_FROM_NUMPY = {d: BY_NAME[name] for name, d in _NUMPY.items()}


def of(value: object) -> DType:
    """The DType for a DType, a name ("float32"), a NumPy dtype or scalar type, or a Python type (bool, int, float).

    Python `int` means int64 and `float` means float32, the library's default float.
    Raises TypeError for anything else, naming the known dtypes.
    """
    if isinstance(value, DType):
        return value
    if isinstance(value, str) and value in BY_NAME:
        return BY_NAME[value]
    if value is float:
        return float32
    try:
        return _FROM_NUMPY[np.dtype(value)]  # type: ignore[call-overload]
    except (TypeError, KeyError):
        known = ", ".join(BY_NAME)
        raise TypeError(f"dtypes.of: unknown dtype {value!r}; expected one of {known}") from None


def value_bounds(dtype: DType) -> tuple[float | int, float | int]:
    """(lowest, highest) value: infinities for floats; the identities of max and min."""
    if dtype.kind == "float":
        return float("-inf"), float("inf")
    if dtype.kind == "bool":
        return 0, 1
    information = np.iinfo(dtype.numpy)
    return int(information.min), int(information.max)
