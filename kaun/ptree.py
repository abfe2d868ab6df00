"""Parameter trees: nested tuples and `Dict`s whose leaves are tensors, and the functions over them.

A *tree* is a leaf, a tuple of trees (named tuples included) or a `Dict` of trees. Plain lists and mappings are accepted
wherever a tree is taken and come back as tuples and `Dict`s. A *leaf* is anything with a `shape` and a `dtype`:
`nx.Tensor`, and NumPy arrays, which are left alone. `None` is not a tree; the tree without leaves is `()`.

A *path* names a leaf by the keys, field names and indices that lead to it, joined by dots: `0.weight`, `left.2.bias`.
The path of a tree that is itself a leaf is the empty string.

Training flattens and rebuilds the same few trees at every step, so structures are interned: each distinct structure is
one `Structure` object, comparing two is comparing addresses, and a `Dict` remembers its own.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, cast

Tree: TypeAlias = Any
"""A leaf, a tuple of trees or a `Dict` of trees; Python's type checkers cannot say so without casts at every index."""

_FORBIDDEN_IN_KEYS = ".[]"
# An index in a path stands for that many tuple entries; a damaged or hostile file must not make us build millions.
_LARGEST_INDEX = 65_535


class Structure:
    """The shape of a tree without its leaves. Equal structures are the same object, so `is`, `==` and `hash` are O(1).

    Calling it with leaves, in the order `flatten` gives them, builds the tree: `structure(tree)(leaves(tree))` gives
    `tree` again. The objects given may be anything (shapes, names, subtrees); the result is a tree if they are trees.
    """

    __slots__ = ("_paths", "children", "flat", "index", "keys", "kind", "leaf_count")

    kind: type
    """`Structure` for a leaf, `tuple`, a named tuple's class, or `Dict`."""
    keys: tuple[str, ...]
    """A `Dict`'s keys or a named tuple's field names; empty otherwise."""
    children: tuple[Structure, ...]
    leaf_count: int
    index: dict[str, int]
    flat: bool
    """Whether every child is a leaf."""
    _paths: tuple[str, ...] | None

    def __init__(self, kind: type, keys: tuple[str, ...], children: tuple[Structure, ...]) -> None:
        self.kind = kind
        self.keys = keys
        self.children = children
        self.index = {key: position for position, key in enumerate(keys)}
        self.leaf_count = 1 if kind is Structure else sum(child.leaf_count for child in children)
        self.flat = kind is not Structure and all(child.kind is Structure for child in children)
        self._paths = None

    def __call__(self, leaves: Iterable[Any]) -> Tree:
        """The tree of this structure with these leaves. ValueError if their number differs from `leaf_count`."""
        given = leaves if type(leaves) is list else list(leaves)
        if len(given) != self.leaf_count:
            raise ValueError(f"ptree.rebuild: got {len(given)} leaves, expected {self.leaf_count} for {self!r}")
        kinds = _kinds
        for leaf in given:
            if kinds.get(type(leaf)) is not Structure and _kind_of(leaf) is not Structure:
                return _build_unchecked(self, given, 0)
        return _build(self, given, 0)

    @property
    def paths(self) -> tuple[str, ...]:
        """The path of every leaf, in the order of `flatten`."""
        if self._paths is None:
            self._paths = tuple(_paths(self, ""))
        return self._paths

    def __repr__(self) -> str:
        return f"Structure({_format(self, ['*'] * self.leaf_count)})"

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies and unpickled structures must be the interned object again.
        return (_leaf, ()) if self.kind is Structure else (_intern, (self.kind, self.keys, self.children))


class Dict(Mapping[str, Any]):
    """An immutable, ordered mapping from names to trees.

    `Dict({"weight": w, "bias": b})` or `Dict(weight=w, bias=b)`. Nested lists and mappings become tuples and `Dict`s.
    `d | other` is a new `Dict` with `other`'s entries added or replaced. Two are equal when their keys and values are,
    in any order; one is hashable when its leaves are.

    Raises TypeError for a key that is not a string or a value that is not a tree, ValueError for a key that is empty
    or holds `.`, `[` or `]` (it could not be told from a path).
    """

    __slots__ = ("_index", "_structure", "_values")

    _index: dict[str, int]
    _values: tuple[Any, ...]
    _structure: Structure | None

    def __init__(self, entries: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), /, **named: Any) -> None:
        collected: list[Any] = []
        try:
            found = _collect_mapping(dict(entries, **named), collected)
        except _NotATreeError as error:
            raise error.located("ptree.Dict") from None
        self._index = found.index
        self._values = _child_values(found, collected, 0)
        self._structure = found

    def __getitem__(self, key: str) -> Any:
        try:
            return self._values[self._index[key]]
        except KeyError:
            raise KeyError(f"ptree.Dict: no key {key!r}; the keys are {list(self._index)}") from None

    def __iter__(self) -> Iterator[str]:
        return builtins.iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: object) -> bool:
        return key in self._index

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        return self is other or dict(self.items()) == dict(other.items())

    def __hash__(self) -> int:
        return hash(frozenset(self.items()))

    def __or__(self, other: Mapping[str, Any]) -> Dict:
        if not isinstance(other, Mapping):
            return NotImplemented
        return Dict({**self, **other})

    def __repr__(self) -> str:
        return text(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle_dict, (tuple(self._index), self._values)


# --- from values to structures -------------------------------------------------------------------------------------

_interned: dict[tuple[type, tuple[str, ...], tuple[Structure, ...]], Structure] = {}
_LEAF = Structure(Structure, (), ())
# What each type is in a tree: Structure for leaves, else the kind of its node. Filled as types are met, because
# asking a value for its attributes costs more than everything else that flatten does.
_kinds: dict[type, type] = {tuple: tuple, list: tuple, dict: Dict, Dict: Dict}


def _leaf() -> Structure:
    return _LEAF


def _intern(kind: type, keys: tuple[str, ...], children: tuple[Structure, ...]) -> Structure:
    identity = (kind, keys, children)
    found = _interned.get(identity)
    # setdefault, so that two threads that meet here leave with the same object.
    return found if found is not None else _interned.setdefault(identity, Structure(kind, keys, children))


class _NotATreeError(Exception):
    """Raised deep inside a walk; every level on the way out adds its step to the path."""

    def __init__(self, error: type[Exception], message: str) -> None:
        super().__init__(message)
        self.error = error
        self.message = message
        self.steps: list[str] = []

    def located(self, function: str) -> Exception:
        path = ".".join(reversed(self.steps))
        return self.error(f"{function}: {f'at `{path}`: ' if path else ''}{self.message}")


def _kind_of(value: Any) -> type | None:
    """Structure for a leaf, the node's kind for a node, None for what is no tree; remembers the type's answer."""
    known = _kinds.get(type(value))
    if known is not None:
        return known
    kind: type | None = None
    if isinstance(value, tuple):
        kind = type(value) if hasattr(value, "_fields") and hasattr(value, "_make") else tuple
    elif isinstance(value, list):
        kind = tuple
    elif isinstance(value, Mapping):
        kind = Dict
    elif not isinstance(value, type) and hasattr(value, "shape") and hasattr(value, "dtype"):
        kind = Structure
    if kind is not None:
        _kinds[type(value)] = kind
    return kind


def _collect(value: Any, collected: list[Any]) -> Structure:
    """Append the leaves of `value` and return its structure."""
    kind = _kinds.get(type(value)) or _kind_of(value)
    if kind is Structure:
        collected.append(value)
        return _LEAF
    if kind is Dict:
        if type(value) is Dict:
            known = value._structure
            if known is not None:
                _gather(value, known, collected)
                return known
            found = _collect_mapping(value, collected)
            # Only a Dict whose values are already trees in normal form may be walked by its structure later.
            if all(_is_normal(entry) for entry in value._values):
                value._structure = found
            return found
        return _collect_mapping(value, collected)
    if kind is None:
        raise _NotATreeError(TypeError, f"expected a tensor, a tuple, a list or a mapping, got {_name_of(value)}")
    children = []
    known_kinds = _kinds
    for position, child in enumerate(value):
        if known_kinds.get(type(child)) is Structure:
            collected.append(child)
            children.append(_LEAF)
        else:
            try:
                children.append(_collect(child, collected))
            except _NotATreeError as error:
                error.steps.append(str(position) if kind is tuple else kind._fields[position])  # type: ignore[attr-defined]
                raise
    return _intern(kind, () if kind is tuple else kind._fields, tuple(children))  # type: ignore[attr-defined]


def _collect_mapping(value: Mapping[str, Any], collected: list[Any]) -> Structure:
    children = []
    for key, child in value.items():
        _check_key(key)
        try:
            children.append(_collect(child, collected))
        except _NotATreeError as error:
            error.steps.append(key)
            raise
    return _intern(Dict, tuple(value), tuple(children))


def _check_key(key: object) -> None:
    if not isinstance(key, str):
        raise _NotATreeError(TypeError, f"expected string keys, got {key!r} ({_name_of(key)})")
    if not key or any(character in key for character in _FORBIDDEN_IN_KEYS):
        raise _NotATreeError(ValueError, f"expected keys that are not empty and hold no '.', '[' or ']', got {key!r}")


def _gather(value: Any, known: Structure, collected: list[Any]) -> None:
    """Append the leaves of a value whose structure is known; the fast path of every training step."""
    values = value._values if known.kind is Dict else value
    if known.flat:
        collected.extend(values)
        return
    for child, child_structure in zip(values, known.children, strict=True):
        if child_structure is _LEAF:
            collected.append(child)
        else:
            _gather(child, child_structure, collected)


def _is_normal(value: Any) -> bool:
    """Whether a value holds no plain list or mapping, at any depth."""
    if isinstance(value, tuple):
        return (type(value) is tuple or hasattr(value, "_fields")) and all(_is_normal(child) for child in value)
    return value._structure is not None if type(value) is Dict else _kind_of(value) is Structure


# --- from structures to values -------------------------------------------------------------------------------------


def _make_dict(index: dict[str, int], values: tuple[Any, ...], known: Structure | None) -> Dict:
    made = object.__new__(Dict)
    made._index = index
    made._values = values
    made._structure = known
    return made


def _unpickle_dict(keys: tuple[str, ...], values: tuple[Any, ...]) -> Dict:
    return _make_dict({key: position for position, key in enumerate(keys)}, values, None)


def _child_values(node: Structure, leaves: list[Any], start: int) -> tuple[Any, ...]:
    if node.flat:
        return tuple(leaves[start : start + node.leaf_count])
    values = []
    for child in node.children:
        values.append(leaves[start] if child is _LEAF else _build(child, leaves, start))
        start += child.leaf_count
    return tuple(values)


def _build(node: Structure, leaves: list[Any], start: int) -> Tree:
    """The tree of `node` over `leaves[start:]`, all known to be leaves."""
    if node is _LEAF:
        return leaves[start]
    values = _child_values(node, leaves, start)
    kind = node.kind
    if kind is Dict:
        return _make_dict(node.index, values, node)
    return values if kind is tuple else kind._make(values)  # type: ignore[attr-defined]


def _build_unchecked(node: Structure, leaves: list[Any], start: int) -> Tree:
    """As `_build`, for leaves that may be anything: no Dict claims to know its structure."""
    if node is _LEAF:
        return leaves[start]
    values = []
    for child in node.children:
        values.append(_build_unchecked(child, leaves, start))
        start += child.leaf_count
    if node.kind is Dict:
        return _make_dict(node.index, tuple(values), None)
    return tuple(values) if node.kind is tuple else node.kind._make(values)  # type: ignore[attr-defined]


# --- paths and differences -----------------------------------------------------------------------------------------


def _step(node: Structure, position: int) -> str:
    return node.keys[position] if node.keys else str(position)


def _join(prefix: str, step: str) -> str:
    return f"{prefix}.{step}" if prefix else step


def _paths(node: Structure, prefix: str) -> Iterator[str]:
    if node is _LEAF:
        yield prefix
    for position, child in enumerate(node.children):
        yield from _paths(child, _join(prefix, _step(node, position)))


def _kind_name(node: Structure) -> str:
    if node is _LEAF:
        return "a tensor"
    if node.kind is Dict:
        return f"a Dict with keys {list(node.keys)}"
    name = "a tuple" if node.kind is tuple else f"a {node.kind.__name__}"
    return f"{name} of length {len(node.children)}"


def difference(first: Structure, second: Structure, path: str = "") -> str | None:
    """Where and how two structures first differ, as text that starts with the path; None if they agree.

    Two `Dict`s with the same keys in another order agree: their entries are matched by key.
    """
    if first is second:
        return None
    same = first.kind is second.kind and len(first.children) == len(second.children)
    if not same or (first.kind is Dict and first.index.keys() != second.index.keys()):
        where = f"`{path}`" if path else "the root"
        return f"{where}: {_kind_name(first)} against {_kind_name(second)}"
    for position, child in enumerate(first.children):
        step = _step(first, position)
        other = second.children[second.index[step] if first.kind is Dict else position]
        found = difference(child, other, _join(path, step))
        if found is not None:
            return found
    return None


def _matching_order(first: Structure, second: Structure, start: int) -> Iterator[int]:
    """For each leaf of `first`, the position in `second` of the leaf with the same path."""
    if first is second:
        yield from range(start, start + first.leaf_count)
        return
    starts = [start]
    for child in second.children:
        starts.append(starts[-1] + child.leaf_count)
    for position, child in enumerate(first.children):
        other = second.index[first.keys[position]] if first.kind is Dict else position
        yield from _matching_order(child, second.children[other], starts[other])


# --- text ----------------------------------------------------------------------------------------------------------


def _name_of(value: object) -> str:
    return type(value).__name__


def _dtype_name(leaf: Any) -> str:
    return str(getattr(leaf.dtype, "name", leaf.dtype))


def _format_leaf(leaf: Any) -> str:
    return f"{_dtype_name(leaf)}[{', '.join(str(extent) for extent in leaf.shape)}]"


def text(value: Any) -> str:
    """A tree as text, as the `repr` of a `Dict` is: one line if it fits, else one line per entry; leaves as
    `float32[784, 128]`, what is no tree by its own repr.
    """
    collected: list[Any] = []
    try:
        found = _collect(value, collected)
    except _NotATreeError:
        if not isinstance(value, Mapping):
            return repr(value)
        return f"Dict({', '.join(f'{key}: {entry!r}' for key, entry in value.items())})"
    return _format(found, [_format_leaf(leaf) for leaf in collected])


def _format(node: Structure, leaf_texts: Sequence[str], indent: int = 0) -> str:
    if node is _LEAF:
        return leaf_texts[0]
    entries = []
    start = 0
    for position, child in enumerate(node.children):
        text = _format(child, leaf_texts[start : start + child.leaf_count], indent + 2)
        start += child.leaf_count
        entries.append(f"{node.keys[position]}: {text}" if node.keys else text)
    name = "" if node.kind is tuple else node.kind.__name__
    one_line = f"{name}({', '.join(entries)}{',' if not name and len(entries) == 1 else ''})"
    if len(one_line) + indent <= 100 and "\n" not in one_line:
        return one_line
    pad = " " * indent
    return f"{name}(\n" + "".join(f"{pad}  {entry},\n" for entry in entries) + f"{pad})"


# --- the functions over trees --------------------------------------------------------------------------------------


def _flatten(function: str, tree: Tree) -> tuple[list[Any], Structure]:
    collected: list[Any] = []
    try:
        return collected, _collect(tree, collected)
    except _NotATreeError as error:
        raise error.located(f"ptree.{function}") from None


def flatten(tree: Tree) -> tuple[list[Any], Structure]:
    """The leaves, left to right, and the structure, which called with leaves rebuilds a tree.

    TypeError, naming the path, where something is neither a leaf nor a node.
    """
    return _flatten("flatten", tree)


def structure(tree: Tree) -> Structure:
    """The structure alone; see `Structure`."""
    return _flatten("structure", tree)[1]


def leaves(tree: Tree) -> list[Any]:
    """The leaves alone, left to right."""
    return _flatten("leaves", tree)[0]


def as_tree(tree: Tree) -> Tree:
    """The same tree with its lists turned into tuples and its mappings into `Dict`s."""
    collected, found = _flatten("as_tree", tree)
    return _build(found, collected, 0)


def map(f: Callable[[Any], Any], tree: Tree) -> Tree:
    """The tree of `f(leaf)`."""
    collected, found = _flatten("map", tree)
    return found([f(leaf) for leaf in collected])


def map2(f: Callable[[Any, Any], Any], first: Tree, second: Tree) -> Tree:
    """The tree of `f(a, b)` over the leaves of two trees of the same structure, in the structure of `first`.

    Entries of `Dict`s are matched by key. ValueError, naming the first differing path, if the structures differ.
    """
    a, first_structure = _flatten("map2", first)
    b, second_structure = _flatten("map2", second)
    if first_structure is not second_structure:
        found = difference(first_structure, second_structure)
        if found is not None:
            raise ValueError(f"ptree.map2: structures differ at {found}")
        b = [b[position] for position in _matching_order(first_structure, second_structure, 0)]
    return first_structure([f(x, y) for x, y in zip(a, b, strict=True)])


def iter(f: Callable[[Any], object], tree: Tree) -> None:
    """Call `f(leaf)` for every leaf, left to right."""
    for leaf in _flatten("iter", tree)[0]:
        f(leaf)


def fold(f: Callable[[Any, Any], Any], init: Any, tree: Tree) -> Any:
    """`f(... f(f(init, leaf0), leaf1) ..., leafN)`."""
    accumulated = init
    for leaf in _flatten("fold", tree)[0]:
        accumulated = f(accumulated, leaf)
    return accumulated


def flatten_with_paths(tree: Tree) -> list[tuple[str, Any]]:
    """`[("0.weight", tensor), ("0.bias", tensor), ...]` in the order of `flatten`."""
    collected, found = _flatten("flatten_with_paths", tree)
    return list(zip(found.paths, collected, strict=True))


def unflatten_from_paths(pairs: Iterable[tuple[str, Any]] | Mapping[str, Any], like: Tree | None = None) -> Tree:
    """The tree with these leaves at these paths, in any order; the inverse of `flatten_with_paths`.

    With `like`, the result has exactly its structure; ValueError for a path that is missing or left over. Without,
    the paths alone decide: steps that are all whole numbers make a tuple, in which missing indices are `()` (a layer
    without parameters has no path), other steps a `Dict`; named tuples come back as `Dict`s and trailing `()` are lost.

    ValueError for a path given twice, for one that is both a leaf and a node, and for an empty or enormous step.
    """
    by_path: dict[str, Any] = {}
    for path, leaf in pairs.items() if isinstance(pairs, Mapping) else pairs:
        if path in by_path:
            raise ValueError(f"ptree.unflatten_from_paths: path `{path}` is given twice")
        by_path[path] = leaf
    if like is None:
        return _from_paths(by_path)
    found = _flatten("unflatten_from_paths", like)[1]
    expected = found.paths
    for path in expected:
        if path not in by_path:
            raise ValueError(f"ptree.unflatten_from_paths: no leaf for path `{path}`; got {_some(by_path)}")
    left_over = by_path.keys() - set(expected)
    if left_over:
        raise ValueError(f"ptree.unflatten_from_paths: `{min(left_over)}` is none of the paths {_some(expected)}")
    return found([by_path[path] for path in expected])


def _some(paths: Iterable[str]) -> str:
    shown = [f"`{path}`" for path in paths]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "") if shown else "none"


def _from_paths(by_path: dict[str, Any]) -> Tree:
    root: dict[str, Any] = {}
    if by_path.keys() == {""}:
        return by_path[""]
    for path, leaf in by_path.items():
        *parents, last = path.split(".")
        node = root
        for step in parents:
            node = node.setdefault(step, {})
            if type(node) is not dict:
                raise ValueError(f"ptree.unflatten_from_paths: `{path}` lies below a leaf")
        if last in node:
            raise ValueError(f"ptree.unflatten_from_paths: `{path}` is a leaf and the start of another path")
        # A leaf that happens to be a mapping would be taken for a node above, so leaves must be leaves.
        if _kind_of(leaf) is not Structure:
            raise TypeError(f"ptree.unflatten_from_paths: at `{path}`: expected a tensor, got {_name_of(leaf)}")
        node[last] = leaf
    return _tree_of_steps(root, "")


def _is_index(step: str) -> bool:
    # "01" and "²" are names, not indices: an index is written one way only.
    return step.isascii() and step.isdecimal() and (step == "0" or step[0] != "0")


def _tree_of_steps(node: Any, path: str) -> Tree:
    if type(node) is not dict:
        return node
    trees = {step: _tree_of_steps(child, _join(path, step)) for step, child in node.items()}
    if all(_is_index(step) for step in trees):
        for step in trees:
            if len(step) > 5 or int(step) > _LARGEST_INDEX:
                raise ValueError(f"ptree.unflatten_from_paths: index {step} at `{path}` is over {_LARGEST_INDEX}")
        last = max((int(step) for step in trees), default=-1)
        return tuple(trees.get(str(position), ()) for position in range(last + 1))
    try:
        return Dict(trees)
    except ValueError as error:
        raise ValueError(f"ptree.unflatten_from_paths: below `{path}`: {error}") from None


def zeros_like(tree: Tree) -> Tree:
    """The tree of zeros with the same shapes and dtypes."""
    from kaun import nx

    return map(nx.zeros_like, tree)


def count_parameters(tree: Tree) -> int:
    """The number of elements over all leaves."""
    return cast(int, sum(math.prod(leaf.shape) for leaf in _flatten("count_parameters", tree)[0]))


def describe(tree: Tree) -> str:
    """A table of the leaves: path, shape, dtype and number of elements, with the total below."""
    rows = [("path", "shape", "dtype", "parameters")]
    for path, leaf in flatten_with_paths(tree):
        shape = f"({', '.join(str(extent) for extent in leaf.shape)})"
        rows.append((path, shape, _dtype_name(leaf), f"{math.prod(leaf.shape):,}"))
    rows.append(("total", "", "", f"{count_parameters(tree):,}"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:<{widths[2]}}  {row[3]:>{widths[3]}}" for row in rows
    ]
    return "\n".join(lines)
