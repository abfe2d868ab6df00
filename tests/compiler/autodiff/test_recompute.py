"""Regions are computed again for their gradients: as asked, no more than asked, and in the right order."""

from __future__ import annotations

import itertools
import math
import random
import warnings
from collections.abc import Collection, Sequence

import numpy as np
import pytest
from kaun.compiler import passes
from kaun.compiler.autodiff.budget import MOST_AGAIN, Parts, cheapest_again, choose, smallest
from kaun.compiler.autodiff.minimum_cut import PRICE, minimum_cut
from kaun.compiler.autodiff.vjp import gradients
from kaun.compiler.ir import Graph, Node, dtypes, full, ops, parse_graph, print_graph, topological, verify
from kaun.compiler.ir.interpreter import evaluate
from kaun.compiler.schedule.fusion import fuse
from kaun.compiler.schedule.waits import without_waits

SIDE = 8


def leaf(name: str, shape: tuple[int, ...] = (SIDE, SIDE)) -> Node:
    return ops.input_(identity=("recompute", name), dtype=dtypes.float32, shape=shape)


def product(a: Node, b: Node) -> Node:
    return ops.dot_general(a, b, lhs_batch=(), rhs_batch=(), lhs_contract=(1,), rhs_contract=(0,))


def layer(x: Node, w: Node) -> Node:
    return ops.tanh(product(x, w))


def total(x: Node) -> Node:
    return ops.reduce_sum(x * x, axes=(0, 1))


def gradient_graph(inputs: tuple[Node, ...], loss: Node) -> Graph:
    return Graph(inputs, (loss, *gradients([loss], [full(1, dtypes.float32)], inputs)))


def arguments(graph: Graph) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.standard_normal(node.shape).astype(np.float32) / 4 for node in graph.inputs]


def agree(first: Graph, second: Graph) -> None:
    values = arguments(first)
    for a, b in zip(evaluate(first, values), evaluate(second, values), strict=True):
        assert a.tobytes() == b.tobytes()


def count(graph: Graph, op: object) -> int:
    return sum(node.op is op for node in graph.nodes)


X, W, V = leaf("x"), leaf("w"), leaf("v")


def test_what_is_in_a_region_is_computed_again_once_and_nothing_else_is() -> None:
    plain = gradient_graph((X, W, V), total(layer(layer(X, W), V)))
    hidden = ops.remat(layer(X, W), X, W, budget=None)
    marked = gradient_graph((X, W, V), total(layer(hidden, V)))
    verify(marked)
    agree(plain, marked)
    assert count(marked, ops.tanh) == count(plain, ops.tanh) + 1
    assert count(marked, ops.dot_general) == count(plain, ops.dot_general) + 1
    assert passes.run(plain).outputs[1:] != passes.run(marked).outputs[1:]


def test_what_is_computed_again_waits_for_the_cotangent_and_for_the_forward_pass() -> None:
    hidden = layer(X, W)
    marked = gradient_graph((X, W, V), total(layer(ops.remat(hidden, X, W, budget=None), V)))
    (again,) = (node for node in marked.nodes if node.op is ops.again)
    assert again.inputs[0] is X and again.inputs[2] is hidden
    assert V in topological([again.inputs[1]]), "the cotangent comes back through the layer above"
    graph, waits = without_waits(passes.run(marked))
    kernels = fuse(graph, waits=waits)
    waiting = [kernel for kernel in kernels if kernel.waits]
    for kernel in waiting:
        done = {node for earlier in kernels[: kernels.index(kernel)] for node in earlier.outputs}
        assert set(kernel.waits) <= done
    assert any(node.op is ops.tanh for kernel in waiting for node in kernel.nodes)


def test_regions_in_regions_are_computed_again_from_what_the_outer_one_computes_again() -> None:
    inner = ops.remat(layer(layer(X, W), W), X, W, budget=None)
    outer = ops.remat(layer(inner, V), X, W, V, budget=None)
    marked = gradient_graph((X, W, V), total(product(outer, V)))
    plain = gradient_graph((X, W, V), total(product(layer(layer(layer(X, W), W), V), V)))
    agree(plain, marked)
    # The inner layers run in the forward pass, to get to the outer's, and for their own gradients.
    assert count(marked, ops.tanh) == 3 + 3 + 2


def test_results_of_one_region_share_what_is_computed_again() -> None:
    hidden = layer(X, W)
    left, right = (ops.remat(part, X, W, budget=None) for part in (ops.sin(hidden), ops.exp(hidden)))
    marked = gradient_graph((X, W), total(left * right))
    agree(gradient_graph((X, W), total(ops.sin(hidden) * ops.exp(hidden))), marked)
    assert count(marked, ops.tanh) == 2 and count(marked, ops.exp) == 2


def test_second_derivatives_go_through_what_was_computed_again() -> None:
    def second(hidden: Node) -> Graph:
        (first,) = gradients([total(hidden)], [full(1, dtypes.float32)], [X])
        return Graph((X, W), tuple(gradients([total(first)], [full(1, dtypes.float32)], [X, W])))

    marked = second(ops.remat(layer(X, W), X, W, budget=None))
    verify(marked)
    values = arguments(marked)
    for got, wanted in zip(evaluate(marked, values), evaluate(second(layer(X, W)), values), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_regions_print_and_parse() -> None:
    marked = gradient_graph((X, W), total(ops.remat(layer(X, W), X, W, budget=1 << 20)))
    text = print_graph(marked)
    assert "remat(" in text and f"budget={1 << 20}" in text
    assert print_graph(parse_graph(text)) == text
    simplified = passes.run(gradient_graph((X, W), total(ops.remat(layer(X, W), X, W, budget=None))))
    text = print_graph(simplified)
    assert "remat(" not in text and "again(" in text
    assert print_graph(parse_graph(text)) == text


def test_waits_leave_the_graph_and_name_what_is_computed_anyway() -> None:
    useless = ops.exp(product(X, W))
    waiting = ops.again(X, ops.sin(useless), number=0)
    graph, waits = without_waits(Graph((X, W), (product(waiting, W), product(X, W))))
    assert count(graph, ops.exp) == 0
    ((node, awaited),) = waits.awaited.items()
    assert waits.order.index(node) > waits.order.index(awaited[0])
    assert node.op is ops.again and node.inputs == (X,)
    assert [n.op for n in awaited] == [ops.dot_general]
    untouched = Graph((X, W), (product(X, W),))
    assert without_waits(untouched)[0] is untouched


# --- what to keep ----------------------------------------------------------------------------------------------------


def bytes_of(nodes: Collection[Node]) -> int:
    return sum(node.nbytes for node in nodes)


def is_enough(kept: Collection[Node], members: Collection[Node], needed: Collection[Node]) -> bool:
    """Whether no product of matrices has to be done again to get at the needed values."""
    order = topological(needed, stop=lambda n: n in kept or n not in members)
    return not any(node.op is ops.dot_general and node not in kept and node in members for node in order)


def random_members(source: random.Random, size: int) -> list[Node]:
    """A forward pass of a few values of different sizes; the first reads an input of the graph."""
    made: list[Node] = [X]
    while len(made) <= size:
        x = source.choice(made)
        choices = [ops.tanh(x), ops.sin(x), ops.reduce_sum(x, axes=(0,))] if x.rank == 2 else [ops.exp(x)]
        if x.rank == 2:
            choices += [product(x, W), product(x, V)]
        same = [other for other in made if other.shape == x.shape]
        choices.append(x * source.choice(same))
        node = source.choice(choices)
        if node not in made:
            made.append(node)
    return made[1:]


def test_the_minimum_cut_is_the_best_of_all_subsets() -> None:
    source = random.Random(0)
    for _ in range(40):
        members = random_members(source, 7)
        needed = set(source.sample(members, 3))

        def cost(kept: Collection[Node], members: Sequence[Node] = members, needed: set[Node] = needed) -> float:
            again = topological(needed, stop=lambda n: n in kept or n not in members)
            done = [n for n in again if n in members and n not in kept]
            return bytes_of(kept) + sum(PRICE * max(n.op.flops(n), n.size) for n in done)

        subsets = itertools.chain.from_iterable(itertools.combinations(members, n) for n in range(len(members) + 1))
        best = min(cost(kept) for kept in subsets if is_enough(kept, members, needed))
        kept = minimum_cut(members, needed)
        assert is_enough(kept, members, needed)
        assert cost(kept) == pytest.approx(best)


def chain(length: int) -> tuple[list[Node], Node]:
    """Layers on top of one another: all their nodes, and the last."""
    x, members = X, []
    for _ in range(length):
        x = product(x, W)
        members.append(x)
        x = ops.tanh(x)
        members.append(x)
    return members, x


VALUE = 4 * SIDE * SIDE


def test_a_budget_that_is_enough_keeps_all_and_a_smaller_one_is_kept_to() -> None:
    members, last = chain(16)
    needed = frozenset(node for node in members if node.op is ops.tanh)
    everything = choose(members, [X, W], [last], needed, 16 * VALUE)
    assert everything.operations == 0 and bytes_of(everything.kept) == 16 * VALUE
    before = 0
    for values in range(15, 7, -1):
        choice = choose(members, [X, W], [last], needed, values * VALUE)
        assert bytes_of(choice.kept) <= choice.alive_bytes <= values * VALUE
        assert choice.operations >= before, "less memory takes more work"
        before = choice.operations
    assert 0 < before <= sum(node.op.flops(node) for node in members)


def test_the_least_is_about_twice_the_square_root() -> None:
    """Sixteen layers in four segments: three values kept between them, and four inside of one."""
    members, last = chain(16)
    least = choose(members, [X, W], [last], frozenset(node for node in members if node.op is ops.tanh), 0)
    assert least.alive_bytes <= 8 * VALUE


def test_deep_passes_are_cut_again_inside_and_make_no_more_passes_than_said() -> None:
    """Sixty-four layers in four parts of four of four: three values, three, and four, where one level needs fifteen."""
    members, last = chain(64)
    operations = sum(node.op.flops(node) for node in members)
    least = choose(members, [X, W], [last], frozenset(node for node in members if node.op is ops.tanh), 0)
    assert len(least.levels) > 2
    assert all(one < other for one, other in itertools.pairwise(least.levels))
    assert least.alive_bytes <= 11 * VALUE
    assert operations < least.operations <= MOST_AGAIN * operations


@pytest.mark.parametrize("values", [1, 2, 3, 4])
@pytest.mark.parametrize("steps", [2, 3, 5, 8, 13])
def test_equal_steps_are_cut_as_revolve_cuts_them(steps: int, values: int) -> None:
    """With s values kept, l steps take r * l - C(s + r, r - 1), of the least r with C(s + r, r) >= l."""
    numbers = range(steps + 1)
    kept = [[0 if j - i <= 1 else 1 + values for j in numbers] for i in numbers]
    passing, least = ([[number] * (steps + 1) for _ in numbers] for number in (1, 0))
    whole = [[max(0, j - i) for j in numbers] for i in numbers]
    parts = Parts(kept, passing, least, whole, smallest(kept))
    repeats = next(r for r in itertools.count(1) if math.comb(values + r, r) >= steps)
    assert cheapest_again(parts, values) == repeats * steps - math.comb(values + repeats, repeats - 1)


@pytest.mark.parametrize("values", [5, 6, 8])
def test_gradients_have_the_same_bits_however_deep_the_cuts(values: int) -> None:
    _, last = chain(16)
    marked = gradient_graph((X, W), total(ops.remat(last, X, W, budget=values * VALUE)))
    verify(marked)
    agree(gradient_graph((X, W), total(last)), marked)
    tanhs = count(marked, ops.tanh)
    assert 16 < tanhs <= 16 * (1 + MOST_AGAIN)


def test_what_scores_are_made_from_is_kept_with_them_and_not_copied() -> None:
    table = leaf("table", (64 * SIDE, SIDE))
    hidden = product(X, W)
    entering = ops.sin(hidden)
    scores = product(entering, ops.permute(table, axes=(1, 0)))
    powers = ops.exp(scores - wide(ops.reduce_max(scores, axes=(1,)), scores))
    result = product(powers * wide(1.0 / ops.reduce_sum(powers, axes=(1,)), scores), table)
    members = topological([result], stop=lambda n: n in (X, W, table))
    members = [node for node in members if node not in (X, W, table)]
    for budget in (0, 1 << 20):
        choice = choose(members, [X, W, table], [result], frozenset((hidden, scores)), budget)
        assert entering in choice.levels[-1]
        assert choice.alive_bytes == hidden.nbytes, "the scores are never in memory"
    marked = gradient_graph((X, W, table), total(ops.remat(result, X, W, table, budget=1 << 20)))
    agree(gradient_graph((X, W, table), total(result)), marked)
    assert count(marked, ops.sin) == 1


def wide(row: Node, like: Node) -> Node:
    """A value of each row at every place of it."""
    return ops.broadcast(ops.reshape(row, shape=(row.shape[0], 1)), shape=like.shape)


def test_a_budget_that_cannot_be_met_says_the_least_that_can() -> None:
    _, last = chain(16)
    loss = total(ops.remat(last, X, W, budget=VALUE))
    with pytest.warns(UserWarning, match=r"kn\.remat: a budget of 256 bytes cannot be met; [\d,]+ is the least"):
        tight = gradient_graph((X, W), loss)
    agree(gradient_graph((X, W), total(last)), tight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for budget in (9 * VALUE, 12 * VALUE, 40 * VALUE):
            marked = gradient_graph((X, W), total(ops.remat(last, X, W, budget=budget)))
            agree(gradient_graph((X, W), total(last)), marked)
            assert (count(marked, ops.tanh) > 16) == (budget < 16 * VALUE)
