"""Training updates its state in place where nobody else can see it, and nowhere else; an interrupt loses nothing."""

from __future__ import annotations

import gc
import itertools
import random
import signal
import threading
import time
import weakref
from collections import OrderedDict

import numpy as np
import pytest
from kaun.runtime import cache as caches
from kaun.runtime import threads

from kaun import execution, fn, layer, loss, nx, optim, ptree, train
from kaun.ownership import Row

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(12, 3)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)
MODEL = layer.sequential([layer.linear(in_features=3, out_features=5), layer.tanh(), layer.batch_norm(num_features=5),
                          layer.linear(in_features=5, out_features=2)])  # fmt: skip

# Here, where many are sent, that it was told is nothing to tell.
pytestmark = pytest.mark.filterwarnings("ignore:train.fit. interrupted")


def started(optimizer=None, seed=0):
    trainer = train.make(model=MODEL, optimizer=optimizer or optim.adamw(lr=0.05))
    with nx.rng.run(seed=seed):
        return trainer, train.init(trainer)


def fit(trainer, st, steps, **keywords):
    return train.fit(trainer, st, [(X, Y)] * steps, loss=loss.cross_entropy_sparse, **keywords)


def values(st):
    return [leaf.numpy().copy() for leaf in ptree.leaves(st.to_tree())]


def equal(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.fixture
def rows(monkeypatch):
    """The addresses of the state before each step, as the steps are made."""
    seen, run = [], Row.run

    def watched(self, *arguments):
        seen.append([storage.address for storage in self.current()[0]])
        return run(self, *arguments)

    monkeypatch.setattr(Row, "run", watched)
    return seen


def test_the_first_step_holds_nothing_of_what_it_started_from(monkeypatch, tmp_path):
    """Not even until a garbage collection: a state is most of the memory there is. Attention has chains of products."""

    def block(params, state, x, /, *, dtype, training, ctx):
        q, k = (nx.permute_dims(nx.reshape(x @ params[name], (1, 64, 2, 16)), (0, 2, 1, 3)) for name in ("q", "k"))
        y = nx.permute_dims(fn.dot_product_attention(q, k, k, is_causal=True), (0, 2, 1, 3))
        return nx.reshape(y, (64, 32)) @ params["out"], state

    monkeypatch.setattr(caches, "_default", [caches.KernelCache(tmp_path)])
    names = ("q", "k", "out")
    x, y = np.ones((64, 32), np.float32), np.zeros(64, np.int64)
    model = layer.Layer(lambda *, dtype: None, block)
    for found_on_disk in (False, True):
        monkeypatch.setattr(execution, "_programs", OrderedDict())
        trainer = train.make(model=model, optimizer=optim.adamw(lr=0.1), memory_budget=1 << 20)
        params = ptree.Dict({name: nx.asarray(RANDOM.normal(size=(32, 32)).astype(np.float32)) for name in names})
        states = [train.make_state(trainer, layer.Vars(params, (), nx.float32))]
        given = [weakref.ref(storage) for storage in states[0]._as_row()[0]]
        del params
        gc.collect()
        gc.disable()
        try:
            after = train.fit(trainer, states.pop(), [(x, y)], loss=loss.cross_entropy_sparse)
        finally:
            gc.enable()
        kept = list(map(id, after._as_row()[0]))
        assert all(storage is None or id(storage) in kept for storage in (reference() for reference in given))
        (special,) = next(iter(trainer._compiled.values()))._specialisations.values()
        assert ("compilation" in vars(special.compiled)) != found_on_disk


def test_parameters_that_were_copied_from_arrays_are_written_over_from_the_first_step_on(rows):
    """A copy is the loop's as soon as nobody else has it: no step then holds two states."""
    arrays = [RANDOM.normal(size=shape).astype(np.float32) for shape in ((600, 500), (500,), (500, 600))]
    names = ("up", "bias", "down")

    def apply(params, state, x, /, *, dtype, training, ctx):
        return nx.tanh(x @ params["up"] + params["bias"]) @ params["down"], state

    trainer = train.make(model=layer.Layer(lambda *, dtype: None, apply), optimizer=optim.sgd(lr=0.1))
    x, y = RANDOM.normal(size=(4, 600)).astype(np.float32), np.arange(4)
    for held in (False, True):
        params = ptree.Dict({name: nx.asarray(array) for name, array in zip(names, arrays, strict=True)})
        states = [train.make_state(trainer, layer.Vars(params, (), nx.float32))]
        shown = states[0].vars.params["up"].numpy() if held else None
        del params, rows[:]
        train.fit(trainer, states.pop(), [(x, y)] * 2, loss=loss.cross_entropy_sparse)
        stay = [before == after for before, after in zip(*rows, strict=True)]
        big = [number for number, array in enumerate(arrays) if array.nbytes >= 1 << 20]
        assert [stay[number] for number in big] == [not held, True]
        if held:
            assert np.array_equal(shown, arrays[0])


def test_moments_that_start_from_one_array_of_zeros_are_written_in_place_from_the_first_step_on(rows):
    trainer = train.make(model=layer.linear(in_features=600, out_features=500), optimizer=optim.adamw(lr=0.1))
    x, y = RANDOM.normal(size=(4, 600)).astype(np.float32), np.arange(4)
    results = []
    for held in (False, True):
        with nx.rng.run(seed=3):
            states = [train.init(trainer)]
        zeros = [leaf for leaf in ptree.leaves(states[0].opt_state) if leaf.shape == (600, 500)]
        assert len(zeros) == 2
        shown = zeros[0].numpy() if held else None
        del zeros, rows[:]
        results.append(values(train.fit(trainer, states.pop(), [(x, y)] * 2, loss=loss.cross_entropy_sparse)))
        big = [number for number, leaf in enumerate(results[-1]) if leaf.shape == (600, 500)]
        before, after = ([row[number] for number in big] for row in rows)
        assert len(set(after)) == 3
        # The program's own copies come after what is noted of the first step: the one that is not a copy stays.
        assert bool(set(before[1:]) & set(after[1:])) is not held
        assert shown is None or not shown.any()
    assert equal(*results)


def moved(rows):
    """How many leaves of the state each step found elsewhere than the step before it."""
    return [sum(a != b for a, b in zip(*pair, strict=True)) for pair in itertools.pairwise(rows)]


def test_only_the_first_step_moves_a_state_that_nobody_sees(rows):
    trainer, st = started()
    fit(trainer, st, 6)
    assert moved(rows) == [len(rows[0]), 0, 0, 0, 0]


def test_a_state_that_fit_alone_has_is_its_own_from_the_first_step_on(rows):
    trainer, st = started()
    data = [(X, Y)] * 3
    # The state between the two is nobody's but the second's.
    objective = loss.cross_entropy_sparse
    train.fit(trainer, train.fit(trainer, st, data, loss=objective), data, loss=objective)
    assert moved(rows) == [len(rows[0]), 0, 0, 0, 0]


def test_a_state_that_report_lets_go_of_is_updated_in_place(rows):
    trainer, st = started()
    totals = []
    fit(trainer, st, 6, report=lambda step, loss, state: totals.append(float(nx.sum(state.vars.params[0]["weight"]))))
    assert moved(rows)[1:] == [0, 0, 0, 0] and len(set(totals)) == 6


@pytest.mark.parametrize("optimizer", [optim.sgd(lr=0.1, momentum=0.9), optim.adamw(lr=0.05)], ids=["sgd", "adamw"])
def test_what_report_keeps_stays_as_it_was(rows, optimizer):
    trainer, st = started(optimizer)
    before, plain = values(st), values(fit(*started(optimizer), 8))
    kept, copies = [], []
    rows.clear()

    def report(step, loss, state):
        weight = state.vars.params[0]["weight"]
        taken = {2: lambda: state, 3: lambda: weight, 4: lambda: weight.numpy(), 5: lambda: weight.numpy()[1:, ::2].T,
                 6: lambda: np.from_dlpack(weight), 7: lambda: memoryview(weight.numpy())}  # fmt: skip
        if step in taken:
            kept.append(taken[step]())
            copies.append(values(state) if step == 2 else np.array(kept[-1]))

    after = fit(trainer, st, 8, report=report)
    assert equal(values(st), before) and equal(values(after), plain)
    assert equal(values(kept[0]), copies[0])
    for array, copy in zip(kept[1:], copies[1:], strict=True):
        assert np.array_equal(np.asarray(array), copy)
    # A kept state moves as a whole, a tensor alone.
    assert moved(rows)[1:] == [0, len(rows[0]), 1, 1, 1, 1]


def test_states_that_check_finite_may_have_to_show_are_kept():
    trainer, st = started()
    bad = X.copy()
    bad[0, 0] = np.nan
    with pytest.raises(train.NotFiniteError) as caught:
        train.fit(trainer, st, [(X, Y)] * 3 + [(bad, Y)], loss=loss.cross_entropy_sparse, check_finite=True)
    assert equal(values(caught.value.state), values(fit(*started(), 3)))


def test_a_batch_made_of_the_state_is_not_overwritten():
    trainer, st = started()
    shown = []

    def batches():
        yield X, Y
        for _ in range(4):
            # The weight, of shape (3, 5), is read as a batch while its successor is written.
            yield nx.permute_dims(shown[-1].vars.params[0]["weight"], (1, 0)), Y[:5]
            del shown[:-1]

    after = train.fit(trainer, st, batches(), loss=loss.cross_entropy_sparse,
                      report=lambda step, loss, state: shown.append(state))  # fmt: skip
    trainer, again = started()
    _, again = train.step(trainer, again, X, loss=lambda z: loss.cross_entropy_sparse(z, nx.asarray(Y)))
    for _ in range(4):
        batch = again.vars.params[0]["weight"].numpy().T.copy()
        _, again = train.step(trainer, again, batch, loss=lambda z: loss.cross_entropy_sparse(z, nx.asarray(Y[:5])))
    assert equal(values(after), values(again))


@pytest.mark.parametrize("keeps", [False, True], ids=["in place", "elsewhere"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_an_interrupt_beside_the_native_code_loses_nothing(monkeypatch, after, keeps):
    trainer, st = started()
    references = [values(fit(*started(), steps)) for steps in (3, 4)]
    fit(trainer, st, 1)
    pool = threads.pool()
    native, count, kept = pool.run, 0, []

    def interrupted(record):
        nonlocal count
        count += 1
        if count == 4 and not after:
            raise KeyboardInterrupt
        native(record)
        if count == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pool, "run", interrupted)
        report = (lambda step, loss, state: kept.append((state, values(state)))) if keeps else None
        reached = fit(trainer, st, 9, report=report)
    assert int(reached.step) == (4 if after else 3)
    assert equal(values(reached), references[after])
    assert all(equal(values(state), copy) for state, copy in kept)


def test_an_error_beside_the_native_code_leaves_the_state_given_as_it_was(monkeypatch):
    trainer, st = started()
    before = values(st)
    pool = threads.pool()
    native, count = pool.run, 0

    def failing(record):
        nonlocal count
        count += 1
        native(record)
        if count == 3:
            raise RuntimeError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(pool, "run", failing)
        with pytest.raises(RuntimeError, match="gone"):
            fit(trainer, st, 9)
    assert equal(values(st), before) and equal(values(fit(trainer, st, 4)), values(fit(*started(), 4)))


def interrupted_soon(delay):
    """Batches without end, and Ctrl-C a moment after the first was asked for; again where a destructor took it."""
    ended = threading.Event()

    def interrupt():
        time.sleep(delay)
        signal.raise_signal(signal.SIGINT)
        while not ended.wait(2.0):
            signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    try:
        thread.start()
        while True:
            yield X, Y
    finally:
        ended.set()
        thread.join()


def test_ctrl_c_at_any_moment_returns_the_state_of_a_whole_step():
    trainer, st = started()
    source = random.Random(0)
    for _ in range(15):
        batches = interrupted_soon(source.uniform(0, 0.01))
        reached = train.fit(trainer, st, batches, loss=loss.cross_entropy_sparse)
        batches.close()
        steps = int(reached.step)
        assert equal(values(reached), values(fit(trainer, st, steps) if steps else st))
