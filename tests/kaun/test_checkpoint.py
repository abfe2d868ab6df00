"""Checkpoints give back what was saved, load anywhere, are replaced whole, and name what is wrong with a file."""

from __future__ import annotations

import os

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from kaun.compiler.ir import dtypes

from kaun import checkpoint, nx, ptree


def tree():
    return {"layers": [{"weight": nx.asarray(np.arange(6, dtype=np.float32).reshape(2, 3))}, ()], "step": nx.asarray(7)}


def values(loaded):
    return {path: leaf.numpy().tolist() for path, leaf in ptree.flatten_with_paths(loaded)}


def test_a_tree_comes_back_as_it_was(tmp_path):
    path = tmp_path / "new" / "model.safetensors"
    checkpoint.save(path, tree())
    loaded = checkpoint.load(path, like=ptree.map(nx.zeros_like, tree()))
    assert values(loaded) == values(tree())
    assert ptree.structure(loaded) is ptree.structure(tree())
    assert loaded["step"].dtype is nx.int64


@pytest.mark.parametrize("dtype", dtypes.ALL, ids=str)
def test_every_dtype_comes_back_bit_for_bit(tmp_path, dtype):
    given = np.asarray([[0, 1, 0], [1, 1, 0]]).astype(dtype.numpy)
    checkpoint.save(tmp_path / "a", {"x": given, "empty": np.zeros((0, 3), dtype.numpy), "scalar": given[0, 1]})
    like = {"x": given, "empty": np.zeros((0, 3), dtype.numpy), "scalar": np.zeros((), dtype.numpy)}
    loaded = checkpoint.load(tmp_path / "a", like=like)
    assert loaded["x"].dtype is dtype and loaded["empty"].shape == (0, 3) and loaded["scalar"].shape == ()
    assert loaded["x"].numpy().tobytes() == given.tobytes()


def test_files_load_in_plain_safetensors_and_the_other_way_round(tmp_path):
    checkpoint.save(tmp_path / "ours", tree(), metadata={"made": "here"})
    theirs = safetensors.numpy.load_file(tmp_path / "ours")
    assert set(theirs) == {"layers.0.weight", "step"}
    np.testing.assert_array_equal(theirs["layers.0.weight"], np.arange(6).reshape(2, 3))
    safetensors.numpy.save_file(theirs, tmp_path / "theirs")
    assert values(checkpoint.load(tmp_path / "theirs", like=tree())) == values(tree())


def test_extra_keys_are_ignored_and_tensors_take_the_dtype_of_like(tmp_path):
    checkpoint.save(tmp_path / "a", {"w": np.asarray([1.0, 2.5]), "other": np.zeros(3)})
    loaded = checkpoint.load(tmp_path / "a", like={"w": nx.zeros((2,), dtype=nx.bfloat16)})
    assert loaded["w"].dtype is nx.bfloat16 and loaded["w"].numpy().astype(np.float32).tolist() == [1.0, 2.5]
    assert isinstance(loaded["w"].numpy().dtype, type(np.dtype(ml_dtypes.bfloat16)))


def test_a_missing_key_and_a_wrong_shape_name_themselves(tmp_path):
    checkpoint.save(tmp_path / "a", {"0": {"weight": np.zeros((2, 3))}})
    with pytest.raises(ValueError, match=r"checkpoint.load: .* has no `1.bias` and 1 more; it has `0.weight`"):
        like = {"0": {"weight": np.zeros((2, 3))}, "1": {"bias": np.zeros(1), "weight": np.zeros(1)}}
        checkpoint.load(tmp_path / "a", like=like)
    with pytest.raises(ValueError, match=r"`0.weight` in .* has shape \[2, 3\], expected \[3, 2\]"):
        checkpoint.load(tmp_path / "a", like={"0": {"weight": np.zeros((3, 2))}})


def test_a_file_cut_short_anywhere_is_a_value_error_and_a_missing_one_an_os_error(tmp_path):
    path = tmp_path / "a"
    checkpoint.save(path, tree())
    whole = path.read_bytes()
    for length in (0, 4, 8, 40, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="is not a whole safetensors file"):
            checkpoint.load(path, like=tree())
    path.write_bytes(b"PK\x03\x04" * 100)
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        checkpoint.load(path, like=tree())
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / "nowhere", like=tree())
    with pytest.raises(IsADirectoryError):
        checkpoint.load(tmp_path, like=tree())


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, broken):
    path = tmp_path / "a"
    checkpoint.save(path, {"w": np.asarray([1.0])})

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(path, {"w": np.asarray([2.0])})
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["a"]
    assert values(checkpoint.load(path, like={"w": np.zeros(1)})) == {"w": [1.0]}


def test_what_cannot_be_saved_is_named(tmp_path):
    with pytest.raises(ValueError, match="single tensor, which has no path"):
        checkpoint.save(tmp_path / "a", nx.zeros((2,)))
    with pytest.raises(TypeError, match="at `w`"):
        checkpoint.save(tmp_path / "a", {"w": "text"})
    assert os.listdir(tmp_path) == []
