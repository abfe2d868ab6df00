"""The structure of a tree as plain data, which a file can hold, and back without the modules that defined its classes.

    "leaf"
    ["tuple", [child, ...]]
    ["dict", [[key, child], ...]]
    ["named", module, class, [[field, child], ...]]

A named tuple comes back as an instance of its own class if that is one of Kaun's, such as the state of an optimizer;
of any other class as a named tuple made here, with the same name and fields.
"""

from __future__ import annotations

import functools
import keyword
import sys
from collections import namedtuple
from typing import Any

import numpy as np

from kaun import ptree
from kaun.ptree import Structure, Tree

_LEAF = np.zeros(())


def encoded(structure: Structure) -> Any:
    """The structure as lists and strings."""
    if structure.kind is Structure:
        return "leaf"
    children = [encoded(child) for child in structure.children]
    if structure.kind is tuple:
        return ["tuple", children]
    pairs = [list(pair) for pair in zip(structure.keys, children, strict=True)]
    if structure.kind is ptree.Dict:
        return ["dict", pairs]
    return ["named", structure.kind.__module__, structure.kind.__name__, pairs]


def decoded(data: object) -> Structure:
    """The structure that `encoded` gave. ValueError for anything else."""
    try:
        return ptree.structure(_placeholders(data))
    except RecursionError:
        raise ValueError("tree_data.decoded: the tree is nested too deeply") from None
    except TypeError as error:
        raise ValueError(f"tree_data.decoded: {error}") from None


def _placeholders(data: object) -> Tree:
    """A tree of that structure, with some leaf at each place."""
    match data:
        case "leaf":
            return _LEAF
        case ["tuple", [*children]]:
            return tuple(_placeholders(child) for child in children)
        case ["dict", [*pairs]]:
            names, children = _entries(pairs)
            return ptree.Dict(zip(names, map(_placeholders, children), strict=True))
        case ["named", str(module), str(name), [*pairs]]:
            names, children = _entries(pairs)
            kind: Any = _named_tuple(module, name, tuple(names))
            return kind._make(map(_placeholders, children))
    raise ValueError(f"tree_data.decoded: got {str(data)[:40]!r}, expected a leaf, a tuple, a dict or a named tuple")


def _entries(pairs: list[object]) -> tuple[list[str], list[object]]:
    """Names and children. ValueError unless the names are strings, each there once."""
    names, children = [], []
    for pair in pairs:
        match pair:
            case [str(name), child]:
                names.append(name)
                children.append(child)
            case _:
                raise ValueError(f"tree_data.decoded: got {str(pair)[:40]!r}, expected a name and a child")
    if len(set(names)) < len(names):
        raise ValueError("tree_data.decoded: a name is there twice")
    return names, children


@functools.lru_cache(maxsize=256)
def _named_tuple(module: str, name: str, fields: tuple[str, ...]) -> type:
    """Kaun's class of that name if it has these fields, else a new one. Imports nothing."""
    if module.partition(".")[0] == "kaun":
        known = getattr(sys.modules.get(module), name, None)
        if isinstance(known, type) and issubclass(known, tuple) and getattr(known, "_fields", None) == fields:
            return known
    for word in (name, *fields):
        if not word.isidentifier() or keyword.iskeyword(word) or (word.startswith("_") and word != name):
            raise ValueError(f"tree_data.decoded: got {word[:40]!r}, expected a name of Python's")
    make: Any = namedtuple  # whose type checker wants to read the names in the source
    made: type = make(name, fields)
    made.__module__ = module
    return made


@functools.lru_cache(maxsize=1024)
def positions(expected: Structure, given: Structure) -> tuple[int, ...] | None:
    """For each leaf of `expected`, where it is among the leaves of `given`; None if the two differ.

    Dicts with the same keys in another order agree, and named tuples with the same fields, whatever their classes.
    """
    if expected.leaf_count != given.leaf_count:
        return None
    found: list[int] = []
    return tuple(found) if _match(expected, given, 0, found) else None


def _match(expected: Structure, given: Structure, start: int, found: list[int]) -> bool:
    if expected.kind is Structure or given.kind is Structure:
        found.append(start)
        return expected is given
    if len(expected.children) != len(given.children) or not _same_kind(expected, given):
        return False
    starts = [start]
    for child in given.children:
        starts.append(starts[-1] + child.leaf_count)
    for position, child in enumerate(expected.children):
        other = given.index[expected.keys[position]] if expected.kind is ptree.Dict else position
        if not _match(child, given.children[other], starts[other], found):
            return False
    return True


def _same_kind(expected: Structure, given: Structure) -> bool:
    if expected.kind is ptree.Dict or given.kind is ptree.Dict or expected.kind is tuple or given.kind is tuple:
        return expected.kind is given.kind and expected.index.keys() == given.index.keys()
    return expected.keys == given.keys
