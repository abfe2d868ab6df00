"""What a tensor is: conversion in and out, laziness, immutability, and its errors."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest
from kaun.compiler.ir import dtypes, ops, source

from kaun import execution, nx

ALL = [d for d in dtypes.ALL]


@pytest.mark.parametrize("dtype", ALL, ids=str)
def test_numpy_arrays_survive_the_round_trip(dtype):
    array = np.array([[0, 1, 2], [3, 4, 5]]).astype(dtype.numpy)
    tensor = nx.asarray(array)
    assert (tensor.dtype, tensor.shape, tensor.ndim, tensor.size) == (dtype, (2, 3), 2, 6)
    assert tensor.numpy().dtype == array.dtype
    np.testing.assert_array_equal(np.asarray(tensor), array)
    assert nx.asarray(tensor.tolist(), dtype=dtype).numpy().tolist() == array.tolist()


@pytest.mark.parametrize(
    "value, dtype, shape",
    [
        (1.5, nx.float32, ()), (3, nx.int64, ()), (True, nx.bool, ()), ([1.0, 2], nx.float32, (2,)),
        ([[1, 2], [3, 4]], nx.int64, (2, 2)), ([], nx.float32, (0,)), ((True, False), nx.bool, (2,)),
        ([np.float64(1.0)], nx.float64, (1,)), (np.float32(2.0), nx.float32, ()), (np.int8(3), nx.int8, ()),
        (np.arange(3, dtype=">f4"), nx.float32, (3,)), (2**63, nx.uint64, ()),
    ],
)  # fmt: skip
def test_python_and_numpy_values_take_the_documented_dtype(value, dtype, shape):
    tensor = nx.asarray(value)
    assert (tensor.dtype, tensor.shape) == (dtype, shape)
    np.testing.assert_array_equal(tensor.numpy(), np.asarray(value))


def test_writing_to_the_source_array_does_not_change_the_tensor():
    array = np.zeros(3, np.float32)
    view = array.view()
    view.flags.writeable = False
    tensor, from_view, shared = nx.asarray(array), nx.asarray(view), nx.asarray(array, copy=False)
    array[:] = 7
    assert tensor.tolist() == [0, 0, 0]
    assert from_view.tolist() == [0, 0, 0]
    assert shared.tolist() == [7, 7, 7]


def test_arrays_nobody_can_write_to_are_not_copied():
    array = np.arange(4, dtype=np.float32)
    array.flags.writeable = False
    assert np.shares_memory(nx.asarray(array).numpy(), array)
    with pytest.raises(ValueError, match=r"nx\.asarray: .*without a copy"):
        nx.asarray(array, dtype=nx.float64, copy=False)
    with pytest.raises(ValueError, match=r"nx\.asarray: .*not contiguous"):
        nx.asarray(array[::2], copy=False)


def test_results_are_read_only_and_tensors_immutable():
    tensor = nx.asarray([1.0, 2.0])
    with pytest.raises(ValueError, match="read-only"):
        tensor.numpy()[0] = 3
    with pytest.raises(TypeError, match="immutable"):
        tensor[0] = 3
    with pytest.raises(TypeError):
        hash(tensor)


def test_dlpack_shares_memory_both_ways():
    array = np.arange(3, dtype=np.float32)
    assert np.shares_memory(nx.from_dlpack(array).numpy(), array)
    tensor = nx.asarray([1.0, 2.0])
    assert np.shares_memory(np.from_dlpack(tensor), tensor.numpy())


def test_looking_at_a_tensor_drops_its_history():
    tensor = nx.asarray([1.0, 2.0]) * 3.0 + 1.0
    other = tensor * 2.0
    assert tensor._node.op is not ops.input_
    nx.realize(tensor)
    assert tensor._node.op is ops.input_
    assert other.tolist() == [8, 14]
    assert (tensor + tensor).tolist() == [8, 14]


def test_scalars_convert_to_python_numbers():
    assert float(nx.asarray(2.5)) == 2.5
    assert int(nx.asarray(3)) == 3
    assert [10, 20, 30][nx.asarray(1)] == 20
    assert bool(nx.asarray([[True]]))
    assert type(nx.asarray(True).item()) is bool
    assert type(nx.asarray(1.0, dtype="bfloat16").item()) is float
    assert f"{nx.asarray(0.5):.3f}" == "0.500"
    with pytest.raises(ValueError, match=r"nx\.Tensor\.__bool__: float32\[2\]"):
        bool(nx.zeros(2))
    with pytest.raises(ValueError, match=r"nx\.Tensor\.item: got float32\[2\]"):
        nx.zeros(2).item()
    with pytest.raises(TypeError, match=r"__index__: got float32"):
        [1][nx.asarray(0.0)]


def test_length_and_iteration_follow_the_first_axis():
    tensor = nx.arange(6).reshape(3, 2)
    assert len(tensor) == 3
    assert [row.tolist() for row in tensor] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(TypeError):
        len(nx.asarray(1))
    with pytest.raises(TypeError):
        iter(nx.asarray(1))


def test_repr_shows_values_or_that_the_tensor_is_traced():
    assert repr(nx.asarray([1.0, 2.0])) == "Tensor([1., 2.], dtype=float32, shape=(2,))"
    traced = nx.Tensor(execution.placeholder((2, 3), nx.float32))
    assert repr(traced) == "<traced float32[2, 3]>"
    assert repr(traced + 1.0) == "<traced float32[2, 3]>"
    assert nx.is_traced(traced * 2.0) and not nx.is_traced(nx.zeros(3) * 2.0)
    with pytest.raises(ValueError, match="traced"):
        (traced + 1.0).numpy()


def test_copies_and_pickles_keep_dtype_and_values():
    tensor = nx.asarray(np.array([[1.5, -2.0]], ml_dtypes.bfloat16)) * 2.0
    restored = pickle.loads(pickle.dumps(tensor))
    assert restored.dtype is nx.bfloat16
    np.testing.assert_array_equal(restored.numpy(), tensor.numpy())
    assert copy.deepcopy(tensor) is tensor


def test_numpy_operands_leave_the_operation_to_the_tensor():
    array = np.array([1, 2, 3], np.int32)
    tensor = nx.asarray([1.0, 2.0, 3.0])
    for result in (array + tensor, tensor + array, np.int32(1) + tensor):
        assert isinstance(result, nx.Tensor)
        assert result.dtype is nx.float32
    assert (array @ tensor).item() == 14
    assert (tensor == None) is False  # noqa: E711
    assert (tensor != "text") is True


def test_sequences_of_tensors_are_stacked():
    a, b = nx.asarray([1, 2]), nx.asarray([3.0, 4.0])
    tensor = nx.asarray([a, b])
    assert tensor.dtype is nx.float32
    assert tensor.tolist() == [[1, 2], [3, 4]]
    with pytest.raises(ValueError, match=r"nx\.asarray: .*int64\[2\] and float32\[3\]"):
        nx.asarray([a, nx.zeros(3)])


@pytest.mark.parametrize(
    "make, kind, message",
    [
        (lambda: nx.asarray("text"), TypeError, r"nx\.asarray: got str"),
        (lambda: nx.asarray([1, "a"]), TypeError, r"nx\.asarray: unknown dtype"),
        (lambda: nx.asarray([[1, 2], [3]]), ValueError, r"nx\.asarray: the nested sequence"),
        (lambda: nx.asarray(1j), TypeError, r"nx\.asarray: got complex"),
        (lambda: nx.asarray(np.zeros(2, np.complex64)), TypeError, r"nx\.asarray: unknown dtype"),
        (lambda: nx.asarray([300], dtype=nx.int8), ValueError, r"nx\.asarray: the number 300 .* int8"),
        (lambda: nx.zeros(3, dtype="float8"), TypeError, r"nx\.zeros: unknown dtype 'float8'"),
        (lambda: nx.zeros((2, -1)), ValueError, r"nx\.zeros: negative extent"),
        (lambda: nx.Tensor([1.0]), TypeError, r"nx\.Tensor: got list"),
        (lambda: nx.zeros((2, 3)) + nx.zeros((4,)), ValueError, r"nx\.add: .*float32\[2, 3\] and float32\[4\]"),
        (lambda: nx.zeros(3) + object(), TypeError, r"nx\.add: got object"),
        (lambda: nx.zeros(3) @ nx.zeros(4), ValueError, r"nx\.matmul: got float32\[3\] and float32\[4\]"),
        (lambda: nx.zeros((2, 3)).T.sum(axis=2), ValueError, r"nx\.sum: axis 2 is out of range"),
        (lambda: nx.zeros(3).T, ValueError, r"nx\.Tensor\.T: got float32\[3\]"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_at_the_call(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


def test_errors_name_the_layer_being_applied():
    with source.layer("0"), source.layer("left"), pytest.raises(ValueError, match=r"\(in layer 0\.left\)$"):
        nx.zeros(2) + nx.zeros(3)


def test_nodes_are_attributed_to_the_line_outside_of_the_library():
    tensor = nx.softmax(nx.asarray([1.0, 2.0]) * 2.0)
    assert tensor._node.source.file == __file__


@pytest.mark.parametrize(
    "f",
    [
        np.sin, np.arctan, np.absolute, np.isnan, lambda x: np.maximum(x, 0.0), lambda x: np.power(2.0, x),
        lambda x: np.arange(3, dtype=np.float32) - x, lambda x: np.ones((2, 3), np.float32) @ x,
        lambda x: np.arange(3, dtype=np.float32) < x, lambda x: np.float32(2.0) / x,
    ],
)  # fmt: skip
def test_numpys_functions_and_operators_on_tensors_are_those_of_nx(f):
    array = np.array([-1.5, 0.5, 2.0], dtype=np.float32)
    result = f(nx.asarray(array))
    assert type(result) is nx.Tensor and result.dtype.numpy == f(array).dtype
    np.testing.assert_allclose(result.numpy(), f(array), rtol=1e-6)


def test_adding_a_tensor_to_an_array_in_place_leaves_the_array_alone():
    array = before = np.zeros(2, dtype=np.float32)
    array += nx.ones((2,))
    assert type(array) is nx.Tensor and array.tolist() == [1.0, 1.0] and before.tolist() == [0.0, 0.0]
    with pytest.raises(TypeError, match=r"^nx\.Tensor: numpy\.add does not take tensors so"):
        np.add(nx.ones((2,)), 1.0, out=before)
