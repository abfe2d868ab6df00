"""Nothing passed in is changed, bit for bit: arrays, lists, trees and states; and later changes do not get in."""

import copy
import gc
import weakref

import numpy as np
import pytest
from promises import cnn, copies, digest, examples, mlp, started, trainer_of

import kaun as kn
from kaun import layer, loss, nx, optim, train


def same(first, second):
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    "model, shape, optimizer",
    [
        (mlp(rate=0.2), (20,), optim.adamw(lr=0.1)),
        (mlp(), (20,), optim.sgd(lr=0.1, momentum=0.9, nesterov=True)),
        (cnn((3, 4, 5)), (1, 8, 8), optim.adam(lr=0.1)),
    ],
    ids=["adamw", "momentum", "cnn"],
)
def test_states_batches_and_views_stay_as_they_were(model, shape, optimizer):
    x, y = examples(24, shape, 3)
    originals = x.copy(), y.copy()
    trainer = train.make(model=model, optimizer=optimizer)
    states = [started(trainer)]
    views = [[leaf.numpy() for leaf in kn.ptree.leaves(states[0].to_tree())]]
    kept = [copies(states[0].to_tree())]
    for run in range(3):
        if run == 1:
            after = train.step(trainer, states[-1], x, loss=lambda z: loss.cross_entropy_sparse(z, nx.asarray(y)))[1]
        else:
            after = train.fit(trainer, states[-1], [(x, y)] * 4, loss=loss.cross_entropy_sparse)
        train.predict(trainer, after, x).numpy()
        states.append(after)
        views.append([leaf.numpy() for leaf in kn.ptree.leaves(after.to_tree())])
        kept.append(copies(after.to_tree()))
    for state, view, copy_ in zip(states, views, kept, strict=True):
        assert same(copies(state.to_tree()), copy_) and same(view, copy_)
    assert len({digest(state.to_tree()) for state in states}) == 4
    assert same((x, y), originals)


def test_two_runs_from_one_state_are_the_same():
    x, y = examples(24, (20,), 3)
    trainer = trainer_of(mlp(rate=0.2))
    st = started(trainer)
    runs = {digest(train.fit(trainer, st, [(x, y)] * 5, loss=loss.cross_entropy_sparse).to_tree()) for _ in range(3)}
    assert len(runs) == 1


def test_arrays_lists_and_trees_given_are_left_alone(tmp_path):
    array, values = np.arange(12, dtype=np.float32).reshape(3, 4), [[1.0, 2.0], [3.0, 4.0]]
    tree = {"a": [np.ones(3, np.float32)], "b": {"c": np.zeros(2, np.float32)}}
    before = array.copy(), copy.deepcopy(values), copy.deepcopy(tree)
    nx.realize(nx.sort(nx.asarray(array)), nx.asarray(values) @ nx.asarray(values))
    grads = kn.grad(lambda t: nx.sum(nx.asarray(t["a"][0]) ** 2))(tree)
    tx = optim.adam(lr=0.1)
    optim.update(tx, optim.init(tx, tree), tree, grads)
    kn.checkpoint.save(tmp_path / "t.safetensors", tree)
    kn.checkpoint.load(tmp_path / "t.safetensors", like=tree)
    kn.jit(lambda t, a: (t, a * 2))(tree, array)
    assert np.array_equal(array, before[0]) and values == before[1]
    assert type(tree["a"]) is list and type(tree) is dict
    assert same(copies(tree), copies(before[2]))
    assert array.flags.writeable and tree["a"][0].flags.writeable


def test_changing_an_array_later_does_not_change_tensors_made_from_it():
    array = np.ones(5, np.float32)
    tensor, lazy, jitted = nx.asarray(array), nx.asarray(array) * 2, kn.jit(lambda x: x)(array)
    closed = kn.jit(lambda x: x + array)
    assert closed(np.zeros(5, np.float32)).tolist() == [1.0] * 5
    array[:] = 7
    assert tensor.tolist() == jitted.tolist() == [1.0] * 5 and lazy.tolist() == [2.0] * 5
    assert closed(np.zeros(5, np.float32)).tolist() == [1.0] * 5


def test_numpy_views_of_tensors_cannot_be_written():
    with nx.rng.run(seed=0):
        made = [
            nx.asarray([1.0, 2.0]),
            nx.ones((3,)) * 2,
            nx.rng.normal((3,)),
            *kn.jit(lambda x: (x, x + 1))(nx.ones(2)),
        ]
    for tensor in made:
        with pytest.raises(ValueError, match="read-only"):
            tensor.numpy()[...] = 0
        with pytest.raises(ValueError):
            tensor.numpy().flags.writeable = True


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.T, np.asfortranarray, lambda a: a[::-1], lambda a: a[:, ::-2], lambda a: a[::2, 1::3],
        lambda a: np.broadcast_to(a[0], (5, 8)), lambda a: a.astype(">f4"), lambda a: a[2:3, :1], lambda a: a[:0],
        lambda a: np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view(np.float32),
    ],
    ids=["transposed", "fortran", "reversed", "steps", "strided", "broadcast", "swapped", "one", "none", "unaligned"],
)  # fmt: skip
@pytest.mark.parametrize("writable", [True, False])
def test_any_numpy_layout_is_read_right_and_kept(change, writable):
    array = change(np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32))
    if array.flags.writeable and not writable:
        array.flags.writeable = False
    before = array.copy()
    np.testing.assert_array_equal(nx.asarray(array).numpy(), array)
    np.testing.assert_allclose((nx.asarray(array) * 2 + nx.asarray(array)).numpy(), 3 * before, rtol=1e-6)
    np.testing.assert_array_equal(array, before)


def test_layer_variables_are_not_changed_by_applying():
    model = cnn((3, 4, 5))
    with nx.rng.run(seed=0):
        variables = layer.init(model)
        before = copies((variables.params, variables.state))
        x, _ = examples(4, (1, 8, 8), 3)
        y, after = layer.apply(model, variables, x, training=True)
        nx.realize(y, *kn.ptree.leaves(after.state))
    assert same(copies((variables.params, variables.state)), before)
    assert not same(copies(after.state), copies(variables.state))


def test_the_arrays_a_program_was_first_called_with_are_let_go():
    given = Kept((1_000,), np.float32)
    given.fill(1.0)
    given.flags.writeable = False  # so that it is taken without a copy
    held = weakref.ref(given)
    tensor = nx.asarray(given) * 3.0 + 1.5
    tensor.numpy()
    del tensor, given
    gc.collect()
    assert held() is None


class Kept(np.ndarray):
    """An array whose end can be seen."""
