"""A property that is computed when it is first looked at, and takes no lock for it.

`functools.cached_property` of Python 3.11 has a lock, one for all instances of a class: while one thread compiles, no
other can, and in a child that is forked meanwhile nothing ever compiles again. Two threads that look at once may both
compute here, which what is immutable permits; later versions of Python do the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

Value = TypeVar("Value")


class cached_property(Generic[Value]):
    """Decorates a method; the value is kept in the instance's dictionary, where it is found before this is."""

    def __init__(self, compute: Callable[[Any], Value]):
        self._compute, self._name, self.__doc__ = compute, compute.__name__, compute.__doc__

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> cached_property[Value]: ...

    @overload
    def __get__(self, instance: object, owner: type | None = None) -> Value: ...

    def __get__(self, instance: object | None, owner: type | None = None) -> cached_property[Value] | Value:
        if instance is None:
            return self
        value: Value = instance.__dict__.setdefault(self._name, self._compute(instance))
        return value
