"""Tensors inside anything: tuples, lists, mappings and records, which need not be trees."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from kaun import ptree
from kaun.nx import Tensor


def _is_record(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _record_fields(value: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(value) if field.init]


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in tuples, lists, mappings and records, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif _is_record(value):
        for name in _record_fields(value):
            yield from tensors_in(getattr(value, name))


def replace_tensors(value: Any, tensors: Iterator[Tensor]) -> Any:
    """The same value with its tensors, in the order of `tensors_in`, replaced."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, (tuple, list)):
        parts = [replace_tensors(part, tensors) for part in value]
        return value._make(parts) if hasattr(value, "_make") else type(value)(parts)
    if isinstance(value, Mapping):
        entries = {name: replace_tensors(part, tensors) for name, part in value.items()}
        return ptree.Dict(entries) if isinstance(value, ptree.Dict) else entries
    if _is_record(value):
        changed = {name: replace_tensors(getattr(value, name), tensors) for name in _record_fields(value)}
        return dataclasses.replace(value, **changed)
    return value
