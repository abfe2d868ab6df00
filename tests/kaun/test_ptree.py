"""Parameter trees: what is a tree, flattening and rebuilding, paths, structure errors."""

import copy
import pickle
from collections import OrderedDict
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaun import ptree


class Moments(NamedTuple):
    count: Any
    mu: Any


def array(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.zeros(shape, dtype)


def numbered(count: int) -> list[np.ndarray]:
    return [np.array(value) for value in range(count)]


KEYS = st.text(st.characters(exclude_characters=".[]", exclude_categories=["Cs"]), min_size=1, max_size=4)


def trees(leaf: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Trees as a user may write them: tuples, lists, dicts, Dicts and named tuples, nested."""

    def nodes(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        entries = st.dictionaries(KEYS, children, max_size=3)
        sequences = st.lists(children, max_size=3)
        return st.one_of(
            sequences, sequences.map(tuple), entries, entries.map(ptree.Dict), st.builds(Moments, children, children)
        )

    return st.recursive(leaf, nodes, max_leaves=12)


def reference_flatten(tree: Any, path: tuple[str, ...] = ()) -> list[tuple[str, Any]]:
    """The definition, written the slow and obvious way."""
    if isinstance(tree, np.ndarray):
        return [(".".join(path), tree)]
    if hasattr(tree, "keys"):
        entries = [(key, tree[key]) for key in tree]
    elif hasattr(tree, "_fields"):
        entries = [(field, getattr(tree, field)) for field in tree._fields]
    else:
        entries = [(str(position), child) for position, child in enumerate(tree)]
    return [pair for step, child in entries for pair in reference_flatten(child, (*path, step))]


def plain(tree: Any) -> Any:
    """A tree as nested tuples of leaf identities that remember every node's type and keys."""
    if isinstance(tree, np.ndarray):
        return id(tree)
    if isinstance(tree, ptree.Dict):
        return ("Dict", tuple((key, plain(child)) for key, child in tree.items()))
    return (type(tree), tuple(plain(child) for child in tree))


LEAVES = st.builds(lambda: np.zeros((2, 3), np.float32))


@given(trees(LEAVES))
def test_flatten_visits_leaves_in_the_order_of_the_definition(tree: Any) -> None:
    expected = reference_flatten(tree)
    leaves, structure = ptree.flatten(tree)
    assert [id(leaf) for leaf in leaves] == [id(leaf) for _, leaf in expected]
    assert [(path, id(leaf)) for path, leaf in ptree.flatten_with_paths(tree)] == [(p, id(t)) for p, t in expected]
    assert structure.leaf_count == len(expected)
    assert structure.paths == tuple(path for path, _ in expected)


@given(trees(LEAVES))
def test_rebuilding_gives_back_the_tree_with_its_node_types(tree: Any) -> None:
    normal = ptree.as_tree(tree)
    leaves, rebuild = ptree.flatten(normal)
    assert plain(rebuild(leaves)) == plain(normal)
    again, rebuild_again = ptree.flatten(rebuild(leaves))
    assert rebuild_again is rebuild
    assert [id(leaf) for leaf in again] == [id(leaf) for leaf in leaves]


@given(trees(LEAVES), trees(LEAVES))
def test_structures_are_equal_exactly_when_the_trees_differ_only_in_leaves(first: Any, second: Any) -> None:
    a, b = ptree.structure(first), ptree.structure(second)

    leaf = array()
    same = plain(a([leaf] * a.leaf_count)) == plain(b([leaf] * b.leaf_count))
    assert (a == b) == (a is b) == same
    assert same <= (hash(a) == hash(b))


@given(trees(LEAVES))
def test_paths_and_a_template_restore_any_tree(tree: Any) -> None:
    normal = ptree.as_tree(tree)
    pairs = ptree.flatten_with_paths(normal)
    if len({path for path, _ in pairs}) == len(pairs):
        assert plain(ptree.unflatten_from_paths(reversed(pairs), like=normal)) == plain(normal)


@given(trees(LEAVES))
def test_pickled_and_copied_trees_share_the_structure(tree: Any) -> None:
    normal = ptree.as_tree(tree)
    structure = ptree.structure(normal)
    assert ptree.structure(pickle.loads(pickle.dumps(normal))) is structure
    assert ptree.structure(copy.deepcopy(normal)) is structure
    assert pickle.loads(pickle.dumps(structure)) is structure


def test_lists_and_mappings_come_back_as_tuples_and_dicts() -> None:
    a, b, c = numbered(3)
    tree = ptree.as_tree([{"x": [a]}, OrderedDict(y=b), MappingProxyType({"z": c})])
    assert plain(tree) == plain((ptree.Dict(x=(a,)), ptree.Dict(y=b), ptree.Dict(z=c)))


def test_named_tuples_are_rebuilt_with_their_class() -> None:
    mapped = ptree.map(lambda leaf: leaf + 1, Moments(np.array(1), ptree.Dict(w=np.array(2))))
    assert type(mapped) is Moments
    assert (int(mapped.count), int(mapped.mu["w"])) == (2, 3)
    assert [path for path, _ in ptree.flatten_with_paths(mapped)] == ["count", "mu.w"]


@pytest.mark.parametrize(
    ("tree", "path"),
    [
        ((array(), None), "1"),
        ({"a": {"b": 3.0}}, "a.b"),
        ([[array(), "text"]], "0.1"),
        (Moments(array(), object()), "mu"),
    ],
)
def test_what_is_no_tree_is_named_by_its_path(tree: Any, path: str) -> None:
    with pytest.raises(TypeError, match=rf"^ptree\.flatten: at `{path}`: expected a tensor"):
        ptree.flatten(tree)


def test_none_is_not_a_tree() -> None:
    with pytest.raises(TypeError, match=r"^ptree\.map: expected a tensor.*got NoneType"):
        ptree.map(lambda leaf: leaf, None)


@pytest.mark.parametrize("key", ["", "a.b", "a[0]", "]"])
def test_keys_that_would_not_survive_a_path_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match=r"^ptree\.Dict: expected keys"):
        ptree.Dict({key: array()})
    with pytest.raises(ValueError, match=r"^ptree\.flatten: at `0`: expected keys"):
        ptree.flatten([{key: array()}])


def test_keys_are_strings() -> None:
    with pytest.raises(TypeError, match=r"^ptree\.Dict: expected string keys, got 3"):
        ptree.Dict({3: array()})  # type: ignore[dict-item]


def test_dict_is_an_immutable_ordered_mapping() -> None:
    a, b, c = numbered(3)
    given = {"w": a, "b": [b]}
    made = ptree.Dict(given)
    given["w"] = c
    assert list(made) == ["w", "b"] and made["w"] is a and made["b"] == (b,) and len(made) == 2
    assert "w" in made and "v" not in made and made.get("v") is None
    with pytest.raises(KeyError, match=r"no key 'v'; the keys are \['w', 'b'\]"):
        made["v"]
    with pytest.raises(TypeError):
        made["w"] = c  # type: ignore[index]
    with pytest.raises(AttributeError):
        made.w = c  # type: ignore[attr-defined]
    merged = made | {"w": c, "z": a}
    assert list(merged) == ["w", "b", "z"] and merged["w"] is c and made["w"] is a


class NamedLeaf:
    """A leaf that can be hashed and compared, as NumPy arrays cannot."""

    shape = (2,)
    dtype = "float32"


def test_dicts_of_hashable_leaves_are_equal_and_hash_alike_in_any_order() -> None:
    a, b = NamedLeaf(), NamedLeaf()
    first, second = ptree.Dict(x=a, y=(b,)), ptree.Dict(y=(b,), x=a)
    assert first == second and hash(first) == hash(second) and len({first, second}) == 1
    assert first != ptree.Dict(x=b, y=(b,)) and first != ptree.Dict(x=a)
    assert first == {"x": a, "y": (b,)}


def test_map2_matches_dict_entries_by_key() -> None:
    first = {"w": np.array(10), "n": {"p": np.array(20), "q": np.array(30)}}
    second = {"n": {"q": np.array(3), "p": np.array(2)}, "w": np.array(1)}
    total = ptree.map2(np.add, first, second)
    assert list(total) == ["w", "n"]
    assert (int(total["w"]), int(total["n"]["p"]), int(total["n"]["q"])) == (11, 22, 33)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ((array(), {"w": array()}), (array(), {"v": array()}), r"`1`: a Dict with keys \['w'\] against .* \['v'\]"),
        ({"a": (array(),)}, {"a": (array(), array())}, "`a`: a tuple of length 1 against a tuple of length 2"),
        ({"a": {"b": array()}}, {"a": {"b": (array(),)}}, "`a.b`: a tensor against a tuple of length 1"),
        (Moments(array(), array()), (array(), array()), "the root: a Moments of length 2 against a tuple of length 2"),
    ],
)
def test_map2_names_the_first_differing_path(first: Any, second: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^ptree\.map2: structures differ at {message}"):
        ptree.map2(np.add, first, second)


def test_fold_and_iter_go_left_to_right() -> None:
    tree = {"b": [np.array(1), np.array(2)], "a": np.array(3)}
    seen: list[int] = []
    ptree.iter(lambda leaf: seen.append(int(leaf)), tree)
    assert seen == [1, 2, 3]
    assert ptree.fold(lambda text, leaf: text + str(leaf), "", tree) == "123"


def test_mapping_to_what_is_no_leaf_gives_a_mapping_that_is_no_tree() -> None:
    shapes = ptree.map(lambda leaf: leaf.shape, ptree.Dict(a=array(2, 3), b=(array(4),)))
    assert shapes["a"] == (2, 3) and shapes["b"] == ((4,),)
    assert "(2, 3)" in repr(shapes)
    with pytest.raises(TypeError, match=r"at `a\.0`: expected a tensor.*got int"):
        ptree.flatten(shapes)


def test_mapping_leaves_to_trees_nests_them() -> None:
    doubled = ptree.map(lambda leaf: [leaf, {"again": leaf}], ptree.Dict(a=array(2)))
    assert [path for path, _ in ptree.flatten_with_paths(doubled)] == ["a.0", "a.1.again"]
    rebuilt = ptree.map(lambda leaf: leaf, doubled)
    assert type(rebuilt["a"]) is tuple and type(rebuilt["a"][1]) is ptree.Dict


def test_rebuilding_with_the_wrong_number_of_leaves_is_an_error() -> None:
    _, rebuild = ptree.flatten((array(), array()))
    with pytest.raises(ValueError, match=r"^ptree\.rebuild: got 1 leaves, expected 2"):
        rebuild([array()])


def test_paths_alone_restore_layers_without_parameters() -> None:
    w, b = numbered(2)
    params = (ptree.Dict(weight=w), (), ptree.Dict(bias=b))
    pairs = ptree.flatten_with_paths(params)
    assert [path for path, _ in pairs] == ["0.weight", "2.bias"]
    assert plain(ptree.unflatten_from_paths(reversed(pairs))) == plain(params)
    assert ptree.unflatten_from_paths([("", w)]) is w
    assert ptree.unflatten_from_paths([]) == ()


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["a", "a"], "`a` is given twice"),
        (["a", "a.b"], "`a.b` lies below a leaf"),
        (["a.b", "a"], "`a` is a leaf and the start of another path"),
        (["0", "99999999999"], "index 99999999999"),
        (["a..b"], "keys that are not empty"),
        (["a[0].b"], r"no '\.', '\[' or '\]'"),
    ],
)
def test_paths_that_contradict_each_other_are_errors(paths: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^ptree\.unflatten_from_paths: .*{message}"):
        ptree.unflatten_from_paths([(path, array()) for path in paths])


@pytest.mark.parametrize(
    ("paths", "message"), [(["a"], "no leaf for path `b`"), (["a", "b", "c"], "`c` is none of the paths `a`, `b`")]
)
def test_a_template_names_missing_and_left_over_paths(paths: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ptree.unflatten_from_paths([(path, array()) for path in paths], like={"a": array(), "b": array()})


def test_steps_that_only_look_like_numbers_are_keys() -> None:
    tree = ptree.unflatten_from_paths([("01", array()), ("2", array())])
    assert list(tree) == ["01", "2"]


def test_count_parameters_multiplies_extents() -> None:
    assert ptree.count_parameters([{"w": array(784, 128), "b": array(128)}, (), array()]) == 784 * 128 + 128 + 1
    assert ptree.count_parameters({"empty": array(0, 5)}) == 0


def test_repr_shows_nesting_shapes_and_dtypes() -> None:
    tree = ptree.Dict(left=(ptree.Dict(weight=array(784, 128), bias=array(128, dtype="int8")), ()), right=array())
    assert repr(tree) == "Dict(left: (Dict(weight: float32[784, 128], bias: int8[128]), ()), right: float32[])"
    wide = repr(ptree.Dict({f"layer{i}": ptree.Dict(weight=array(64, 64), bias=array(64)) for i in range(4)}))
    assert wide.splitlines()[1] == "  layer0: Dict(weight: float32[64, 64], bias: float32[64]),"


def test_describe_is_a_table_with_a_total() -> None:
    lines = ptree.describe([{"weight": array(784, 128), "bias": array(128)}]).splitlines()
    assert lines[1].split() == ["0.weight", "(784,", "128)", "float32", "100,352"]
    assert lines[-1].split() == ["total", "100,480"]


def test_zeros_like_keeps_shapes_and_dtypes() -> None:
    nx = pytest.importorskip("kaun.nx")
    tree = {"a": nx.asarray(np.ones((2, 3), np.float32)), "b": [nx.asarray(np.ones(4, np.int32))]}
    zeros = ptree.zeros_like(tree)
    assert ptree.structure(zeros) is ptree.structure(tree)
    for leaf, like in zip(ptree.leaves(zeros), ptree.leaves(tree), strict=True):
        assert leaf.numpy().dtype == like.numpy().dtype and leaf.shape == like.shape and not leaf.numpy().any()
