"""Mistakes surface where the user called, before anything is compiled, and say what was given and where; what the
machine does to us (no cache folder, a full disk, Ctrl-C) loses nothing."""

import os
import re
import sys

import numpy as np
import pytest
from promises import cnn, examples, fresh_process, mlp, nothing_compiles, started, trainer_of

import kaun as kn
from kaun import layer, loss, nx, ptree, train

X, Y = examples(8, (20,), 3)
IMAGES, CLASSES = examples(8, (1, 8, 8), 10)


def cross_entropy(y):
    labels = nx.asarray(y)
    return lambda logits: loss.cross_entropy_sparse(logits, labels)


def nested():
    """A model whose layers have paths: "1.left" has the wrong number of inputs for what "0" gives."""
    wrong = layer.linear(in_features=5, out_features=3)
    first = layer.linear(in_features=20, out_features=16)
    return layer.sequential([first, layer.compose(wrong, layer.relu())])


# --- shapes, dtypes and structures -----------------------------------------------------------------------------------


def step(model, x, f):
    trainer = trainer_of(model)
    st = started(trainer)
    with nothing_compiles():
        train.step(trainer, st, x, loss=f)


def predict(model, x):
    trainer = trainer_of(model)
    st = started(trainer)
    with nothing_compiles():
        train.predict(trainer, st, x)


def with_other_parameters(change):
    trainer = trainer_of(mlp())
    st = started(trainer)
    with nothing_compiles():
        st = train.make_state(trainer, st.vars.with_params(change(st.vars.params)))
        train.step(trainer, st, X, loss=cross_entropy(Y))


@pytest.mark.parametrize(
    "mistake, error, words",
    [
        (lambda: step(mlp(), X[:, :7], cross_entropy(Y)), ValueError, ["layer.linear", "[8, 7]", "20", "layer 0"]),
        (lambda: step(nested(), X, cross_entropy(Y)), ValueError, ["layer.linear", "[8, 16]", "5", "layer 1.left"]),
        (lambda: step(mlp(), X, cross_entropy(Y[:3])), ValueError, ["cross_entropy_sparse", "[8, 3]", "[3]"]),
        (lambda: step(mlp(), X, cross_entropy(X)), TypeError, ["cross_entropy_sparse", "float32[8, 20]", "integers"]),
        (lambda: step(mlp(), X, lambda z: z), ValueError, ["train.step", "float32[8, 3]", "scalar"]),
        (lambda: step(mlp(), X, lambda z: loss.mse(z, X)), ValueError, ["loss.mse", "[8, 3]", "[8, 20]"]),
        (lambda: step(cnn(), IMAGES[:, 0], cross_entropy(CLASSES)), ValueError, ["conv2d", "[8, 8, 8]", "layer 0"]),
        (lambda: step(cnn(), np.zeros((8, 3, 8, 8), np.float32), cross_entropy(CLASSES)), ValueError,
         ["conv2d", "[8, 3, 8, 8]", "layer 0"]),
        (lambda: step(cnn(), np.zeros((8, 1, 12, 8), np.float32), cross_entropy(CLASSES)), ValueError,
         ["layer.linear", "[8, 96]", "64", "layer 12"]),
        (lambda: predict(mlp(), X[0, :5]), ValueError, ["layer.linear", "[5]", "20", "layer 0"]),
        (lambda: predict(mlp(), X.astype(np.int64)), TypeError, ["linear", "int64[8, 20]", "layer 0"]),
        (lambda: predict(mlp(), "text"), TypeError, ["str"]),
        (lambda: predict(mlp(), X.astype(complex)), TypeError, ["complex128", "expected one of"]),
        (lambda: with_other_parameters(lambda p: (p[0], p[1])), ValueError, ["2", "3"]),
        (lambda: with_other_parameters(
            lambda p: (ptree.Dict(weight=p[0]["weight"]), *p[1:])), ValueError, ["`0.bias`"]),
        (lambda: with_other_parameters(
            lambda p: (ptree.Dict(weight=nx.zeros((20, 9)), bias=p[0]["bias"]), *p[1:])), ValueError,
         ["`0.weight`", "[20, 9]", "[20, 16]"]),
    ],
)  # fmt: skip
def test_mistakes_in_models_and_data_name_the_place_and_compile_nothing(mistake, error, words):
    with pytest.raises(error) as caught:
        mistake()
    for word in words:
        assert word in str(caught.value)


def own(init=lambda *, dtype: layer.Vars((), (), dtype), apply=lambda p, s, x, **options: (x, s)):
    """A user's layer, second in a model."""
    return layer.sequential([layer.relu(), layer.Layer(init, apply)])


def applied(model):
    return layer.apply(model, layer.init(model, dtype=kn.float32), X, training=False)


def own_rule():
    """A user's transformation that forgets its state."""
    return kn.optim.Transformation(init=lambda params: (), update=lambda updates, state, params: updates)


def updated(tx, other):
    params = {"w": nx.ones((2,))}
    return kn.optim.step(tx, kn.optim.init(other, params), params, params)


@pytest.mark.parametrize(
    "mistake, error, words",
    [
        (lambda: nx.zeros((2, 3)) @ nx.zeros((2, 3)), ValueError, ["nx.matmul", "[2, 3]"]),
        (lambda: nx.zeros((2, 3)) + nx.zeros((4,)), ValueError, ["nx.add", "[2, 3]", "[4]"]),
        (lambda: nx.concat([nx.zeros((2, 3)), nx.zeros((3, 2))]), ValueError, ["nx.concat", "[2, 3]", "[3, 2]"]),
        (lambda: nx.reshape(nx.zeros((6,)), (4, -1)), ValueError, ["nx.reshape", "[6]", "4"]),
        (lambda: nx.sum(nx.zeros((3,)), axis=3), ValueError, ["nx.sum", "axis 3"]),
        (lambda: nx.einsum("ij,jk", nx.zeros((2, 3)), nx.zeros((2, 3))), ValueError, ["nx.einsum", "j"]),
        (lambda: nx.zeros((3,))[4], IndexError, ["4", "3"]),
        (lambda: nx.max(nx.zeros((0,))), ValueError, ["nx.max", "no elements"]),
        (lambda: nx.zeros((-1,)), ValueError, ["nx.zeros", "-1"]),
        (lambda: nx.ones((2, -3)), ValueError, ["nx.ones", "-3"]),
        (lambda: nx.zeros((2.5,)), TypeError, ["nx.zeros", "2.5"]),
        (lambda: nx.rng.normal((-3,), key=nx.rng.key(0)), ValueError, ["nx.rng.normal", "-3"]),
        (lambda: layer.linear(in_features=-1, out_features=2), ValueError, ["layer.linear", "in_features=-1"]),
        (lambda: layer.conv2d(in_channels=3, out_channels=0), ValueError, ["layer.conv2d", "out_channels=0"]),
        (lambda: layer.dropout(rate=1.0), ValueError, ["layer.dropout", "rate=1.0"]),
        (lambda: kn.data.prepare((X, Y[:3]), batch_size=2), ValueError, ["data.prepare", "3"]),
        (lambda: kn.data.prepare((X, Y), batch_size=0), ValueError, ["data.prepare", "batch_size=0"]),
        (lambda: nx.zeros((2,), dtype="float99"), TypeError, ["nx.zeros", "float99", "float32"]),
        (lambda: nx.astype(nx.zeros((2,)), "complex64"), TypeError, ["nx.astype", "complex64", "float32"]),
        (lambda: nx.asarray(np.array(["a"])), TypeError, ["nx.asarray", "U1"]),
        (lambda: nx.asarray(None), TypeError, ["nx.asarray", "NoneType"]),
        (lambda: nx.asarray([[1], [1, 2]]), ValueError, ["nx.asarray"]),
        (lambda: nx.asarray(300, dtype=kn.int8), ValueError, ["300", "int8"]),
        (lambda: layer.init(mlp(), dtype=kn.int32), TypeError, ["layer.init", "int32"]),
        (lambda: layer.init(mlp(), dtype="float7"), TypeError, ["float7"]),
        (lambda: mlp()(X), TypeError, ["layer.Layer", "kn.layer.apply", "kn.train.predict"]),
        (lambda: layer.init([layer.relu()], dtype=kn.float32), TypeError, ["layer.init", "list", "Layer"]),
        (lambda: layer.apply(mlp(), (), X, training=False), TypeError, ["layer.apply", "tuple", "Vars"]),
        (lambda: applied(own(init=lambda *, dtype: {})), TypeError, ["layer.init", "dict", "Vars"]),
        (lambda: applied(own(apply=lambda p, s, x, **options: x)), TypeError, ["a Tensor", "(y, state)", "layer 1"]),
        (lambda: kn.optim.clip_by_global_norm({"w": nx.ones((2,))}, 1.0), TypeError, ["clip_by_global_norm", "dict"]),
        (lambda: updated(kn.optim.adam(lr=0.1), kn.optim.sgd(lr=0.1)), ValueError, ["optim.chain", "1 trans", "2 tr"]),
        (lambda: updated(own_rule(), own_rule()), TypeError, ["optim", "Dict", "(updates, state)"]),
        (lambda: ptree.map2(max, nx.ones((2,)), (nx.ones((2,)),)), ValueError, ["ptree.map2", "the root"]),
        (lambda: np.cbrt(nx.ones((2,))), TypeError, ["numpy.cbrt", "nx", "numpy.asarray"]),
        (lambda: np.add.reduce(nx.ones((2,))), TypeError, ["numpy.add.reduce"]),
        (lambda: kn.grad(lambda x: x)(nx.ones((2,))), ValueError, ["kn.grad", "[2]", "scalar"]),
        (lambda: kn.grad(lambda x: x)(nx.asarray(1)), TypeError, ["kn.grad", "int64"]),
        (lambda: kn.jit(lambda x: float(x))(nx.ones(())), ValueError, ["traced", "float()"]),
        (lambda: kn.jit(lambda x: x if x > 0 else -x)(nx.ones(())), ValueError, ["traced", "bool()"]),
    ],
)  # fmt: skip
def test_mistakes_in_calls_say_what_was_given_and_compile_nothing(mistake, error, words):
    with nothing_compiles(), pytest.raises(error) as caught:
        mistake()
    for word in words:
        assert word in str(caught.value)


def test_a_state_in_the_wrong_place_or_a_loss_that_is_no_function_is_a_message():
    trainer = trainer_of(mlp())
    st = started(trainer)
    pair = train.step(trainer, st, X, loss=cross_entropy(Y))
    with nothing_compiles():
        with pytest.raises(TypeError, match=r"^train\.fit: got State and Trainer, expected a Trainer and its State$"):
            train.fit(st, trainer, [(X, Y)], loss=loss.mse)
        with pytest.raises(TypeError, match=r"^train\.predict: got Trainer and tuple, .*returns the loss and the"):
            train.predict(trainer, pair, X)
        with pytest.raises(TypeError, match=r"^train\.step: got a loss of type Tensor, expected a function"):
            train.step(trainer, st, X, loss=nx.ones(()))
        with pytest.raises(TypeError, match=r"^train\.fit: got a loss of type str, expected a function"):
            train.fit(trainer, st, [(X, Y)], loss="cross_entropy")


def test_fitting_on_a_pipeline_that_was_passed_through_warns_at_the_users_line():
    trainer = trainer_of(mlp())
    st = started(trainer)
    data = kn.data.prepare((X, Y), batch_size=4)
    st = train.fit(trainer, st, data, loss=loss.cross_entropy_sparse)
    with pytest.warns(UserWarning, match=r"^train\.fit: .*nothing was trained; .*data\.reset\(\)") as caught:
        assert train.fit(trainer, st, data, loss=loss.cross_entropy_sparse) is st
    assert caught[0].filename == __file__
    data.reset()
    assert int(train.fit(trainer, st, data, loss=loss.cross_entropy_sparse).step) == 4


def test_errors_are_raised_at_the_users_line():
    a, b = nx.zeros((2, 3)), nx.zeros((4,))
    with pytest.raises(ValueError) as caught:
        _ = a + b
    assert caught.traceback[0].path.samefile(__file__)
    assert not any("compiler" in str(entry.path) for entry in caught.traceback)


@pytest.mark.parametrize(
    "draw",
    [
        nx.rng.next_key, lambda: nx.rng.normal((2,)), lambda: nx.rng.uniform((2,)), lambda: nx.rng.permutation(3),
        lambda: layer.init(mlp()), lambda: kn.data.prepare((X, Y), batch_size=2, shuffle=True),
        lambda: train.init(trainer_of(mlp())),
        lambda: layer.apply(layer.dropout(rate=0.5), layer.init(layer.dropout(rate=0.5)), X, training=True),
    ],
)  # fmt: skip
def test_drawing_outside_a_scope_says_how_to_open_one(draw):
    with nothing_compiles(), pytest.raises(ValueError, match=re.escape("nx.rng.run(seed=")):
        draw()


# --- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    """(path, state) of a saved model."""
    st = started(trainer_of(mlp()))
    kn.checkpoint.save(tmp_path / "model.safetensors", st.vars.params)
    return tmp_path / "model.safetensors", st


def test_a_checkpoint_that_lacks_a_key_names_it(saved):
    path, _ = saved
    deeper = started(trainer_of(layer.sequential([mlp(), layer.linear(in_features=3, out_features=3)])))
    with pytest.raises(ValueError, match=r"checkpoint.load: .*`0\.0\.weight`"):
        kn.checkpoint.load(path, like=deeper.vars.params)


def test_a_checkpoint_of_another_shape_names_key_and_shapes(saved):
    path, _ = saved
    wider = started(trainer_of(mlp(hidden=17)))
    with pytest.raises(ValueError, match=r"`0\.weight`.*\[20, 16\].*\[20, 17\]"):
        kn.checkpoint.load(path, like=wider.vars.params)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_checkpoint_is_refused(saved, share):
    path, st = saved
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"checkpoint.load: .*not a whole safetensors file"):
        kn.checkpoint.load(path, like=st.vars.params)


def test_a_checkpoint_that_is_not_there_and_one_that_cannot_be_written(saved, tmp_path):
    path, st = saved
    with pytest.raises(FileNotFoundError):
        kn.checkpoint.load(tmp_path / "no.safetensors", like=st.vars.params)
    before = path.read_bytes()
    with pytest.raises(OSError):
        kn.checkpoint.save(path / "below a file.safetensors", st.vars.params)
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]


# --- the cache folder ------------------------------------------------------------------------------------------------

TRAIN = """
import warnings
caught = []
warnings.showwarning = lambda message, category, *rest: caught.append(f"{category.__name__}: {message}")
warnings.simplefilter("always")
import kaun as kn, promises
from kaun import loss, nx, train
x, y = promises.examples(16, (20,), 3)
trainer = promises.trainer_of(promises.mlp())
st = train.fit(trainer, promises.started(trainer), [(x, y)] * 3, loss=loss.cross_entropy_sparse)
print(int(st.step), promises.digest(st.to_tree()))
print(nx.sum(nx.asarray(x) * 2.0).item() is not None)
for message in caught: print(message)
"""

# Lines put before TRAIN.
NO_FILE_MAY_GROW = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
DISK_IS_FULL = """
import errno, os
from kaun.runtime import entry_folder
class Full:
    def write(self, data): raise OSError(errno.ENOSPC, "No space left on device")
    def __enter__(self): return self
    def __exit__(self, *error): return False
opened = os.fdopen
entry_folder.os = type("os", (), {"__getattr__": lambda self, name: getattr(os, name)})()
entry_folder.os.fdopen = lambda handle, mode: (os.close(handle), Full())[1]
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What TRAIN prints when nothing is wrong."""
    done = fresh_process(TRAIN, KAUN_CACHE_DIR=str(tmp_path_factory.mktemp("cache")))
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_cache_that_works_warns_of_nothing(undisturbed):
    assert len(undisturbed) == 2 and undisturbed[0].startswith("3 ")


@pytest.mark.parametrize("kind", ["a file", "below a file", "limit", "full"])
def test_without_a_usable_cache_folder_training_goes_on_with_one_warning(tmp_path, undisturbed, kind):
    (tmp_path / "file").write_text("not a folder")
    folder = {"a file": tmp_path / "file", "below a file": tmp_path / "file" / "deep"}.get(kind, tmp_path / "folder")
    before = {"limit": NO_FILE_MAY_GROW, "full": DISK_IS_FULL}.get(kind, "")
    if kind == "limit":
        pytest.importorskip("resource")
    done = fresh_process(before + TRAIN, KAUN_CACHE_DIR=str(folder))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == undisturbed
    assert len(lines) == 3 and lines[2].startswith("KaunCacheWarning: kernel cache") and str(folder) in lines[2]
    assert (tmp_path / "file").read_text() == "not a folder"
    assert not (tmp_path / "folder").exists() or os.listdir(tmp_path / "folder") == []


def test_the_cache_can_be_switched_off(tmp_path, undisturbed):
    done = fresh_process(TRAIN, KAUN_CACHE="0", KAUN_CACHE_DIR=str(tmp_path / "folder"))
    assert done.stdout.splitlines() == undisturbed, done.stderr
    assert not (tmp_path / "folder").exists()


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------

INTERRUPTED = """
import itertools, os, signal, threading
import promises
from kaun import loss, train

def interrupted(trainer, st, seconds):
    \"""Trains on batches without end until Ctrl-C comes after some seconds; the state then. It is pressed again if
    Python lost it, as in callbacks of the garbage collector, where exceptions are ignored.\"""
    ended = threading.Event()
    def press():
        for _ in range(100):
            if ended.wait(seconds):
                return
            os.kill(os.getpid(), signal.SIGINT)
        os._exit(3)
    threading.Thread(target=press).start()
    try:
        st = train.fit(trainer, st, itertools.repeat((x, y)), loss=loss.cross_entropy_sparse)
    finally:
        ended.set()
    return st

x, y = promises.examples(64, (20,), 3)
trainer = promises.trainer_of(promises.mlp(hidden=400, rate=0.2))
st = promises.started(trainer)
wanted = promises.digest(train.fit(trainer, st, [(x, y)] * 4, loss=loss.cross_entropy_sparse).to_tree())
for seconds in (0.3, 0.2, 0.25):
    reached = interrupted(trainer, st, seconds)
    again = train.fit(trainer, st, [(x, y)] * int(reached.step), loss=loss.cross_entropy_sparse)
    assert promises.digest(reached.to_tree()) == promises.digest(again.to_tree())
    assert promises.digest(train.fit(trainer, st, [(x, y)] * 4, loss=loss.cross_entropy_sparse).to_tree()) == wanted
# While kernels are being compiled, each time others.
for number, seconds in enumerate((0.15, 0.2, 0.3, 0.5)):
    other = promises.trainer_of(promises.mlp(hidden=401 + number))
    fresh = promises.started(other)
    reached = interrupted(other, fresh, seconds)
    more = train.fit(other, reached, [(x, y)] * 2, loss=loss.cross_entropy_sparse)
    assert int(more.step) == int(reached.step) + 2
print("ok")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_in_the_middle_of_training_or_compiling_leaves_the_process_able_to_go_on(tmp_path):
    done = fresh_process(INTERRUPTED, KAUN_CACHE_DIR=str(tmp_path), KAUN_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["ok"]
