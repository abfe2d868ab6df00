"""Matrix products agree with NumPy, and each is one contraction that copies nothing to broadcast."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kaun.compiler.ir import ops, topological
from nx_strategies import array, broadcastable

from kaun import execution, nx

SEEDS = st.integers(0, 2**16)


def close(tensor, expected):
    assert tensor.shape == np.shape(expected)
    np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-5, atol=1e-5)


def used(tensor):
    return [node.op for node in topological([tensor._node]) if node.op is not ops.input_]


def traced(*shape):
    return nx.Tensor(execution.placeholder(shape, nx.float32))


@settings(max_examples=30, deadline=None)
@given(broadcastable(), SEEDS, st.data())
def test_matmul_broadcasts_as_numpy(batches, seed, data):
    n, k, m = (data.draw(st.sampled_from([0, 1, 2, 5])) for _ in range(3))
    x, y = array(seed, (*batches[0], n, k)), array(seed + 1, (*batches[1], k, m))
    close(nx.asarray(x) @ nx.asarray(y), x @ y)


def test_matmul_of_vectors_agrees_with_numpy():
    v, w, m, s = array(1, (4,)), array(2, (4,)), array(3, (4, 4)), array(4, (3, 4, 4))
    for a, b in [(v, w), (v, m), (m, v), (v, s), (s, v), (m, s), (s, m)]:
        close(nx.matmul(a, b), a @ b)
    whole = array(5, (3, 4), np.int32)
    np.testing.assert_array_equal((nx.asarray(whole) @ whole.T).numpy(), whole @ whole.T)


@pytest.mark.parametrize(
    "left, right", [((8, 6, 4), (4, 5)), ((8, 6, 4), (8, 4, 5)), ((6, 4), (4, 5)), ((4,), (4, 5)), ((2, 8, 6, 4), (4,))]
)
def test_common_products_are_one_contraction_and_nothing_else(left, right):
    assert used(traced(*left) @ traced(*right)) == [ops.dot_general]


@pytest.mark.parametrize("left, right", [((6, 4), (8, 4, 5)), ((8, 1, 6, 4), (3, 4, 5)), ((2, 1, 6, 4), (1, 3, 4, 5))])
def test_broadcast_products_copy_nothing(left, right):
    found = used(traced(*left) @ traced(*right))
    assert found.count(ops.dot_general) == 1 and ops.broadcast not in found


EINSUMS = [
    "ij,jk->ik", "ij,kj->ik", "bij,bjk->bik", "bqhd,bkhd->bhqk", "bhqk,bkhd->bqhd", "i,i->", "i,j->ij", "ij,ij->ij",
    "ij,ij->i", "ij->ji", "ij->", "ij->j", "ii->i", "ii->", "iij->j", "ij,jk,kl->il", "a,ab,abc->abc", "ij,jk", "ba",
    "...ij,...jk->...ik", "i...->...", "...i,i->...", "ij,k->j", "iij,jk->ik", "bi,bj,bk->ijk",
]  # fmt: skip


def test_einsum_agrees_with_numpy():
    extents = {letter: 2 + i % 3 for i, letter in enumerate("abcdhijklq")}
    results, expected = [], []
    for number, subscripts in enumerate(EINSUMS):
        terms = subscripts.split("->")[0].split(",")
        arrays = [
            array(number + i, tuple(extents[c] for c in term.replace("...", "ab" if "a" not in subscripts else "cd")))
            for i, term in enumerate(terms)
        ]
        results.append(nx.einsum(subscripts, *arrays))
        expected.append(np.einsum(subscripts, *arrays))
    nx.realize(*results)
    for subscripts, result, one in zip(EINSUMS, results, expected, strict=True):
        assert result.shape == one.shape, subscripts
        np.testing.assert_allclose(result.numpy(), one, rtol=1e-4, atol=1e-5, err_msg=subscripts)


def test_einsum_broadcasts_extents_of_one_and_ellipses():
    x, y = array(1, (3, 1, 4)), array(2, (5, 4, 2))
    close(nx.einsum("...ij,...jk->...ik", x, y[:1]), np.einsum("...ij,...jk->...ik", x, y[:1]))
    close(nx.einsum("aij,bjk->abik", x, y), np.einsum("aij,bjk->abik", x, y))
    close(nx.einsum("ij,ij->i", x[:, 0, :1], array(3, (3, 4))), np.einsum("ij,ij->i", x[:, 0, :1], array(3, (3, 4))))
    close(nx.einsum("ij,ij->i", array(3, (3, 4)), x[:, 0, :1]), np.einsum("ij,ij->i", array(3, (3, 4)), x[:, 0, :1]))


def test_attention_scores_are_one_contraction():
    found = used(nx.einsum("bqhd,bkhd->bhqk", traced(2, 5, 3, 4), traced(2, 6, 3, 4)))
    assert [op for op in found if op is not ops.permute] == [ops.dot_general]


@pytest.mark.parametrize(
    "subscripts, shapes, message",
    [
        ("ij,jk->ik", [(2, 3)], "has 2 operands, got 1"),
        ("ij->ik", [(2, 3)], "a letter in its result that no operand has"),
        ("ij->ii", [(2, 3)], "repeats a letter"),
        ("ijk->i", [(2, 3)], "does not fit an operand of 2 axes"),
        ("i->i", [(2, 3)], "does not fit an operand of 2 axes"),
        ("i1->i", [(2, 3)], "cannot read"),
        ("ij,jk->ik", [(2, 3), (4, 5)], r"float32\[2, 3\] and float32\[4, 5\]: extents differ"),
        ("ii->i", [(2, 3)], "a diagonal needs equal extents"),
        ("...i->i", [(2, 3)], "not in its result"),
    ],
)
def test_einsum_refuses_what_does_not_fit(subscripts, shapes, message):
    with pytest.raises(ValueError, match=rf"nx\.einsum: .*{message}"):
        nx.einsum(subscripts, *(nx.zeros(shape) for shape in shapes))


def test_tensordot_vecdot_and_outer_agree_with_numpy():
    x, y = array(1, (2, 3, 4)), array(2, (4, 3, 5))
    cases = [1, ([1, 2], [1, 0]), ([2], [0]), 0]
    results = [nx.tensordot(x, y, axes=axes) for axes in cases]
    nx.realize(*results)
    for axes, result in zip(cases, results, strict=True):
        close(result, np.tensordot(x, y, axes=axes))
    v, w = array(3, (2, 1, 4)), array(4, (3, 4))
    close(nx.vecdot(v, w), (v * w).sum(-1))
    close(nx.vecdot(x, x, axis=1), (x * x).sum(1))
    close(nx.outer(w[0], w[1]), np.outer(w[0], w[1]))
    close(nx.dot(w[0], w[1]), np.dot(w[0], w[1]))
    for call, message in [
        (lambda: nx.tensordot(x, y, axes=2), r"nx\.tensordot: axes \(1, 2\) and \(0, 1\) of float32\[2, 3, 4\]"),
        (lambda: nx.vecdot(x, y), r"nx\.vecdot: axis -1 of float32\[2, 3, 4\] and float32\[4, 3, 5\]"),
        (lambda: nx.outer(x, y), r"nx\.outer: got float32\[2, 3, 4\]"),
        (lambda: nx.asarray(x) @ nx.zeros((3, 3)), r"nx\.matmul: got float32\[2, 3, 4\] and float32\[3, 3\]"),
        (lambda: nx.zeros((2, 3, 4)) @ nx.zeros((3, 4, 2)), r"nx\.matmul: cannot broadcast"),
        (lambda: nx.asarray(x) @ nx.asarray(1.0), r"nx\.matmul: got float32\[2, 3, 4\] and float32\[\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_products_promote_and_refuse_bools():
    assert (nx.ones((2, 2), dtype="int32") @ nx.ones((2, 2), dtype="float16")).dtype is nx.float16
    with pytest.raises(TypeError, match=r"nx\.matmul: got bool\[2, 2\]"):
        nx.ones((2, 2), dtype=nx.bool) @ nx.ones((2, 2), dtype=nx.bool)
