"""The interpreter, which judges compiled code, against definitions written out as loops and published vectors."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import numpy as np
import pytest
from kaun.compiler.ir import Graph, dtypes, full, ops
from kaun.compiler.ir.interpreter import evaluate
from kaun.compiler.ir.meaning import threefry2x32


def run(op: Any, *arrays: Any, **attributes: Any) -> Any:
    """The op's value on arrays, through the interpreter."""
    inputs = tuple(
        ops.input_(identity=("meaning", i), dtype=dtypes.of(a.dtype), shape=a.shape) for i, a in enumerate(arrays)
    )
    return evaluate(Graph(inputs, (op(*inputs, **attributes),)), arrays)[0]


def words(*numbers: int) -> tuple[Any, ...]:
    return tuple(np.array([number], np.uint32) for number in numbers)


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_gives_the_known_answers_of_random123(
    key: tuple[int, int], counter: tuple[int, int], expected: tuple[int, int]
) -> None:
    """Salmon et al., Random123, file tests/kat_vectors, threefry2x32 with 20 rounds."""
    assert tuple(int(word[0]) for word in threefry2x32(words(*key), words(*counter))) == expected


def test_random_bits_are_the_words_of_successive_blocks() -> None:
    key, counter = np.array([0, 0], np.uint32), np.array(0, np.uint32)
    stream = run(ops.random_bits, key, counter, shape=(7,))
    assert [hex(word) for word in stream[:2]] == ["0x6b200159", "0x99ba4efe"]
    for block in range(3):
        pair = threefry2x32(words(0, 0), words(block, 0))
        assert [int(word[0]) for word in pair] == stream[2 * block : 2 * block + 2].tolist()
    np.testing.assert_array_equal(run(ops.random_bits, key, counter, shape=(2, 3)).reshape(-1), stream[:6])
    assert not np.any(run(ops.random_bits, key, np.array(1, np.uint32), shape=(7,)) == stream)


def looped_convolution(x: Any, w: Any, attributes: dict[str, Any]) -> Any:
    """Every output as its sum over channels and kernel positions, skipping what falls outside or between elements."""
    groups, strides = attributes["groups"], attributes["strides"]
    padding, lhs_dilation, rhs_dilation = (attributes[k] for k in ("padding", "lhs_dilation", "rhs_dilation"))
    extents = []
    for n, k, s, (low, high), ld, rd in zip(
        x.shape[2:], w.shape[2:], strides, padding, lhs_dilation, rhs_dilation, strict=True
    ):
        room = low + (n - 1) * ld + 1 + high - (k - 1) * rd - 1
        extents.append(room // s + 1 if room >= 0 else 0)
    result = np.zeros((x.shape[0], w.shape[0], *extents))
    for index in np.ndindex(result.shape):
        n, o, place = index[0], index[1], index[2:]
        group = o // (w.shape[0] // groups)
        for c in range(w.shape[1]):
            for position in np.ndindex(w.shape[2:]):
                source = []
                for p, k, s, (low, _), ld, rd, extent in zip(
                    place, position, strides, padding, lhs_dilation, rhs_dilation, x.shape[2:], strict=True
                ):
                    at, between = divmod(p * s + k * rd - low, ld)
                    source.append(at if between == 0 and 0 <= at < extent else None)
                if None not in source:
                    result[index] += x[(n, group * w.shape[1] + c, *source)] * w[(o, c, *position)]
    return result


def test_convolutions_are_sums_of_products() -> None:
    chooser, values = random.Random(5), np.random.default_rng(5)
    for _ in range(40):
        spatial, groups = chooser.choice((1, 2)), chooser.choice((1, 1, 2, 3))
        few = lambda low, high, n=spatial: tuple(chooser.randint(low, high) for _ in range(n))  # noqa: E731
        x = values.normal(size=(chooser.randint(1, 2), groups * chooser.choice((1, 2)), *few(1, 5)))
        w = values.normal(size=(groups * chooser.choice((1, 2)), x.shape[1] // groups, *few(1, 3)))
        attributes = {
            "strides": few(1, 3), "padding": tuple(zip(few(0, 3), few(0, 3), strict=True)),
            "lhs_dilation": few(1, 3), "rhs_dilation": few(1, 2), "groups": groups,
        }  # fmt: skip
        expected = looped_convolution(x, w, attributes)
        np.testing.assert_allclose(run(ops.conv_general, x, w, **attributes), expected, atol=1e-12)


@pytest.mark.parametrize("shape", [(0,), (1,), (5,), (2, 3), (3, 0)])
def test_padding_puts_element_i_at_low_plus_i_times_interior_plus_one(shape: tuple[int, ...]) -> None:
    x = np.arange(1.0, 1 + math.prod(shape)).reshape(shape)
    for low, high, interior in itertools.product((0, 2), (0, 1), (0, 3)):
        extents = [low + high + n + max(0, n - 1) * interior for n in shape]
        expected = np.full(extents, -7.0)
        for index in np.ndindex(shape):
            expected[tuple(low + i * (interior + 1) for i in index)] = x[index]
        each = {name: (n,) * len(shape) for name, n in (("low", low), ("high", high), ("interior", interior))}
        np.testing.assert_array_equal(run(ops.pad, x, **each, value=-7.0), expected)


@pytest.mark.parametrize(
    ("size", "stride", "dilation"), [(1, 1, 1), (2, 1, 1), (3, 2, 1), (2, 3, 2), (2, 2, 4), (7, 1, 1)]
)
def test_windows_hold_what_is_stride_times_place_plus_dilation_times_position_along(
    size: int, stride: int, dilation: int
) -> None:
    x = np.arange(6 * 2).reshape(6, 2)
    result = run(ops.window, x, axes=(0,), sizes=(size,), strides=(stride,), dilations=(dilation,))
    places = [start for start in range(0, 6, stride) if start + (size - 1) * dilation < 6]
    assert result.shape == (len(places), 2, size)
    for p, start in enumerate(places):
        for k in range(size):
            np.testing.assert_array_equal(result[p, :, k], x[start + k * dilation])


def test_window_positions_become_the_last_axes_in_the_order_of_axes() -> None:
    x = np.arange(60).reshape(3, 4, 5)
    result = run(ops.window, x, axes=(2, 0), sizes=(2, 3), strides=(3, 1), dilations=(1, 1))
    assert result.shape == (1, 4, 2, 2, 3)
    assert result[0, 1, 1, 0, 2] == x[2, 1, 3]


def test_contractions_have_batch_then_left_then_right_axes() -> None:
    values = np.random.default_rng(0)
    a, b = values.normal(size=(5, 2, 4, 3)), values.normal(size=(3, 6, 2, 5))
    result = run(
        ops.dot_general, a, b, lhs_batch=(1, 3), rhs_batch=(2, 0), lhs_contract=(0,), rhs_contract=(3,)
    )
    np.testing.assert_allclose(result, np.einsum("kbmc,cnbk->bcmn", a, b), atol=1e-12)


def test_indices_out_of_range_are_clamped_when_read_and_dropped_when_written() -> None:
    table = np.arange(6.0).reshape(3, 2)
    indices = np.array([-5, 2, 9, 0], np.int32)
    np.testing.assert_array_equal(run(ops.gather, table, indices), table[[0, 2, 2, 0]])
    rows = np.ones((4, 2))
    expected = np.zeros((3, 2))
    expected[[0, 2]] = 1
    np.testing.assert_array_equal(run(ops.scatter_add, indices, rows, size=3), expected)
    repeated = run(ops.scatter_add, np.array([1, 1, 1, 1], np.uint8), rows, size=2)
    np.testing.assert_array_equal(repeated, [[0, 0], [4, 4]])


def test_integers_divide_towards_zero_and_never_fail() -> None:
    a = np.array([7, -7, 7, -7, 5, -128, -128], np.int8)
    b = np.array([2, 2, -2, -2, 0, -1, 0], np.int8)
    assert run(ops.div, a, b).tolist() == [3, -3, -3, 3, 0, -128, 0]
    assert run(ops.rem, a, b).tolist() == [1, -1, 1, -1, 0, 0, 0]


def test_shifts_beyond_the_width_shift_everything_out() -> None:
    a, b = np.array([1, -1, 1, -128, 3], np.int8), np.array([7, 1, 8, 100, -1], np.int8)
    assert run(ops.shift_left, a, b).tolist() == [-128, -2, 0, 0, 0]
    assert run(ops.shift_right, a, b).tolist() == [0, -1, 0, -1, 0]


def test_floats_become_integers_by_truncation_and_saturation() -> None:
    x = np.array([1.9, -1.9, 300, -300, np.nan, np.inf, -np.inf, 127.5, -128.9], np.float32)
    assert run(ops.cast, x, dtype=dtypes.int8).tolist() == [1, -1, 127, -128, 0, 127, -128, 127, -128]
    assert run(ops.cast, x, dtype=dtypes.uint8).tolist() == [1, 0, 255, 0, 0, 255, 0, 127, 0]
    large = np.array([2.0**63, -(2.0**63), 2.0**62, 2.0**64], np.float64)
    assert run(ops.cast, large, dtype=dtypes.int64).tolist() == [2**63 - 1, -(2**63), 2**62, 2**63 - 1]
    assert run(ops.cast, large, dtype=dtypes.uint64).tolist() == [2**63, 0, 2**62, 2**64 - 1]


def test_extrema_propagate_nan_and_the_first_counts() -> None:
    x = np.array([[1, np.nan, 3], [2, 2, 1]])
    np.testing.assert_array_equal(run(ops.reduce_max, x, axes=(1,)), [np.nan, 2])
    assert run(ops.argmax, x, axis=1).tolist() == [1, 0]
    assert run(ops.argmin, x, axis=1).tolist() == [1, 2]
    np.testing.assert_array_equal(run(ops.maximum, x[0], np.array([np.nan, 0, 9])), [np.nan, np.nan, 9])


def test_a_bitcast_keeps_the_bits_and_the_shape() -> None:
    assert run(ops.bitcast, np.array(1.0, np.float32), dtype=dtypes.uint32) == 0x3F800000
    assert run(ops.bitcast, np.array([[0x3F80]], np.uint16), dtype=dtypes.bfloat16).tolist() == [[1.0]]


def test_the_interpreter_refuses_arguments_that_do_not_fit() -> None:
    x = ops.input_(identity=("meaning", "x"), dtype=dtypes.float32, shape=(2,))
    graph = Graph((x,), (x + full(1, dtypes.float32, (2,)),))
    with pytest.raises(ValueError, match=r"got float64\[2\] for an input of type float32\[2\]"):
        evaluate(graph, [np.zeros(2)])
    with pytest.raises(ValueError, match="0 arguments for 1 inputs"):
        evaluate(graph, [])
