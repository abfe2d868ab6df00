"""Checkpoints give back what was saved, load anywhere, are replaced whole, and name what is wrong with a file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from kaun.compiler.ir import dtypes
from reference_values import recorded

from kaun import attention, checkpoint, layer, nx, optim, ptree, train


def tree():
    return {"layers": [{"weight": nx.asarray(np.arange(6, dtype=np.float32).reshape(2, 3))}, ()], "step": nx.asarray(7)}


def values(loaded):
    return {path: leaf.numpy().tolist() for path, leaf in ptree.flatten_with_paths(loaded)}


def test_swapped_arguments_of_save_state_are_told(tmp_path):
    trainer = train.make(model=layer.linear(in_features=2, out_features=1), optimizer=optim.sgd(lr=0.1))
    with nx.rng.run(seed=0):
        st = train.init(trainer)
    for arguments in ((st, tmp_path / "f"), (st, "f"), (tmp_path / "f", st.vars)):
        with pytest.raises(TypeError, match=r"^checkpoint\.save_state: got .*, expected a path and a training state"):
            checkpoint.save_state(*arguments)
    assert not (tmp_path / "f").exists()


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


# --- training states -------------------------------------------------------------------------------------------------

# Run in processes of their own: train from a state (a fresh one, or one in a file) and save what comes of it.
RUN = """
import sys
import numpy as np
import kaun as kn
from kaun import nx
start, end, first, last = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
random = np.random.default_rng(0)
x, y = random.normal(size=(100, 8, 5)).astype(np.float32), random.integers(0, 3, (100, 8))
model = kn.layer.sequential([
    kn.layer.linear(in_features=5, out_features=7), kn.layer.batch_norm(num_features=7), kn.layer.relu(),
    kn.layer.dropout(rate=0.3), kn.layer.linear(in_features=7, out_features=3),
])
schedule = kn.optim.schedule.cosine_decay(init_value=0.05, decay_steps=80)
optimizer = kn.optim.chain([kn.optim.clip_by_global_norm(1.0), kn.optim.adamw(lr=schedule)])
trainer = kn.train.make(model=model, optimizer=optimizer)
with nx.rng.run(seed=3 if start == "fresh" else 4):
    st = kn.train.init(trainer)
if start != "fresh":
    st = kn.checkpoint.load_state(start, like=st)
st = kn.train.fit(trainer, st, list(zip(x, y))[first:last], loss=kn.loss.cross_entropy_sparse)
kn.checkpoint.save_state(end, st)
"""


def run(code, *arguments, **options):
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True, timeout=300, **options)


def test_100_steps_are_50_saved_loaded_in_a_new_process_and_50_more_bit_for_bit(tmp_path):
    run(RUN, "fresh", tmp_path / "whole", 0, 100)
    run(RUN, "fresh", tmp_path / "half", 0, 50)
    run(RUN, tmp_path / "half", tmp_path / "resumed", 50, 100)
    whole, resumed = (safetensors.numpy.load_file(tmp_path / name) for name in ("whole", "resumed"))
    assert whole["step"] == 100 and {"params.0.weight", "state.1.running_mean", "rng"} <= set(whole)
    assert whole.keys() == resumed.keys()
    for key, value in whole.items():
        assert value.tobytes() == resumed[key].tobytes(), key


# Saves one state, then another without end, until it is killed.
KILLED = """
import sys
import numpy as np
from kaun import checkpoint
values = 0
while True:
    checkpoint.save(sys.argv[1], {"w": np.full(1_000_000, values, np.float32)})
    values += 1
    print("saved", flush=True)
"""


def test_a_killed_save_leaves_a_whole_file(tmp_path):
    path = tmp_path / "a"
    for saves in (2, 5):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE)
        for _ in range(saves):
            assert process.stdout.readline() == b"saved\n"
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
        process.stdout.close()
        loaded = checkpoint.load(path, like={"w": np.zeros(1_000_000, np.float32)})["w"].numpy()
        assert (loaded == loaded[0]).all() and loaded[0] >= saves - 1


def state_of(*layers, optimizer=None):
    trainer = train.make(model=layer.sequential(layers), optimizer=optimizer or optim.adam(lr=0.1))
    with nx.rng.run(seed=0):
        return train.init(trainer)


def test_a_state_that_does_not_fit_names_what_is_wrong(tmp_path):
    st = state_of(layer.linear(in_features=3, out_features=2))
    checkpoint.save_state(tmp_path / "a", st)
    with pytest.raises(ValueError, match=r"checkpoint.load_state: `params.0.weight` in .* \[3, 2\], expected \[4, 2\]"):
        checkpoint.load_state(tmp_path / "a", like=state_of(layer.linear(in_features=4, out_features=2)))
    with pytest.raises(ValueError, match=r"checkpoint.load_state: .* has no `optimizer.0.trace.0.weight` and 1 more"):
        momentum = optim.sgd(lr=0.1, momentum=0.9)
        checkpoint.load_state(
            tmp_path / "a", like=state_of(layer.linear(in_features=3, out_features=2), optimizer=momentum)
        )
    checkpoint.save(tmp_path / "params", st.vars.params)
    with pytest.raises(ValueError, match=r"checkpoint.load_state: .* holds no training state"):
        checkpoint.load_state(tmp_path / "params", like=st)
    with pytest.raises(FileNotFoundError):
        checkpoint.load_state(tmp_path / "nowhere", like=st)


# --- PyTorch's state dicts -------------------------------------------------------------------------------------------

PREFIX = "state_dict/entry/"


def recorded_entries():
    return {key[len(PREFIX) :]: value for key, value in recorded().items() if key.startswith(PREFIX)}


def recorded_model():
    return layer.sequential([
        layer.conv2d(in_channels=2, out_channels=4, groups=2), layer.batch_norm(num_features=4), layer.relu(),
        layer.flatten(), layer.linear(in_features=64, out_features=6), layer.layer_norm(dim=6), layer.relu(),
    ])  # fmt: skip


def fresh(model, dtype=nx.float32):
    with nx.rng.run(seed=0):
        return layer.init(model, dtype=dtype)


def test_a_module_of_pytorch_computes_the_same_here():
    model = recorded_model()
    vars = checkpoint.from_torch(recorded_entries(), like=fresh(model))
    y, _ = layer.apply(model, vars, recorded()["state_dict/x"], training=False)
    np.testing.assert_allclose(y.numpy(), recorded()["state_dict/y"], rtol=1e-4, atol=1e-5)


def test_state_dicts_come_back_as_they_were():
    entries = recorded_entries()
    vars = checkpoint.from_torch(entries, like=fresh(recorded_model()))
    back = checkpoint.to_torch(vars, like=entries)
    assert list(back) == list(entries)
    for key, value in entries.items():
        np.testing.assert_array_equal(back[key], value)
        assert back[key].dtype == value.dtype
    plain = checkpoint.to_torch(vars)
    assert set(plain) == {key for key in entries if not key.endswith("num_batches_tracked")}
    np.testing.assert_array_equal(plain["4.weight"], entries["4.weight"])


def test_modules_are_matched_in_order_where_their_names_differ_and_take_the_dtype_of_like():
    names = {"0": "body.conv", "1": "body.norm", "4": "head", "5": "last"}
    entries = {names[key[0]] + key[1:]: value for key, value in recorded_entries().items()}
    vars = checkpoint.from_torch(entries, like=fresh(recorded_model(), dtype=nx.float64))
    assert vars.params[4]["weight"].dtype is nx.float64 and vars.dtype is nx.float64
    np.testing.assert_array_equal(vars.params[4]["weight"].numpy(), entries["head.weight"].T)
    np.testing.assert_array_equal(vars.state[1]["running_var"].numpy(), entries["body.norm.running_var"])
    back = checkpoint.to_torch(vars, like=entries)
    assert list(back) == list(entries) and back["head.weight"].dtype == np.float32


def test_without_like_the_names_and_shapes_tell_the_layers():
    vars = checkpoint.from_torch({
        "wte.weight": np.ones((7, 4), np.float32), "blocks.0.q_proj.weight": np.arange(8.0).reshape(2, 4),
        "blocks.0.norm.weight": np.ones(4), "blocks.0.fc.weight": np.zeros((3, 4)), "blocks.0.fc.bias": np.zeros(3),
        "blocks.2.norm.weight": np.ones(3), "blocks.2.norm.bias": np.ones(3), "scale": np.ones(1),
    })  # fmt: skip
    shapes = {path: leaf.shape for path, leaf in ptree.flatten_with_paths(vars.params)}
    assert shapes == {
        "wte.embedding": (7, 4), "blocks.0.q_proj": (4, 2), "blocks.0.norm.scale": (4,), "blocks.0.fc.weight": (4, 3),
        "blocks.0.fc.bias": (3,), "blocks.2.norm.gamma": (3,), "blocks.2.norm.beta": (3,), "scale": (1,),
    }  # fmt: skip
    assert vars.dtype is nx.float32 and ptree.leaves(vars.state) == []
    sequential = checkpoint.from_torch(recorded_entries())
    assert sequential.state[1]["running_mean"].shape == (4,) and len(sequential.params) == len(sequential.state) == 6


def test_attention_and_parameters_of_your_own_keep_their_names():
    own = layer.Layer(lambda *, dtype: layer.Vars({"mix": nx.ones((2, 3), dtype=dtype)}, (), dtype), None)
    model = layer.sequential([attention.multi_head_attention(embed_dim=4, num_heads=2, num_kv_heads=1), own])
    vars = fresh(model)
    entries = checkpoint.to_torch(vars)
    assert {key: value.shape for key, value in entries.items()} == {
        "0.q_proj.weight": (4, 4), "0.k_proj.weight": (2, 4), "0.v_proj.weight": (2, 4), "0.out_proj.weight": (4, 4),
        "1.mix": (2, 3),
    }  # fmt: skip
    for loaded in (checkpoint.from_torch(entries, like=vars), checkpoint.from_torch(entries)):
        assert values(loaded.params) == values(vars.params)


def test_torch_tensors_are_taken_and_given():
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 3)).to(torch.bfloat16)
    model = layer.sequential([
        layer.embedding(vocab_size=5, embed_dim=4, scale=False), layer.linear(in_features=4, out_features=3)
    ])  # fmt: skip
    vars = checkpoint.from_torch(module.state_dict(), like=fresh(model))
    indices = np.asarray([[0, 4, 2]])
    expected = module.float()(torch.tensor(indices)).detach().numpy()
    np.testing.assert_allclose(layer.apply(model, vars, indices, training=False)[0].numpy(), expected, rtol=1e-5)
    module.to(torch.bfloat16).load_state_dict(checkpoint.to_torch(vars, like=module.state_dict()))
    np.testing.assert_allclose(module.float()(torch.tensor(indices)).detach().numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda e: e.pop("4.bias"), r"nothing for `4.bias` in module `4`; it has \['weight'\]"),
        (lambda e: e.update({"4.weight": e["4.weight"].T}), r"module `4` gives shape \[6, 64\] for `4.weight`"),
        (lambda e: e.update({"4.extra": np.ones(1)}), r"`4` has no place for \['extra'\] of module `4`"),
        (lambda e: e.update({"9.weight": np.ones(1)}), r"got 5 modules with entries .* for 4 layers"),
    ],
)
def test_state_dicts_that_do_not_fit_name_the_entry(change, message):
    entries = recorded_entries()
    change(entries)
    with pytest.raises(ValueError, match="checkpoint.from_torch: .*" + message):
        checkpoint.from_torch(entries, like=fresh(recorded_model()))


def test_what_is_no_state_dict_is_named():
    with pytest.raises(TypeError, match=r"got list for `a\.weight`"):
        checkpoint.from_torch({"a.weight": [1.0]})
    with pytest.raises(ValueError, match="module numbered 99999"):
        checkpoint.from_torch({"99999.weight": np.ones(3)})
    vars = checkpoint.from_torch(recorded_entries())
    with pytest.raises(ValueError, match=r"checkpoint.to_torch: `4.weight` has shape \[5, 64\], expected \[6, 64\]"):
        checkpoint.to_torch(vars, like={**recorded_entries(), "4.weight": np.ones((5, 64))})
    with pytest.raises(ValueError, match=r"checkpoint.to_torch: nothing for `4.mass` at `4`"):
        checkpoint.to_torch(vars, like={**recorded_entries(), "4.mass": np.ones(1)})
