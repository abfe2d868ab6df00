"""Training steps learn, follow from the state alone, and are traced once for each kind of input and loss."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import signal

import numpy as np
import pytest
from kaun.runtime import buffers

import kaun as kn
from kaun import layer, loss, nx, optim, ptree, train
from kaun.layer import Layer, Vars

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(12, 3)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)


class Traces:
    """A layer that counts how often it is traced."""

    def __init__(self):
        self.count = 0

    def layer(self):
        def apply(params, state, x, *, dtype, training, ctx):
            self.count += 1
            return x, state

        return Layer(lambda *, dtype: Vars((), (), dtype), apply)


def trainer_of(*layers, lr=0.1, optimizer=None):
    model = layer.sequential([layer.linear(in_features=3, out_features=2), *layers])
    return train.make(model=model, optimizer=optimizer or optim.sgd(lr=lr))


def started(trainer, seed=0, dtype=kn.float32):
    with nx.rng.run(seed=seed):
        return train.init(trainer, dtype=dtype)


def cross_entropy(y):
    return lambda logits: loss.cross_entropy_sparse(logits, y)


def same_values(a, b):
    pairs = zip(ptree.leaves(a.to_tree()), ptree.leaves(b.to_tree()), strict=True)
    return all(np.array_equal(x.numpy(), y.numpy()) for x, y in pairs)


def test_a_step_is_one_step_of_gradient_descent():
    trainer = trainer_of(lr=0.5)
    st = started(trainer)
    value, after = train.step(trainer, st, X, loss=cross_entropy(nx.asarray(Y)))

    def objective(params):
        logits, _ = layer.apply(trainer.model, st.vars.with_params(params), X, training=True)
        return loss.cross_entropy_sparse(logits, nx.asarray(Y))

    expected, grads = kn.value_and_grad(objective)(st.vars.params)
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    for new, old, g in zip(*map(ptree.leaves, (after.vars.params, st.vars.params, grads)), strict=True):
        np.testing.assert_allclose(new.numpy(), old.numpy() - 0.5 * g.numpy(), rtol=1e-5, atol=1e-6)
    assert int(after.step) == 1 and int(st.step) == 0


def test_both_forms_of_fit_and_single_steps_give_the_same_state():
    trainer = trainer_of(layer.dropout(rate=0.3), optimizer=optim.adam(lr=0.05))
    st = started(trainer)
    batches = [(nx.asarray(X[i : i + 4]), nx.asarray(Y[i : i + 4])) for i in (0, 4, 8)]
    by_pairs = train.fit(trainer, st, batches, loss=loss.cross_entropy_sparse)
    by_closures = train.fit(trainer, st, [(x, cross_entropy(y)) for x, y in batches])
    by_steps = st
    for x, y in batches:
        _, by_steps = train.step(trainer, by_steps, x, loss=cross_entropy(y))
    assert same_values(by_pairs, by_closures) and same_values(by_pairs, by_steps)
    assert int(by_pairs.step) == 3


def test_a_fresh_closure_per_batch_costs_no_trace():
    traces = Traces()
    trainer = trainer_of(traces.layer())
    st = started(trainer)
    losses = []
    for step in range(20):
        y = nx.asarray((Y + step) % 2)
        value, st = train.step(trainer, st, X, loss=lambda logits, y=y: loss.cross_entropy_sparse(logits, y))
        losses.append(float(value))
    assert traces.count == 1
    fresh = started(trainer)
    for step, expected in enumerate(losses):
        uncached = Uncacheable(nx.asarray((Y + step) % 2))
        value, fresh = train.step(trainer, fresh, X, loss=uncached)
        assert float(value) == pytest.approx(expected, rel=1e-6)
    assert traces.count == 21


def test_a_thousand_steps_with_fresh_closures_are_one_trace():
    traces = Traces()
    trainer = trainer_of(traces.layer(), optimizer=optim.adam(lr=0.01))
    labels = [nx.asarray((Y + i) % 2) for i in range(2)]
    st = train.fit(trainer, started(trainer), [(X, cross_entropy(labels[i % 2])) for i in range(1000)])
    assert traces.count == 1 and int(st.step) == 1000 and len(trainer._compiled) == 1


def test_the_inputs_of_a_step_are_named_by_their_paths():
    own = Layer(
        lambda *, dtype: Vars({"a": {"b": nx.ones((1,), dtype=dtype)}, "a/b": nx.ones((2,), dtype=dtype)}, (), dtype),
        lambda params, state, x, **_: (x * params["a"]["b"] * nx.sum(params["a/b"]), state),
    )
    for layers, names in ((), ["params/0/weight", "params/0/bias", "step"]), ((own,), ["2/params/1/a/b"]):
        trainer = trainer_of(*layers)
        train.step(trainer, started(trainer), X, loss=nx.mean)
        (function,) = trainer._compiled.values()
        (special,) = function._specialisations.values()
        assert {f"0.{name}" for name in names} <= set(special.graph.input_names)


class Uncacheable:
    """A loss that cannot be seen through: traced at each step, and still right."""

    def __init__(self, y):
        self.y = y

    def __call__(self, logits):
        return loss.cross_entropy_sparse(logits, self.y)


def test_new_shapes_dtypes_modes_and_losses_are_traced_once_each():
    traces = Traces()
    trainer = trainer_of(traces.layer())
    st = started(trainer)
    for expected, (x, y) in ((1, (X, Y)), (2, (X[:5], Y[:5])), (3, (X, Y.astype(np.int32))), (3, (X, Y))):
        train.step(trainer, st, x, loss=cross_entropy(nx.asarray(y)))
        assert traces.count == expected
    train.step(trainer, st, X, loss=cross_entropy(nx.asarray(Y)), training=False)
    assert traces.count == 4
    train.step(trainer, st, X, loss=lambda logits: nx.mean(logits))
    assert traces.count == 5
    for _ in range(2):
        train.predict(trainer, st, X)
        assert traces.count == 6


def test_labels_that_are_globals_are_read_anew_at_each_step(monkeypatch):
    trainer = trainer_of()
    st = started(trainer)
    values = set()
    for labels in (Y, 1 - Y):
        monkeypatch.setitem(globals(), "LABELS", nx.asarray(labels))
        values.add(float(train.step(trainer, st, X, loss=with_global_labels)[0]))
    assert len(values) == 2


LABELS = nx.asarray(Y)


def with_global_labels(logits):
    return loss.cross_entropy_sparse(logits, LABELS)


def test_random_numbers_follow_from_the_state_alone():
    trainer = trainer_of(layer.dropout(rate=0.5))
    st = started(trainer)
    first, after = train.step(trainer, st, X, loss=cross_entropy(nx.asarray(Y)))
    with nx.rng.run(seed=99):
        again, _ = train.step(trainer, st, X, loss=cross_entropy(nx.asarray(Y)))
    assert float(first) == float(again)
    moved = train.State(st.vars, st.opt_state, after.step, st.rng)
    assert float(train.step(trainer, moved, X, loss=cross_entropy(nx.asarray(Y)))[0]) != float(first)
    assert same_values(started(trainer), st) and not same_values(started(trainer, seed=1), st)


def test_predict_is_the_model_in_evaluation():
    trainer = trainer_of(layer.batch_norm(num_features=2), layer.dropout(rate=0.9))
    st = train.fit(trainer, started(trainer), [(X, Y)] * 3, loss=loss.cross_entropy_sparse)
    assert not np.allclose(st.vars.state[1]["running_mean"].numpy(), 0)
    expected, _ = layer.apply(trainer.model, st.vars, X, training=False)
    np.testing.assert_allclose(train.predict(trainer, st, X).numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)


def test_training_learns_with_host_and_traced_schedules_clipping_and_context():
    def weighted(params, state, x, *, dtype, training, ctx):
        return x * ctx["temperature"], state

    model = layer.sequential([
        layer.linear(in_features=3, out_features=8), layer.tanh(), layer.linear(in_features=8, out_features=2),
        Layer(lambda *, dtype: Vars((), (), dtype), weighted),
    ])  # fmt: skip
    schedule = optim.schedule.warmup_linear(init_value=0.0, peak_value=0.5, warmup_steps=5)
    ctx = kn.context.Context(temperature=np.float32(2.0))
    ends = []
    for lr in (schedule, lambda step: schedule(step)):
        trainer = train.make(model=model, optimizer=optim.chain([optim.clip_by_global_norm(1.0), optim.sgd(lr=lr)]))
        st = train.fit(trainer, started(trainer), [(X, Y)] * 60, loss=loss.cross_entropy_sparse, ctx=ctx)
        assert kn.metric.accuracy(train.predict(trainer, st, X, ctx=ctx), Y) == 1.0
        ends.append(st)
    for a, b in zip(*(ptree.leaves(st.vars.params) for st in ends), strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-5)


def test_report_sees_every_step_and_early_stop_returns_the_state_reached():
    trainer = trainer_of()
    seen = []

    def report(step, loss, state):
        seen.append((step, loss, state))
        if step == 3:
            raise train.EarlyStop

    st = train.fit(trainer, started(trainer), [(X, Y)] * 10, loss=loss.cross_entropy_sparse, report=report)
    assert [step for step, _, _ in seen] == [1, 2, 3]
    assert all(isinstance(value, float) for _, value, _ in seen) and seen[0][1] > seen[2][1]
    assert st is seen[-1][2] and int(st.step) == 3


def interrupting(elements, at):
    for number, element in enumerate(elements, 1):
        if number == at:
            signal.raise_signal(signal.SIGINT)
        yield element


def test_an_interrupt_returns_the_state_of_the_last_whole_step():
    trainer = trainer_of()
    st = started(trainer)
    whole = train.fit(trainer, st, [(X, Y)] * 3, loss=loss.cross_entropy_sparse)
    for progress in (False, True):
        with pytest.warns(UserWarning, match="train.fit: interrupted; this is the state after step 3"):
            cut = train.fit(
                trainer, st, interrupting([(X, Y)] * 10, at=4), loss=loss.cross_entropy_sparse, progress=progress
            )
        assert int(cut.step) == 3 and same_values(cut, whole)

    def report(step, loss, state):
        if step == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.warns(UserWarning, match="state after step 3"):
        cut = train.fit(trainer, st, [(X, Y)] * 10, loss=loss.cross_entropy_sparse, report=report)
    assert same_values(cut, whole)


def test_an_interrupt_after_the_last_step_is_told_and_loses_nothing():
    def data():
        yield from [(X, Y)] * 3
        signal.raise_signal(signal.SIGINT)

    trainer = trainer_of()
    st = started(trainer)
    whole = train.fit(trainer, st, [(X, Y)] * 3, loss=loss.cross_entropy_sparse)
    with pytest.warns(UserWarning, match="interrupted; this is the state after step 3"):
        cut = train.fit(trainer, st, data(), loss=loss.cross_entropy_sparse)
    assert same_values(cut, whole)


def test_a_second_interrupt_is_an_ordinary_one(monkeypatch):
    trainer = trainer_of()

    def again(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(train.warnings, "warn", again)
    with pytest.raises(KeyboardInterrupt):
        train.fit(trainer, started(trainer), interrupting([(X, Y)] * 3, at=2), loss=loss.cross_entropy_sparse)


def test_a_loss_that_is_not_finite_is_reported_with_its_step_and_first_layer():
    broken = X.copy()
    broken[2, 1] = np.nan
    trainer = trainer_of(layer.tanh(), layer.linear(in_features=2, out_features=2))
    st = started(trainer)
    data = [(X, Y), (X, Y), (broken, Y), (X, Y)]
    with pytest.raises(train.NotFiniteError, match=r"train.fit: the loss of step 3 is nan; the first layer .* `0`; "
                       r"the input held NaN or infinity$") as caught:
        train.fit(trainer, st, data, loss=loss.cross_entropy_sparse, check_finite=True)
    assert caught.value.step == 3 and caught.value.layer == "0" and int(caught.value.state.step) == 2
    assert np.isnan(float(train.step(trainer, caught.value.state, broken, loss=cross_entropy(nx.asarray(Y)))[0]))
    assert int(train.fit(trainer, st, data, loss=loss.cross_entropy_sparse).step) == 4


def logarithm(params, state, x, *, dtype, training, ctx):
    return nx.log(x), state


@pytest.mark.parametrize(
    "layers, target, path, message",
    [
        (
            (layer.relu(), Layer(lambda *, dtype: Vars((), (), dtype), logarithm), layer.leaky_relu()),
            0.0,
            "2",
            r"`2`\n    the op, .*kn\.debug\.nan\(",
        ),
        ((layer.dropout(rate=0.5),), np.inf, None, "the loss function made it; the targets held NaN or infinity$"),
    ],
)
def test_the_layer_that_made_it_or_the_loss_is_found(layers, target, path, message):
    trainer = trainer_of(*layers)
    y = np.full((12, 2), target, np.float32)
    for data in ([(X, nx.asarray(y))], [(X, lambda out: loss.mse(out, nx.asarray(y)))]):
        with pytest.raises(train.NotFiniteError, match=message) as caught:
            given = loss.mse if isinstance(data[0][1], nx.Tensor) else None
            train.fit(trainer, started(trainer), data, loss=given, check_finite=True)
        assert caught.value.layer == path


def unit_rows(params, state, x, *, dtype, training, ctx):
    rows = x @ params["weight"]
    return rows / (nx.sqrt(nx.sum(rows * rows, axis=-1, keepdims=True)) + 1e-6), state


@pytest.mark.parametrize("form", ["x, y", "x, loss_fn"])
@pytest.mark.parametrize(
    "optimizer, blamed",
    [
        (optim.sgd(lr=0.1), "the parameter `0.weight`, though"),
        (optim.adam(lr=0.1), "the parameter `0.weight`, though"),
        (optim.accumulate_gradients(4, optim.adam(lr=0.1)), "the optimizer's state `"),
    ],
    ids=["sgd", "adam", "accumulated"],
)
def test_a_step_that_makes_parameters_nan_with_a_finite_loss_is_the_one_that_is_blamed(optimizer, blamed, form):
    linear = layer.linear(in_features=3, out_features=2)
    last = layer.linear(in_features=2, out_features=2)
    model = layer.sequential([Layer(linear.init, unit_rows), layer.tanh(), last])
    trainer = train.make(model=model, optimizer=optimizer)
    criterion = loss.cross_entropy_sparse if form == "x, y" else None
    batches = [(x, Y if criterion is not None else cross_entropy(nx.asarray(Y))) for x in (X, X * 2, X * 0, X, X, X)]
    before = train.fit(trainer, started(trainer), batches[:2], loss=criterion)
    with pytest.raises(train.NotFiniteError, match=f"train.fit: step 3 made NaN or infinity in {blamed}") as caught:
        train.fit(trainer, started(trainer), batches, loss=criterion, check_finite=True)
    error = caught.value
    assert error.step == 3 and error.layer is None and error.element is batches[2]
    assert same_values(error.state, before)
    # The command that the message ends with, as it stands.
    command = str(error).rpartition("`error`: ")[2]
    found = eval(command, {"kn": kn, "trainer": trainer, "error": error, "loss": criterion})
    assert found.layer == "0" and found.node.op.name == "div" and not found.name
    # Looked for in the whole run at once, it is the same op.
    found = kn.debug.nan(train.fit, trainer, started(trainer), batches, loss=criterion, check_finite=True)
    assert found.layer == "0" and found.node.op.name == "div" and not found.name


@pytest.mark.parametrize("check_finite", [False, True])
def test_a_check_that_fails_in_fit_tells_its_step_and_what_it_was_made_on(check_finite):
    def positive(params, state, x, *, dtype, training, ctx):
        kn.debug.check(x > 0, "x is positive")
        return x, state

    first = layer.linear(in_features=3, out_features=2)
    trainer = train.make(
        model=layer.sequential([Layer(lambda *, dtype: Vars((), (), dtype), positive), first]),
        optimizer=optim.sgd(lr=0.1),
    )
    whole = np.abs(X) + 1
    data = [(whole, Y), (whole, Y), (-whole, Y), (whole, Y)]
    with pytest.raises(kn.debug.CheckError, match="x is positive") as caught:
        train.fit(trainer, started(trainer), data, loss=loss.cross_entropy_sparse, check_finite=check_finite)
    error = caught.value
    assert error.step == 3 and error.element is data[2] and error.__notes__ == ["in step 3 of train.fit"]
    if check_finite:
        assert same_values(error.state, train.fit(trainer, started(trainer), data[:2], loss=loss.cross_entropy_sparse))
    else:
        assert error.state is None  # a step writes over it


def test_infinity_that_a_parameter_holds_from_the_start_is_not_blamed_on_a_step():
    inner = layer.linear(in_features=3, out_features=2)

    def with_ceiling(*, dtype):
        return Vars({"inner": inner.init(dtype=dtype).params, "ceiling": nx.full((), np.inf)}, (), dtype)

    def capped(params, state, x, *, dtype, training, ctx):
        return inner.apply(params["inner"], (), x, dtype=dtype, training=training, ctx=ctx)[0], state

    trainer = train.make(model=Layer(with_ceiling, capped), optimizer=optim.sgd(lr=0.1))
    data = [(X, Y)] * 3
    checked = train.fit(trainer, started(trainer), data, loss=loss.cross_entropy_sparse, check_finite=True)
    assert same_values(checked, train.fit(trainer, started(trainer), data, loss=loss.cross_entropy_sparse))


def test_parameters_that_are_broken_are_named():
    trainer = trainer_of()
    st = started(trainer)
    params = [{"weight": st.vars.params[0]["weight"], "bias": nx.asarray([0.0, np.inf], dtype=nx.float32)}]
    st = train.make_state(trainer, st.vars.with_params(params))
    with pytest.raises(ValueError, match=r"`0`; the parameter `0\.bias` held"):
        train.fit(trainer, st, [(X, Y)], loss=loss.cross_entropy_sparse, check_finite=True)


def test_a_class_that_does_not_exist_is_named_as_a_cause_of_nan():
    trainer = trainer_of()
    with pytest.raises(train.NotFiniteError, match="loss function made it; a class index outside of the classes"):
        train.fit(trainer, started(trainer), [(X, Y + 1)], loss=loss.cross_entropy_sparse, check_finite=True)


def test_a_model_that_is_one_layer_has_no_path_to_report():
    trainer = train.make(model=layer.linear(in_features=3, out_features=2), optimizer=optim.sgd(lr=0.1))
    with pytest.raises(ValueError, match="step 1 is nan; the model's output is not finite; the input held"):
        train.fit(trainer, started(trainer), [(X * np.nan, Y)], loss=loss.cross_entropy_sparse, check_finite=True)


def test_gradient_accumulation_over_parts_of_a_batch_is_a_step_on_the_whole():
    traces = Traces()
    whole, parts = (
        trainer_of(traces.layer(), optimizer=optimizer)
        for optimizer in (optim.adam(lr=0.1), optim.accumulate_gradients(3, optim.adam(lr=0.1)))
    )
    first = train.fit(whole, started(whole), [(X, Y)] * 4, loss=loss.cross_entropy_sparse)
    traces.count = 0
    batches = [(X[i : i + 4], Y[i : i + 4]) for i in (0, 4, 8)] * 4
    second = train.fit(parts, started(parts), batches, loss=loss.cross_entropy_sparse)
    assert traces.count == 1 and int(second.step) == 12 and int(second.opt_state[1][0].step) == 4
    for a, b in zip(ptree.leaves(first.vars.params), ptree.leaves(second.vars.params), strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-6)


def test_prefetched_data_gives_the_same_state():
    trainer = trainer_of()
    st = started(trainer)
    with nx.rng.run(seed=1):
        plain = kn.data.prepare((X, Y), batch_size=4, shuffle=True)
    with nx.rng.run(seed=1):
        prefetched = kn.data.prepare((X, Y), batch_size=4, shuffle=True).prefetch(2)
    assert same_values(*(train.fit(trainer, st, d, loss=loss.cross_entropy_sparse) for d in (plain, prefetched)))


def test_a_state_that_a_step_returned_has_all_its_fields():
    trainer = trainer_of(layer.batch_norm(num_features=2), optimizer=optim.adam(lr=0.1))
    _, st = train.step(trainer, started(trainer), X, loss=cross_entropy(nx.asarray(Y)))
    changed = dataclasses.replace(st, step=nx.asarray(7, dtype=nx.int32))
    assert int(changed.step) == 7 and int(st.step) == 1 and changed.vars is st.vars
    assert st.vars.params[0]["weight"].shape == (3, 2) and int(st.opt_state[0].step) == 1 and "vars=" in repr(st)
    with pytest.raises(AttributeError, match="no attribute 'params'"):
        st.params  # noqa: B018
    copies = (st, pickled(st), copy.copy(st), copy.deepcopy(st))
    again, *others = (train.step(trainer, s, X, loss=cross_entropy(nx.asarray(Y)))[1] for s in copies)
    assert all(same_values(again, other) for other in others)


def pickled(st):
    return pickle.loads(pickle.dumps(st))


def test_states_given_and_shown_stay_valid():
    trainer = trainer_of(optimizer=optim.adam(lr=0.1))
    st = started(trainer)
    before = ptree.map(lambda leaf: leaf.numpy().copy(), st.to_tree())
    shown = []
    train.fit(
        trainer, st, [(X, Y)] * 5, loss=loss.cross_entropy_sparse,
        report=lambda step, loss, state: shown.append((state, ptree.map(lambda t: t.numpy().copy(), state.to_tree()))),
    )  # fmt: skip
    for state, values in [(st, before), *shown]:
        for leaf, value in zip(ptree.leaves(state.to_tree()), ptree.leaves(values), strict=True):
            np.testing.assert_array_equal(leaf.numpy(), value)


def test_a_state_comes_back_from_its_tree():
    trainer = trainer_of(layer.batch_norm(num_features=2), optimizer=optim.adamw(lr=0.1))
    st = train.fit(trainer, started(trainer), [(X, Y)] * 2, loss=loss.cross_entropy_sparse)
    assert same_values(started(trainer, seed=5).with_tree(st.to_tree()), st)


def test_make_state_starts_from_given_variables():
    trainer = trainer_of()
    st = started(trainer)
    again = train.make_state(trainer, st.vars)
    assert again.vars is st.vars and int(again.step) == 0
    with nx.rng.run(seed=1):
        assert not np.array_equal(train.make_state(trainer, st.vars).rng.numpy(), again.rng.numpy())


def test_the_progress_bar_shows_loss_and_speed(capsys):
    trainer = trainer_of()
    train.fit(trainer, started(trainer), [(X, Y)] * 3, loss=loss.cross_entropy_sparse, progress=True)
    printed = capsys.readouterr().out
    assert "3/3" in printed and "loss " in printed and "steps/s" in printed and "0:00:00" in printed


def test_training_in_bfloat16_and_float64_keeps_the_dtype():
    for dtype in (kn.bfloat16, kn.float64):
        trainer = trainer_of(optimizer=optim.adam(lr=0.1))
        st = train.fit(trainer, started(trainer, dtype=dtype), [(X, Y)] * 2, loss=loss.cross_entropy_sparse)
        assert {leaf.dtype for leaf in ptree.leaves(st.vars.params)} == {dtype}


def test_inputs_may_be_tuples_and_mappings():
    def add(params, state, x, *, dtype, training, ctx):
        return x["a"] + x["rest"][0] * params["w"], state

    own = Layer(lambda *, dtype: Vars({"w": nx.ones((3,), dtype=dtype)}, (), dtype), add)
    trainer = train.make(model=own, optimizer=optim.sgd(lr=0.1))
    x = {"a": X, "rest": (X,)}
    value, _ = train.step(trainer, started(trainer), x, loss=nx.mean)
    assert float(value) == pytest.approx(2 * X.mean(), rel=1e-4, abs=1e-6)
    assert train.predict(trainer, started(trainer), x).shape == X.shape


def test_a_state_that_changes_its_structure_is_an_error():
    grow = optim.Transformation(lambda params: (), lambda u, state, params: (u, (*state, nx.ones(()))))
    trainer = trainer_of(optimizer=grow)
    with pytest.raises(ValueError, match=r"train.step: the states before and after the step differ at `2`"):
        train.step(trainer, started(trainer), X, loss=nx.mean)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda t, st: train.step(t, st, X[:, :2], loss=nx.mean), ValueError, r"float32\[12, 2\].*\(in layer 0\)"),
        (lambda t, st: train.step(t, st, X, loss=lambda z: z), ValueError, r"loss of float32\[12, 2\], expected"),
        (lambda t, st: train.step(t, st, X, loss=lambda z: nx.argmax(z)), ValueError, r"loss of int64\[\]"),
        (lambda t, st: train.step(t, st, X, loss=lambda z: float(nx.mean(z))), ValueError, "traced"),
        (lambda t, st: train.fit(t, st, [(X, Y)]), TypeError, r"element 1 is \(x, ndarray\), expected \(x, loss_fn\)"),
        (lambda t, st: train.fit(t, st, [X], loss=loss.mse), TypeError, "element 1 is a ndarray, expected a pair"),
        (lambda t, st: train.make(model=layer.relu, optimizer=optim.sgd(lr=1.0)), TypeError, "expected a Layer"),
        (lambda t, st: train.make(model=layer.relu(), optimizer=0.1), TypeError, "got optimizer float"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    trainer = trainer_of()
    with pytest.raises(error, match=message):
        call(trainer, started(trainer))


def test_the_second_step_gives_back_what_its_state_took_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that is kept for reuse and that no later step of the loop asks for."""
    seen: list[int] = []
    given_back: list[int] = []
    monkeypatch.setattr(buffers, "retained_bytes", lambda: 1 << 40)
    monkeypatch.setattr(buffers, "trim", lambda: given_back.append(len(seen)))
    model = kn.layer.linear(in_features=3, out_features=2)
    trainer = kn.train.make(model=model, optimizer=kn.optim.adam(lr=0.1))
    with nx.rng.run(seed=0):
        st = kn.train.init(trainer)
    data = [(np.ones((4, 3), np.float32), np.zeros((4, 2), np.float32))] * 4
    kn.train.fit(trainer, st, data, loss=loss.mse, report=lambda step, loss, state: seen.append(step))
    assert given_back == [1], "once, after one report"
