"""A step is few kernels, and in the steady state one native call: nothing is traced, compiled or looked up again."""

import numpy as np
from kaun.runtime import threads
from kaun.runtime.cache import default_cache
from promises import cnn, examples, mlp, native_calls, nothing_compiles, started, trainer_of

import kaun as kn
from kaun import layer, loss, metric, nx, train

MOST_KERNELS = 7
MOST_LAUNCHES = 3


def programs(trainer):
    """The programs of a trainer's compiled functions."""
    functions = trainer._compiled.values()
    return [special.compiled.executable.program for f in functions for special in f._specialisations.values()]


def classifier(applied=None):
    """784-128-10; `applied` collects an entry each time the model is traced."""

    def seen(params, state, x, *, dtype, training, ctx):
        if applied is not None:
            applied.append(training)
        return x, state

    spy = layer.Layer(lambda *, dtype: layer.Vars((), (), dtype), seen)
    return trainer_of(layer.sequential([mlp(784, 128, 10), spy]), lr=1e-3)


def test_the_step_of_a_classifier_is_at_most_seven_kernels_in_three_launches():
    x, y = examples(64, (784,), 10)
    trainer = classifier()
    train.fit(trainer, started(trainer), [(x, y)], loss=loss.cross_entropy_sparse)
    (program,) = programs(trainer)
    assert 0 < len(program.calls) <= MOST_KERNELS
    assert 0 < len(program.kernels) <= MOST_KERNELS
    assert 0 < len(program.bundles) <= MOST_LAUNCHES


def test_a_steady_state_step_is_one_native_call(monkeypatch):
    x, y = examples(64 * 12, (784,), 10)
    applied = []
    trainer = classifier(applied)
    st = started(trainer)
    with nx.rng.run(seed=1):
        data = kn.data.prepare((x, y), batch_size=64, shuffle=True)
    with native_calls(monkeypatch) as calls:
        counts, losses = [], []

        def report(step, loss, state):
            counts.append(calls.count)
            losses.append(loss)

        st = train.fit(trainer, st, data, loss=loss.cross_entropy_sparse, report=report)
        data.reset()
        with nothing_compiles():
            train.fit(trainer, st, data, loss=loss.cross_entropy_sparse, report=report)
    assert len(counts) == 24 and np.diff(counts).tolist() == [1] * 23
    assert applied == [True]
    assert np.isfinite(losses).all()


def test_steps_by_hand_with_a_fresh_loss_each_are_one_native_call_each(monkeypatch):
    x, y = examples(32, (20,), 3)
    trainer = trainer_of(mlp(rate=0.5))
    st = started(trainer)
    with native_calls(monkeypatch) as calls:
        _, st = train.step(trainer, st, x, loss=lambda z: loss.cross_entropy_sparse(z, nx.asarray(y)))
        before = calls.count
        with nothing_compiles():
            for _ in range(5):
                labels = nx.asarray(y)
                value, st = train.step(trainer, st, x, loss=lambda z, y=labels: loss.cross_entropy_sparse(z, y))
                float(value)
        assert calls.count - before == 5


def test_prediction_is_one_native_call_and_traced_once(monkeypatch):
    x, _ = examples(64, (784,), 10)
    applied = []
    trainer = classifier(applied)
    st = started(trainer)
    with native_calls(monkeypatch) as calls:
        for _ in range(4):
            train.predict(trainer, st, x).numpy()
    assert calls.count == 4 and applied == [False]


def test_a_loop_whose_numbers_change_compiles_no_more_than_twice():
    x = nx.asarray(np.arange(7, dtype=np.float32))
    threads.pool()  # compiled when first asked for, which may be here
    before = default_cache().statistics
    # From 2: at 1 the factor is a half, one of the numbers that stay constants.
    for step in range(2, 30):
        values = x * (0.5 / step) + 1.25 * step
        np.testing.assert_allclose(values.numpy(), np.arange(7) * (0.5 / step) + 1.25 * step, rtol=1e-6)
    # A program is its kernels and its entry.
    assert default_cache().statistics.compiled - before.compiled <= 4


def test_a_four_layer_convolutional_classifier_learns_digits():
    digits = kn.datasets.digits()
    trainer = trainer_of(cnn(), lr=3e-3)
    st = started(trainer)
    with nx.rng.run(seed=0):
        data = kn.data.prepare((digits.x_train, digits.y_train), batch_size=64, shuffle=True)
    losses = []
    for _ in range(6):
        data.reset()
        st = train.fit(
            trainer, st, data, loss=loss.cross_entropy_sparse, report=lambda step, loss, state: losses.append(loss)
        )
    assert np.mean(losses[-20:]) < 0.25 * np.mean(losses[:5])
    assert metric.accuracy(train.predict(trainer, st, digits.x_test), digits.y_test) >= 0.95
