"""A graph compiled by one process is not compiled by the next, and a damaged program is compiled again, never run."""

from __future__ import annotations

import numpy as np
import pytest
from kaun.compiler.ir import Graph, KeptGraph, key
from kaun.compiler.program_text import print_program
from kaun.runtime import cache as caches
from kaun.runtime import target as targets

from kaun import execution, nx, stored_programs

X = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    own = caches.KernelCache(tmp_path)
    monkeypatch.setattr(stored_programs, "default_cache", lambda: own)
    return own


def graph_of(function):
    x = execution.placeholder(X.shape, nx.float32)
    return Graph((x,), (function(nx.Tensor(x))._node,))


def compile_graph(graph):
    text, target = key(graph), targets.host()
    return execution.CompiledGraph(KeptGraph(graph), text, target, stored_programs.lookup(graph, text, target))


def looked_at(compiled):
    """Whether the compiler had to go from the graph to the program."""
    return "compilation" in vars(compiled)


def values(compiled):
    return compiled([execution.Storage.of(X)])[0].array


def test_a_graph_compiled_before_is_read_from_disk_and_gives_the_same_bits(cache):
    graph = graph_of(lambda x: nx.softmax(nx.tanh(x) @ nx.permute_dims(x, (1, 0))))
    first, second = compile_graph(graph), compile_graph(graph)
    assert looked_at(first) and not looked_at(second)
    np.testing.assert_array_equal(values(first), values(second))
    assert print_program(second.compilation.program) == print_program(first.compilation.program)


def test_a_program_whose_kernels_are_gone_makes_them_from_its_text(cache, monkeypatch):
    graph = graph_of(lambda x: nx.sum(nx.exp(x) * 0.3717, axis=0))
    compile_graph(graph)
    fresh = caches.KernelCache(None)
    monkeypatch.setattr(caches, "default_cache", lambda: fresh)
    again = compile_graph(graph)
    assert not looked_at(again) and fresh.statistics.compiled > 0
    np.testing.assert_allclose(values(again), np.sum(np.exp(X) * np.float32(0.3717), axis=0), rtol=1e-6)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace(b"input 0", b"input 1"),
        lambda text: text.replace(b"float32[3, 4]", b"float32[4, 3]"),
        lambda text: text.replace(b"return output 0", b"return output 1"),
        lambda text: b"\xff" + text,
        lambda text: b"",
        lambda text: text.replace(b"input float32[3, 4]", b"input float33[3, 4]"),
        lambda text: text.replace(b"= exp(v", b"= exp(v7"),
        lambda text: text.replace(b"= exp(", b"= exq("),
        lambda text: text.replace(b"  launch {", b"  launch {\n  }\n  launch {", 1),
    ],
)
def test_a_program_that_does_not_fit_is_compiled_again(cache, damage):
    graph = graph_of(lambda x: nx.exp(x) - 2)
    compile_graph(graph)
    name = stored_programs._key(key(graph), targets.host())
    kept = cache.lookup(name)
    assert kept is not None
    assert damage(kept) != kept
    cache.store(name, damage(kept))
    again = compile_graph(graph)
    assert looked_at(again)
    np.testing.assert_allclose(values(again), np.exp(X) - 2, rtol=1e-6)
    assert cache.lookup(name) == kept


def test_other_numbers_and_shapes_are_other_programs(cache):
    doubled, tripled = graph_of(lambda x: x * 2), graph_of(lambda x: x * 3)
    compile_graph(doubled)
    assert looked_at(compile_graph(tripled))
    assert cache.count() == 2
