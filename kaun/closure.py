"""What a Python function depends on: the tensors it captured, and a key for everything else.

A training loop makes a new loss function for every batch, closing over that batch's labels. `capture` takes such a
function apart into a key, equal for functions that do the same, and the tensors it holds; `Captured.rebind` puts other
tensors in their place. A compiled step is kept under the key and takes the tensors as inputs, so a fresh closure costs
no new trace.

A function's behaviour is its code, its defaults, its closure cells, and the globals its code names; each of these is
taken apart in turn (numbers, strings, tuples, lists, mappings, partial applications, bound methods, other functions,
and this package's own records). A value of any other kind cannot be seen through: then the key is None, and whoever
asked has to trace anew each time.
"""

from __future__ import annotations

import dataclasses
import dis
import functools
import os
import sys
import sysconfig
import types
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, cast

import numpy as np

from kaun import nx, ptree
from kaun.compiler.ir.dtypes import DType

# Functions whose result does not follow from what the code names: code that uses one cannot be seen through.
_REACH_AROUND = frozenset({"eval", "exec", "globals", "locals", "vars", "open", "input", "__import__", "next", "id"})
_ATOMS = (type(None), bool, int, str, bytes, DType, type(Ellipsis), type(NotImplemented))
_BUILT_IN = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType, np.ufunc)
# A function that leads to more values than this is not worth taking apart at every step.
_MOST_VALUES = 5_000


class _OpaqueError(Exception):
    """Met a value that cannot be taken apart."""


@dataclass(frozen=True)
class Captured:
    """A function taken apart. `key` is None if some part of it could not be seen through."""

    function: Callable[..., Any]
    key: Hashable | None
    tensors: tuple[nx.Tensor, ...]

    def rebind(self, tensors: tuple[nx.Tensor, ...]) -> Callable[..., Any]:
        """The function with its captured tensors replaced, in order, by `tensors`; everything else as it was."""
        if self.key is None or not self.tensors:
            return self.function
        if len(tensors) != len(self.tensors):
            raise ValueError(f"closure.rebind: got {len(tensors)} tensors, expected {len(self.tensors)}")
        rebuilt: Callable[..., Any] = _replace(self.function, iter(tensors))
        return rebuilt


def capture(function: Callable[..., Any]) -> Captured:
    """Take `function` apart: see the module. NumPy arrays count as tensors."""
    walk = _Walk()
    try:
        key = walk.key(function)
    except _OpaqueError:
        return Captured(function, None, ())
    return Captured(function, key, tuple(walk.tensors))


# --- the key ---------------------------------------------------------------------------------------------------------


class _Walk:
    """One walk over a value. `key` gives a hashable that is equal for values that behave the same once the tensors
    in them, which it collects, are left out."""

    def __init__(self) -> None:
        self.tensors: list[nx.Tensor] = []
        self.active: set[int] = set()
        self.visited = 0

    def key(self, value: Any) -> Hashable:
        kind = type(value)
        if kind is nx.Tensor:
            self.tensors.append(value)
            return "tensor"
        if kind in _ATOMS:
            return (kind, value)
        if kind is types.ModuleType and _is_trusted(value.__name__):
            return cast(Hashable, value)
        self.visited += 1
        if self.visited > _MOST_VALUES or id(value) in self.active:
            raise _OpaqueError
        self.active.add(id(value))
        found = self.function(value) if kind is types.FunctionType else self.node(value, kind)
        self.active.discard(id(value))
        return found

    def keys(self, values: Iterable[Any]) -> tuple[Hashable, ...]:
        return tuple(self.key(value) for value in values)

    def node(self, value: Any, kind: type) -> Hashable:
        if kind in (tuple, list) or (isinstance(value, tuple) and hasattr(value, "_make")):
            return (kind, *self.keys(value))
        if kind in (dict, ptree.Dict):
            return (kind, *((self.key(name), self.key(child)) for name, child in value.items()))
        if kind is functools.partial:
            return (kind, *self.keys((value.func, value.args, value.keywords)))
        if kind is types.MethodType:
            return (kind, *self.keys((value.__func__, value.__self__)))
        if isinstance(value, np.ndarray):
            self.tensors.append(nx.asarray(value))
            return "array"
        if dataclasses.is_dataclass(value) and kind.__module__.startswith("kaun."):
            return (kind, *self.keys(_fields(value)))
        return self.atom(value, kind)

    def atom(self, value: Any, kind: type) -> Hashable:
        if kind in (float, complex):
            return (kind, repr(value))  # 0.0 is not -0.0, and nan is nan
        if isinstance(value, (Enum, np.dtype)):
            return (kind, value)
        if isinstance(value, np.generic):
            return (kind, value.tobytes())
        if kind in (set, frozenset) and all(type(child) in _ATOMS for child in value):
            return (kind, frozenset((type(child), child) for child in value))
        if isinstance(value, (type, types.ModuleType)) and _is_trusted(_module_of(value)):
            return value
        # A built-in function of a module or class, not a method of an object that may change, such as list.append.
        owner = getattr(value, "__self__", None)
        if isinstance(value, _BUILT_IN) and (owner is None or isinstance(owner, (types.ModuleType, type))):
            return cast(Hashable, value)
        raise _OpaqueError

    def function(self, function: types.FunctionType) -> Hashable:
        if function.__dict__ and not hasattr(function, "__wrapped__"):
            raise _OpaqueError
        parts: list[Hashable] = [function.__code__]
        for cell in function.__closure__ or ():
            parts.append(self.key(cell.cell_contents) if _is_filled(cell) else "empty")
        parts += [self.key(function.__defaults__), self.key(function.__kwdefaults__)]
        if not _is_trusted(function.__module__):
            for name, value, attributes in _named_globals(function):
                parts.append((name, self.global_(value, attributes)))
        return tuple(parts)

    def global_(self, value: Any, attributes: tuple[str, ...]) -> Hashable:
        """The key of a global; of a user's module, the key of the attributes that the code may read from it."""
        if not isinstance(value, types.ModuleType) or _is_trusted(value.__name__):
            return self.key(value)
        before = len(self.tensors)
        parts = [(name, self.key(getattr(value, name))) for name in attributes if hasattr(value, name)]
        if len(self.tensors) > before:
            raise _OpaqueError  # a module's tensor cannot be replaced without changing the module
        return (value.__name__, *parts)


# --- putting other tensors in ----------------------------------------------------------------------------------------


def _replace(value: Any, tensors: Iterator[nx.Tensor]) -> Any:
    """`value` with its tensors replaced, taken from `tensors` in the order in which `_key` found them."""
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is nx.Tensor or isinstance(value, np.ndarray):
        return next(tensors)
    if kind is types.FunctionType:
        return _replace_in_function(value, tensors)
    if kind in (dict, ptree.Dict):
        return kind({k: _replace(v, tensors) for k, v in value.items()})
    if kind in (tuple, list):
        return kind(_replace(child, tensors) for child in value)
    if isinstance(value, tuple) and hasattr(value, "_make"):
        return value._make(_replace(child, tensors) for child in value)
    if kind is functools.partial:
        function, arguments, keywords = (_replace(part, tensors) for part in (value.func, value.args, value.keywords))
        return functools.partial(function, *arguments, **keywords)
    if kind is types.MethodType:
        function, instance = _replace(value.__func__, tensors), _replace(value.__self__, tensors)
        return types.MethodType(function, instance)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [_replace(child, tensors) for child in _fields(value)]
        names = [field.name for field in dataclasses.fields(value) if field.init]
        return kind(**dict(zip(names, fields, strict=True)))
    return value


def _replace_in_function(function: types.FunctionType, tensors: Iterator[nx.Tensor]) -> types.FunctionType:
    cells = tuple(
        types.CellType(_replace(cell.cell_contents, tensors)) if _is_filled(cell) else cell
        for cell in function.__closure__ or ()
    )
    defaults = _replace(function.__defaults__, tensors)
    keyword_defaults = _replace(function.__kwdefaults__, tensors)
    namespace = function.__globals__
    if not _is_trusted(function.__module__):
        changed = {
            name: _replace(value, tensors)
            for name, value, _ in _named_globals(function)
            if not isinstance(value, (types.ModuleType, type))
        }
        if any(namespace.get(name) is not value for name, value in changed.items() if name in namespace):
            namespace = {**namespace, **{name: value for name, value in changed.items() if name in namespace}}
    made = types.FunctionType(function.__code__, namespace, function.__name__, defaults, cells)
    made.__kwdefaults__ = keyword_defaults
    made.__module__ = function.__module__
    return made


# --- looking ---------------------------------------------------------------------------------------------------------


def _module_of(value: type | types.ModuleType) -> str:
    return value.__name__ if isinstance(value, types.ModuleType) else value.__module__


_STANDARD_LIBRARY = tuple(os.path.abspath(sysconfig.get_path(name)) + os.sep for name in ("stdlib", "platstdlib"))


@functools.lru_cache(maxsize=4096)
def _is_trusted(module: str | None) -> bool:
    """Whether a module's functions, classes and globals are taken not to change: this package, NumPy, Python's own."""
    root = (module or "").partition(".")[0]
    if root in ("kaun", "numpy", "builtins"):
        return True
    if root not in sys.stdlib_module_names or root not in sys.modules:
        return False
    # A user's own file may have the name of a standard module.
    file = getattr(sys.modules[root], "__file__", None)
    return file is None or os.path.abspath(file).startswith(_STANDARD_LIBRARY)


def _is_filled(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _fields(value: Any) -> list[Any]:
    return [getattr(value, field.name) for field in dataclasses.fields(value) if field.init]


@functools.lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The globals that code, and the functions inside it, name; and the attributes they read from anything."""
    names: dict[str, None] = {}
    attributes: dict[str, None] = {}
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            names[str(instruction.argval)] = None
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            attributes[str(instruction.argval)] = None
        elif instruction.opname.startswith(("IMPORT_", "STORE_GLOBAL", "DELETE_GLOBAL")):
            names["__import__"] = None
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner_names, inner_attributes = _names(constant)
            names.update(dict.fromkeys(inner_names))
            attributes.update(dict.fromkeys(inner_attributes))
    return tuple(names), tuple(attributes)


def _named_globals(function: types.FunctionType) -> Iterator[tuple[str, Any, tuple[str, ...]]]:
    """(name, value, attributes) for every global the function's code names and that exists, in a fixed order."""
    names, attributes = _names(function.__code__)
    built_in: Mapping[str, Any] = vars(sys.modules["builtins"])
    for name in names:
        if name in _REACH_AROUND:
            raise _OpaqueError
        if name in function.__globals__:
            yield name, function.__globals__[name], attributes
        elif name in built_in:
            yield name, built_in[name], attributes
