"""Functions that do the same have the same key; what they captured is found and can be replaced; doubt means no key."""

from __future__ import annotations

import functools
import importlib
import math
import sys
import types
from typing import NamedTuple

import numpy as np
import pytest

import kaun as kn
from kaun import nx
from kaun.closure import capture

GLOBAL_LABELS = nx.asarray([1.0, 2.0])
GLOBAL_FACTOR = 2.0


class Pair(NamedTuple):
    first: object
    second: object


def tensor(*values):
    return nx.asarray(np.asarray(values, np.float32))


def closes_over(captured):
    return lambda x: x * 2 + (captured if isinstance(captured, nx.Tensor) else 0)


def same(a, b):
    first, second = capture(a), capture(b)
    return first.key is not None and first.key == second.key


def test_closures_over_different_tensors_are_the_same_function():
    first, second = capture(closes_over(tensor(1))), capture(closes_over(tensor(2, 3)))
    assert first.key is not None and first.key == second.key and hash(first.key) == hash(second.key)
    assert [t.numpy().tolist() for t in second.tensors] == [[2.0, 3.0]]
    rebound = first.rebind((tensor(5),))
    assert rebound(tensor(1)).numpy().tolist() == [7.0]
    assert first.function(tensor(1)).numpy().tolist() == [3.0]


@pytest.mark.parametrize(
    "a, b",
    [
        (1, 2), (1, True), (1, 1.0), (0.0, -0.0), ("a", b"a"), ((1,), [1]), ({"a": 1}, {"a": 2}), (None, 0),
        (math.sin, math.cos),
    ],
)
def test_closures_over_different_values_are_different_functions(a, b):
    assert same(closes_over(a), closes_over(a))
    assert not same(closes_over(a), closes_over(b))


def test_nan_is_the_same_as_itself():
    assert same(closes_over(float("nan")), closes_over(float("nan")))


def test_different_code_is_a_different_function():
    assert not same(lambda x: x + 1, lambda x: x + 2)
    assert same(*[lambda x: x + 1 for _ in range(2)])


@pytest.mark.parametrize(
    "make",
    [
        lambda t: closes_over((1, [t, {"a": t}])),
        lambda t: closes_over(Pair(t, 3)),
        lambda t: functools.partial(kn.loss.huber, targets=t, delta=0.5),
        lambda t: lambda x, y=t: x + y,
        lambda t: closes_over(lambda x, *, y=t: x + y),
        lambda t: closes_over(kn.ptree.Dict(a=t)),
        lambda t: closes_over(kn.layer.Vars({"a": t}, (), nx.float32)),
    ],
)
def test_tensors_are_found_inside_containers_functions_defaults_and_partials(make):
    first, second = capture(make(tensor(1))), capture(make(tensor(2)))
    assert first.key is not None and first.key == second.key
    assert {t.numpy().tolist()[0] for t in second.tensors} == {2.0}
    again = capture(first.rebind(second.tensors))
    assert again.key == first.key and {t.numpy().tolist()[0] for t in again.tensors} == {2.0}


def test_arrays_count_as_tensors():
    labels = np.asarray([3.0], np.float32)
    captured = capture(lambda x: x + labels)
    assert captured.rebind((tensor(4),))(tensor(1)).numpy().tolist() == [5.0]


def uses_globals(x):
    return helper(x) + GLOBAL_LABELS


def helper(x):
    return x * GLOBAL_FACTOR


def test_globals_a_function_names_belong_to_it_through_the_functions_it_calls(monkeypatch):
    before = capture(uses_globals)
    assert before.key is not None
    assert [t.numpy().tolist() for t in before.tensors] == [[1.0, 2.0]]
    assert before.rebind((tensor(5, 5),))(tensor(1, 1)).numpy().tolist() == [7.0, 7.0]
    monkeypatch.setitem(globals(), "GLOBAL_LABELS", tensor(9, 9))
    assert capture(uses_globals).key == before.key
    assert capture(uses_globals).tensors[0].numpy().tolist() == [9.0, 9.0]
    monkeypatch.setitem(globals(), "GLOBAL_FACTOR", 3.0)
    assert capture(uses_globals).key != before.key


def test_attributes_of_a_users_module_belong_to_the_functions_that_read_them():
    settings = types.ModuleType("settings")
    settings.factor, settings.unread = 2.0, object()
    namespace = {"settings": settings}
    exec("def f(x):\n    return x * settings.factor", namespace)
    before = capture(namespace["f"])
    assert before.key is not None
    settings.factor = 3.0
    assert capture(namespace["f"]).key not in (None, before.key)
    settings.factor = tensor(1)
    assert capture(namespace["f"]).key is None


def test_a_users_module_with_the_name_of_a_standard_one_is_not_taken_for_it(tmp_path, monkeypatch):
    code = "import kaun\nlabels = kaun.nx.asarray([1.0])\n\ndef f(x):\n    return x - labels\n"
    (tmp_path / "this.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "this", raising=False)
    function = importlib.import_module("this").f
    assert len(capture(function).tensors) == 1


def recursive(x):
    return recursive(x)


class Holder:
    def __init__(self):
        self.labels = tensor(1)

    def loss(self, x):
        return x - self.labels


def test_what_cannot_be_seen_through_has_no_key():
    iterator = iter([1, 2])
    cases = [
        recursive, Holder().loss, closes_over(Holder()), lambda x: x + next(iterator), lambda x: eval("x + 1"),
        lambda x: Holder, closes_over([].append),
    ]  # fmt: skip
    for function in cases:
        captured = capture(function)
        assert captured.key is None and captured.rebind(()) is function


def test_the_losses_of_the_guide_have_keys():
    y = nx.asarray([0, 1])
    assert capture(lambda logits: kn.loss.cross_entropy_sparse(logits, y)).key is not None
    assert capture(kn.loss.cross_entropy_sparse).key is not None
    smoothing = 0.1

    def smoothed(logits):
        hot = kn.nx.one_hot(y, 3) * (1 - smoothing) + smoothing / 3
        return kn.loss.cross_entropy(logits, hot) + sum(float(i) for i in range(3))

    assert capture(smoothed).key is not None
