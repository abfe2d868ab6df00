"""The lazy tensor: an immutable value that records how it is computed, and is computed when something looks."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, TypeAlias, cast

import numpy as np

from kaun import execution
from kaun.compiler.ir import Node, ops
from kaun.compiler.ir.dtypes import DType

from .errors import describe, invalid_type, invalid_value

Array = np.ndarray[Any, np.dtype[Any]]

# NumPy's names of its ufuncs where those of the array API differ.
_OF_NUMPY = {
    "absolute": "abs", "arccos": "acos", "arccosh": "acosh", "arcsin": "asin", "arcsinh": "asinh", "arctan": "atan",
    "arctan2": "atan2", "arctanh": "atanh", "invert": "bitwise_invert", "left_shift": "bitwise_left_shift",
    "power": "pow", "right_shift": "bitwise_right_shift",
}  # fmt: skip


class Tensor:
    """An immutable, lazy, n-dimensional array. Made by functions (`nx.asarray`, `nx.zeros`, ...), not by its class.

    Operations record graph nodes; `.numpy()`, `.item()`, `float()`, `bool()`, `print` and `nx.realize` compute.
    Operators follow the array API standard (2024.12): elementwise, broadcasting, promoting as in `nx.result_type`.
    `==` is elementwise, so tensors cannot be hashed.
    """

    __slots__ = ("__weakref__", "_node")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, node: Node) -> None:
        if type(node) is not Node:
            raise TypeError(f"nx.Tensor: got {type(node).__name__}; make tensors with nx.asarray")
        self._node = node

    # What it is.

    @property
    def shape(self) -> tuple[int, ...]:
        """The extents, outermost first."""
        return self._node.shape

    @property
    def dtype(self) -> DType:
        """The element type."""
        return self._node.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self._node.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return self._node.size

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self._node.nbytes

    @property
    def device(self) -> str:
        """Where the elements live: always "cpu"."""
        return "cpu"

    @property
    def T(self) -> Tensor:
        """The transpose of a matrix. ValueError unless there are two axes; use `.mT` for stacks of matrices."""
        if self.ndim != 2:
            raise invalid_value("nx.Tensor.T", f"got {describe(self._node)}, expected two axes; use mT or permute_dims")
        return movement.matrix_transpose(self)

    @property
    def mT(self) -> Tensor:
        """The last two axes exchanged."""
        return movement.matrix_transpose(self)

    # Looking at it computes it.

    def numpy(self) -> Array:
        """The elements as a read-only NumPy array, without a copy. ValueError while being traced."""
        node = self._node
        (storage,) = execution.realize([node])
        if node.op is not ops.input_:
            self._node = execution.computed_leaf(storage)  # Drops the history: what only led here can be freed.
        return storage.array

    def item(self) -> Any:
        """The only element as a Python bool, int or float. ValueError unless there is exactly one."""
        if self._node.size != 1:
            raise invalid_value("nx.Tensor.item", f"got {describe(self._node)}, expected one element")
        value = self.numpy().reshape(-1)[0]
        return float(value) if self._node.dtype.is_float else value.item()

    def tolist(self) -> Any:
        """The elements as nested lists of Python numbers (a number if there are no axes)."""
        array = self.numpy()
        return (array.astype(np.float64) if self._node.dtype.is_float else array).tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        array = self.numpy()
        if dtype is not None and np.dtype(dtype) != array.dtype:
            if copy is False:
                raise ValueError(f"nx.Tensor.__array__: {array.dtype} cannot become {dtype} without a copy")
            return array.astype(dtype)
        return array.copy() if copy else array

    def __dlpack__(
        self, *, stream: Any = None, max_version: tuple[int, int] | None = None,
        dl_device: tuple[Any, int] | None = None, copy: bool | None = None,
    ) -> Any:  # fmt: skip
        array = self.numpy()
        # Before DLPack 1.0 a consumer cannot be told that memory is read-only, so it gets its own.
        if copy or max_version is None or max_version[0] < 1:
            return array.copy().__dlpack__()
        return array.__dlpack__(stream=stream, max_version=max_version, dl_device=dl_device, copy=copy)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __array_namespace__(self, *, api_version: str | None = None) -> ModuleType:
        return sys.modules[__package__]

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __bool__(self) -> bool:
        if self._node.size != 1:
            raise invalid_value("nx.Tensor.__bool__", f"{describe(self._node)} has no one truth; use any or all")
        return bool(self.item())

    def __index__(self) -> int:
        if not self._node.dtype.is_integer or self._node.shape:
            raise invalid_type("nx.Tensor.__index__", f"got {describe(self._node)}, expected one integer without axes")
        return int(self.item())

    def __len__(self) -> int:
        if not self._node.shape:
            raise TypeError("nx.Tensor.__len__: a tensor without axes has no length")
        return self._node.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        if not self._node.shape:
            raise TypeError("nx.Tensor.__iter__: a tensor without axes cannot be iterated")
        return (self[position] for position in range(self._node.shape[0]))

    def __repr__(self) -> str:
        if is_traced(self):
            return f"<traced {describe(self._node)}>"
        values = np.array2string(self.numpy(), separator=", ", prefix="Tensor(")
        return f"Tensor({values}, dtype={self.dtype}, shape={self.shape})"

    def __format__(self, specification: str) -> str:
        return format(self.item(), specification) if specification else repr(self)

    # Immutable: copies are the tensor itself; a pickle holds the values.

    def __copy__(self) -> Tensor:
        return self

    def __deepcopy__(self, memo: Any) -> Tensor:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (_unpickled, (self.dtype.name, self.shape, self.numpy().tobytes()))

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **keywords: Any) -> Tensor:
        """`array + tensor`, `numpy.sin(tensor)`: the function of nx of that name. TypeError if there is none."""
        functions = self.__array_namespace__()
        name = _OF_NUMPY.get(ufunc.__name__, ufunc.__name__)
        # `array += tensor` binds the name to a new tensor, as `+=` of tensors does.
        in_place = len(keywords) == 1 and len(keywords.get("out", ())) == 1 and keywords["out"][0] is inputs[0]
        if method != "__call__" or (keywords and not in_place) or name not in functions.__all__:
            call = ufunc.__name__ if method == "__call__" else f"{ufunc.__name__}.{method}"
            raise TypeError(
                f"nx.Tensor: numpy.{call} does not take tensors so; use a function of nx, "
                "or numpy.asarray(tensor) for the values"
            )
        return cast(Tensor, getattr(functions, name)(*inputs))

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TypeError("nx.Tensor.__setitem__: tensors are immutable; build a new one with nx.where or nx.concat")

    # Indexing.

    def __getitem__(self, key: Any) -> Tensor:
        return indexing.index(self, key)

    # Arithmetic operators.

    def __neg__(self) -> Tensor:
        return elementwise.negative(self)

    def __pos__(self) -> Tensor:
        return self

    def __abs__(self) -> Tensor:
        return elementwise.abs(self)

    def __invert__(self) -> Tensor:
        return elementwise.bitwise_invert(self)

    def __add__(self, other: TensorLike) -> Tensor:
        return elementwise.add(self, other)

    def __radd__(self, other: TensorLike) -> Tensor:
        return elementwise.add(other, self)

    def __sub__(self, other: TensorLike) -> Tensor:
        return elementwise.subtract(self, other)

    def __rsub__(self, other: TensorLike) -> Tensor:
        return elementwise.subtract(other, self)

    def __mul__(self, other: TensorLike) -> Tensor:
        return elementwise.multiply(self, other)

    def __rmul__(self, other: TensorLike) -> Tensor:
        return elementwise.multiply(other, self)

    def __truediv__(self, other: TensorLike) -> Tensor:
        return elementwise.divide(self, other)

    def __rtruediv__(self, other: TensorLike) -> Tensor:
        return elementwise.divide(other, self)

    def __floordiv__(self, other: TensorLike) -> Tensor:
        return elementwise.floor_divide(self, other)

    def __rfloordiv__(self, other: TensorLike) -> Tensor:
        return elementwise.floor_divide(other, self)

    def __mod__(self, other: TensorLike) -> Tensor:
        return elementwise.remainder(self, other)

    def __rmod__(self, other: TensorLike) -> Tensor:
        return elementwise.remainder(other, self)

    def __pow__(self, other: TensorLike) -> Tensor:
        return elementwise.pow(self, other)

    def __rpow__(self, other: TensorLike) -> Tensor:
        return elementwise.pow(other, self)

    def __matmul__(self, other: TensorLike) -> Tensor:
        return linear_algebra.matmul(self, other)

    def __rmatmul__(self, other: TensorLike) -> Tensor:
        return linear_algebra.matmul(other, self)

    def __and__(self, other: TensorLike) -> Tensor:
        return elementwise.bitwise_and(self, other)

    def __rand__(self, other: TensorLike) -> Tensor:
        return elementwise.bitwise_and(other, self)

    def __or__(self, other: TensorLike) -> Tensor:
        return elementwise.bitwise_or(self, other)

    def __ror__(self, other: TensorLike) -> Tensor:
        return elementwise.bitwise_or(other, self)

    def __xor__(self, other: TensorLike) -> Tensor:
        return elementwise.bitwise_xor(self, other)

    def __rxor__(self, other: TensorLike) -> Tensor:
        return elementwise.bitwise_xor(other, self)

    def __lshift__(self, other: TensorLike) -> Tensor:
        return elementwise.bitwise_left_shift(self, other)

    def __rlshift__(self, other: TensorLike) -> Tensor:
        return elementwise.bitwise_left_shift(other, self)

    def __rshift__(self, other: TensorLike) -> Tensor:
        return elementwise.bitwise_right_shift(self, other)

    def __rrshift__(self, other: TensorLike) -> Tensor:
        return elementwise.bitwise_right_shift(other, self)

    # Comparisons. Against what is no array at all (None, a string), == is False and != True, as for any object.

    def __eq__(self, other: Any) -> Tensor:  # type: ignore[override]
        return elementwise.equal(self, other) if _is_tensor_like(other) else NotImplemented

    def __ne__(self, other: Any) -> Tensor:  # type: ignore[override]
        return elementwise.not_equal(self, other) if _is_tensor_like(other) else NotImplemented

    def __lt__(self, other: TensorLike) -> Tensor:
        return elementwise.less(self, other)

    def __le__(self, other: TensorLike) -> Tensor:
        return elementwise.less_equal(self, other)

    def __gt__(self, other: TensorLike) -> Tensor:
        return elementwise.greater(self, other)

    def __ge__(self, other: TensorLike) -> Tensor:
        return elementwise.greater_equal(self, other)

    # The common functions as methods; each is the function of the same name in `nx`.

    def astype(self, dtype: Any, /) -> Tensor:
        """`nx.astype(self, dtype)`."""
        return elementwise.astype(self, dtype)

    def reshape(self, *shape: Any) -> Tensor:
        """`nx.reshape`: takes `reshape((2, 3))` and `reshape(2, 3)`; one extent may be -1."""
        return movement.reshape(self, shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)

    def flatten(self) -> Tensor:
        """All elements along one axis."""
        return movement.reshape(self, (-1,)) if self.size else movement.reshape(self, (0,))

    def transpose(self, *axes: Any) -> Tensor:
        """`nx.permute_dims`: takes `transpose((1, 0))` and `transpose(1, 0)`; without axes, all are reversed."""
        order = axes[0] if len(axes) == 1 and not isinstance(axes[0], int) else axes
        return movement.permute_dims(self, tuple(order) if order else tuple(range(self.ndim))[::-1])

    def squeeze(self, axis: int | Sequence[int] | None = None) -> Tensor:
        """`nx.squeeze`."""
        return movement.squeeze(self, axis)

    def sum(self, axis: Axis = None, *, dtype: Any = None, keepdims: bool = False) -> Tensor:
        """`nx.sum`."""
        return reductions.sum(self, axis=axis, dtype=dtype, keepdims=keepdims)

    def prod(self, axis: Axis = None, *, dtype: Any = None, keepdims: bool = False) -> Tensor:
        """`nx.prod`."""
        return reductions.prod(self, axis=axis, dtype=dtype, keepdims=keepdims)

    def mean(self, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
        """`nx.mean`."""
        return statistics.mean(self, axis=axis, keepdims=keepdims)

    def var(self, axis: Axis = None, *, correction: float = 0.0, keepdims: bool = False) -> Tensor:
        """`nx.var`."""
        return statistics.var(self, axis=axis, correction=correction, keepdims=keepdims)

    def std(self, axis: Axis = None, *, correction: float = 0.0, keepdims: bool = False) -> Tensor:
        """`nx.std`."""
        return statistics.std(self, axis=axis, correction=correction, keepdims=keepdims)

    def max(self, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
        """`nx.max`."""
        return reductions.max(self, axis=axis, keepdims=keepdims)

    def min(self, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
        """`nx.min`."""
        return reductions.min(self, axis=axis, keepdims=keepdims)

    def argmax(self, axis: int | None = None, *, keepdims: bool = False) -> Tensor:
        """`nx.argmax`."""
        return reductions.argmax(self, axis=axis, keepdims=keepdims)

    def argmin(self, axis: int | None = None, *, keepdims: bool = False) -> Tensor:
        """`nx.argmin`."""
        return reductions.argmin(self, axis=axis, keepdims=keepdims)

    def any(self, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
        """`nx.any`."""
        return reductions.any(self, axis=axis, keepdims=keepdims)

    def all(self, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
        """`nx.all`."""
        return reductions.all(self, axis=axis, keepdims=keepdims)


# What every function takes for a tensor: a tensor, a NumPy array, a Python number, or nested sequences of those.
TensorLike: TypeAlias = Tensor | Array | bool | int | float | Sequence[Any]
Axis: TypeAlias = int | Sequence[int] | None


def is_traced(tensor: Tensor) -> bool:
    """Whether the tensor depends on an argument of a function being traced, and so has no value yet."""
    return execution.is_traced([tensor._node])


def realize(*tensors: Tensor) -> None:
    """Compute all the tensors in one program and let go of how they were computed.

    Later operations start from the values. TypeError for what is no tensor; ValueError for a tensor being traced.
    """
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"nx.realize: got {type(tensor).__name__}, expected tensors")
    storages = execution.realize([tensor._node for tensor in tensors])
    for tensor, storage in zip(tensors, storages, strict=True):
        if tensor._node.op is not ops.input_:
            tensor._node = execution.computed_leaf(storage)


def _is_tensor_like(value: object) -> bool:
    return isinstance(value, (Tensor, np.ndarray, np.generic, bool, int, float, list, tuple))


def _unpickled(dtype: str, shape: tuple[int, ...], data: bytes) -> Tensor:
    array = np.frombuffer(data, dtype=promotion.dtype_of("nx.Tensor", dtype).numpy).reshape(shape)
    return Tensor(execution.leaf(array))


# The operators above are the functions of these modules, which need the class to be defined first.
from . import elementwise, indexing, linear_algebra, movement, promotion, reductions, statistics  # noqa: E402
