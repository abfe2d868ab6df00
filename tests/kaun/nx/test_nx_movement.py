"""Functions that move elements, and those that create tensors, agree with NumPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nx_strategies import array, broadcastable, shapes

from kaun import nx

SEEDS = st.integers(0, 2**16)


def same(results, expected):
    nx.realize(*results)
    for result, one in zip(results, expected, strict=True):
        assert result.shape == np.shape(one)
        np.testing.assert_array_equal(result.numpy(), one)


@settings(max_examples=20, deadline=None)
@given(shapes(1, 3), SEEDS, st.data())
def test_movement_along_any_axis_agrees_with_numpy(shape, seed, data):
    x = array(seed, shape)
    a = nx.asarray(x)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    order = data.draw(st.permutations(range(len(shape))))
    shift = data.draw(st.integers(-4, 4))
    widths = data.draw(st.lists(st.tuples(*[st.integers(0, 2)] * 2), min_size=len(shape), max_size=len(shape)))
    counts = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=4))
    same(
        [
            nx.permute_dims(a, order), nx.flip(a, axis=axis), nx.flip(a), nx.roll(a, shift, axis=axis),
            nx.roll(a, shift), nx.pad(a, widths, constant_values=1.5), nx.tile(a, counts), nx.expand_dims(a, axis=axis),
            nx.concat([a, a], axis=axis), nx.stack([a, a], axis=axis), nx.repeat(a, 2, axis=axis), nx.repeat(a, 3),
            nx.moveaxis(a, axis, 0), nx.swapaxes(a, axis, 0), nx.reshape(a, (x.size,)), a.flatten(),
            nx.concat([a, a], axis=None),
        ],
        [
            np.transpose(x, order), np.flip(x, axis), np.flip(x), np.roll(x, shift, axis), np.roll(x, shift),
            np.pad(x, widths, constant_values=1.5), np.tile(x, counts), np.expand_dims(x, axis),
            np.concatenate([x, x], axis), np.stack([x, x], axis), np.repeat(x, 2, axis), np.repeat(x, 3),
            np.moveaxis(x, axis, 0), np.swapaxes(x, axis, 0), x.reshape(-1), x.reshape(-1),
            np.concatenate([x, x], None),
        ],
    )  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(broadcastable(), SEEDS)
def test_broadcasting_agrees_with_numpy(both, seed):
    x, y = array(seed, both[0]), array(seed, both[1])
    same(nx.broadcast_arrays(x, y), np.broadcast_arrays(x, y))
    full = np.broadcast_shapes(*both)
    same([nx.broadcast_to(x, full)], [np.broadcast_to(x, full)])


def test_pieces_put_together_are_the_whole():
    x = array(1, (4, 6))
    same(nx.split(x, 3, axis=1), np.split(x, 3, axis=1))
    same(nx.split(x, [1, 1, 4], axis=0), np.split(x, [1, 1, 4], axis=0))
    same(nx.unstack(x, axis=1), list(x.T))
    same([nx.concat(nx.split(x, 2)), nx.stack(nx.unstack(x))], [x, x])


def test_shapes_can_be_given_in_all_forms():
    x = nx.arange(12)
    assert x.reshape(3, 4).shape == x.reshape((3, -1)).shape == nx.reshape(x, [-1, 4]).shape == (3, 4)
    assert x.reshape(1, 3, 4, 1).squeeze().shape == (3, 4) and x.reshape(1, 12).squeeze(0).shape == (12,)
    assert nx.expand_dims(x, (0, -1)).shape == (1, 12, 1)
    assert x.reshape(2, 3, 2).transpose().shape == (2, 3, 2)[::-1] and x.reshape(2, 6).T.shape == (6, 2)
    assert nx.flatten(nx.zeros((2, 3, 4)), 1).shape == (2, 12) and x.reshape(3, 2, 2).mT.shape == (3, 2, 2)
    assert nx.pad(x, 1).shape == (14,) and nx.pad(x, (1, 2)).shape == (15,)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: nx.reshape(nx.zeros((2, 3)), (4, -1)), r"nx\.reshape: cannot reshape float32\[2, 3\] to \[4, -1\]"),
        (lambda: nx.reshape(nx.zeros((2, 3)), (4, 2)), r"nx\.reshape: cannot reshape float32\[2, 3\] to \[4, 2\]"),
        (lambda: nx.permute_dims(nx.zeros((2, 3)), (0, 0)), r"nx\.permute_dims: axes \(0, 0\)"),
        (lambda: nx.squeeze(nx.zeros((2, 3)), 0), r"nx\.squeeze: axis 0 of float32\[2, 3\]"),
        (lambda: nx.broadcast_to(nx.zeros((2, 3)), (2, 4)), r"nx\.broadcast_to: .*float32\[2, 3\] to \[2, 4\]"),
        (lambda: nx.concat([nx.zeros((2, 3)), nx.zeros((2, 4))]), r"nx\.concat: got float32\[2, 3\] and float32\[2, 4"),
        (lambda: nx.stack([nx.zeros(2), nx.zeros(3)]), r"nx\.stack: got float32\[2\] and float32\[3\]"),
        (lambda: nx.stack([]), r"nx\.stack: got no tensors"),
        (lambda: nx.split(nx.zeros(5), 2), r"nx\.split: axis 0 of float32\[5\] is not a multiple of 2"),
        (lambda: nx.pad(nx.zeros(5), -1), r"nx\.pad: pad widths -1"),
        (lambda: nx.pad(nx.zeros(5), 1, mode="edge"), r"nx\.pad: unknown mode 'edge'"),
        (lambda: nx.tile(nx.zeros(5), -1), r"nx\.tile: negative extent"),
    ],
)  # fmt: skip
def test_impossible_movements_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_ranges_agree_with_numpy():
    cases = [(5,), (2, 9), (2, 9, 3), (9, 2, -2), (5, 2), (0,)]
    same([nx.arange(*case) for case in cases], [np.arange(*case) for case in cases])
    assert nx.arange(3).dtype is nx.int64 and nx.arange(3.0).dtype is nx.float32
    close = [(nx.arange(0.5, 3.1, 0.25), np.arange(0.5, 3.1, 0.25)), (nx.linspace(1, 2, 7), np.linspace(1, 2, 7))]
    close += [(nx.linspace(3, -2, 4, endpoint=False), np.linspace(3, -2, 4, endpoint=False))]
    close += [(nx.linspace(0, 1, 1), np.linspace(0, 1, 1)), (nx.linspace(0, 1, 0), np.linspace(0, 1, 0))]
    for result, expected in close:
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-6)
    assert nx.linspace(0.1, 0.7, 11, dtype="float64")[-1].item() == 0.7
    with pytest.raises(ValueError, match=r"nx\.arange: got a step of 0"):
        nx.arange(1, 2, 0)


def test_filled_tensors_have_the_value_everywhere():
    same([nx.zeros(3), nx.ones((2, 2)), nx.full((2,), 7), nx.empty(2)], [[0] * 3, [[1, 1]] * 2, [7, 7], [0, 0]])
    x = nx.arange(3)
    same([nx.zeros_like(x), nx.ones_like(x), nx.full_like(x, 4)], [[0] * 3, [1] * 3, [4] * 3])
    assert nx.full((2,), 7).dtype is nx.int64 and nx.full((2,), 7.0).dtype is nx.float32
    assert nx.zeros_like(x, dtype="float16").dtype is nx.float16
    same([nx.full((2, 2), nx.asarray([1, 2]))], [[[1, 2], [1, 2]]])


@pytest.mark.parametrize("k", [-2, 0, 1, 5])
def test_triangles_and_diagonals_agree_with_numpy(k):
    x = array(3, (2, 4, 3))
    same(
        [nx.tril(x, k=k), nx.triu(x, k=k), nx.eye(4, 3, k=k), nx.diagonal(x, offset=k)],
        [np.tril(x, k), np.triu(x, k), np.eye(4, 3, k), np.diagonal(x, k, 1, 2)],
    )
    np.testing.assert_allclose(nx.trace(x, offset=k).numpy(), np.trace(x, k, 1, 2), rtol=1e-6)


def test_grids_agree_with_numpy():
    x, y, z = np.arange(2), np.arange(3), np.arange(4)
    for indexing in ("xy", "ij"):
        same(nx.meshgrid(x, y, z, indexing=indexing), np.meshgrid(x, y, z, indexing=indexing))
