"""`kn.train.compile`: the training step ahead of time computes what `train.step` does, and never traces again."""

from typing import NamedTuple

import numpy as np
import pytest
from kaun.runtime import target as targets
from kaun.runtime.cache import default_cache
from kaun.runtime.program import Executable

import kaun as kn
from kaun import nx


def model():
    return kn.layer.sequential(
        [
            kn.layer.linear(in_features=6, out_features=9),
            kn.layer.batch_norm(num_features=9),
            kn.layer.relu(),
            kn.layer.dropout(rate=0.3),
            kn.layer.linear(in_features=9, out_features=3),
        ]
    )


def trainer(**keywords):
    schedule = kn.optim.schedule.cosine_decay(init_value=0.01, decay_steps=20)
    return kn.train.make(
        model=keywords.get("model", model()), optimizer=keywords.get("optimizer", kn.optim.adamw(lr=schedule))
    )


def compiled(made, **keywords):
    given = {"x": kn.spec((8, 6)), "y": kn.spec(8, kn.int32), "loss": kn.loss.cross_entropy_sparse}
    return kn.train.compile(made, **{**given, **keywords})


def batches(count, seed=0):
    generator = np.random.default_rng(seed)
    for _ in range(count):
        yield generator.normal(size=(8, 6)).astype(np.float32), generator.integers(0, 3, 8).astype(np.int32)


def numbers(state):
    return {path: leaf.numpy() for path, leaf in kn.ptree.flatten_with_paths(state.to_tree())}


def assert_same(first, second):
    one, other = numbers(first), numbers(second)
    assert one.keys() == other.keys()
    for path, array in one.items():
        assert array.dtype == other[path].dtype and array.tobytes() == other[path].tobytes(), path


def fresh(make):
    with nx.rng.run(seed=7):
        return make()


def test_steps_have_the_bits_of_train_step_with_batch_norm_dropout_and_a_schedule():
    made = trainer()
    step = compiled(made)
    mine, theirs = fresh(step.init), fresh(lambda: kn.train.init(made))
    assert_same(mine, theirs)
    for x, y in batches(6):
        value, mine = step(mine, x, y)
        expected, theirs = kn.train.step(made, theirs, x, loss=lambda out, y=y: kn.loss.cross_entropy_sparse(out, y))
        assert value.numpy().tobytes() == expected.numpy().tobytes()
        assert_same(mine, theirs)
        assert step.predict(mine, x).numpy().tobytes() == kn.train.predict(made, theirs, x).numpy().tobytes()
        evaluated = kn.loss.cross_entropy_sparse(kn.train.predict(made, theirs, x), nx.asarray(y))
        np.testing.assert_allclose(float(step.evaluate(mine, x, y)), float(evaluated), rtol=1e-6)


def test_initialisers_draw_what_train_init_draws_wherever_the_scope_stands():
    made = trainer()
    step = compiled(made)
    drawn = []
    for make in (step.init, lambda: kn.train.init(made)):
        with nx.rng.run(seed=3):
            nx.rng.normal(4)
            drawn.append((make(), make(), nx.rng.next_key().tolist()))
    assert_same(drawn[0][0], drawn[1][0])
    assert_same(drawn[0][1], drawn[1][1])
    assert drawn[0][2] == drawn[1][2]
    with pytest.raises(ValueError, match="no random scope"):
        step.init()


def test_nothing_is_traced_or_compiled_by_a_step():
    calls = []

    def counting(output, y):
        calls.append(None)
        return kn.loss.cross_entropy_sparse(output, y)

    step = compiled(trainer(), loss=counting)
    st = fresh(step.init)
    for x, y in batches(1):
        step(st, x, y), step.predict(st, x), step.evaluate(st, x, y)
    traced, made = len(calls), default_cache().statistics.compiled
    for x, y in batches(5):
        _, st = step(st, x, y)
        step.predict(st, x), step.evaluate(st, x, y)
    assert (len(calls), default_cache().statistics.compiled) == (traced, made)


def test_a_state_of_given_variables_starts_where_make_state_does():
    made = trainer()
    step = compiled(made)
    variables = fresh(lambda: kn.layer.init(made.model))
    assert_same(fresh(lambda: step.init(vars=variables)), fresh(lambda: kn.train.make_state(made, variables)))
    assert_same(step.init(vars=variables), kn.train.make_state(made, variables))
    narrow = fresh(lambda: kn.layer.init(made.model, dtype=kn.float16))
    with pytest.raises(TypeError, match="variables of dtype float16, expected float32"):
        step.init(vars=narrow)


def test_a_python_schedule_is_asked_at_each_step_or_given_its_value():
    asked = []

    def rate(step):
        asked.append(step)
        return 0.1 / step

    made = trainer(optimizer=kn.optim.sgd(lr=rate))
    step = compiled(made)
    mine = theirs = by_hand = fresh(step.init)
    for number, (x, y) in enumerate(batches(3), 1):
        _, mine = step(mine, x, y)
        _, by_hand = step(by_hand, x, y, rates=[0.1 / number])
        _, theirs = kn.train.step(made, theirs, x, loss=lambda out, y=y: kn.loss.cross_entropy_sparse(out, y))
    assert asked == [1, 1, 2, 2, 3, 3]
    assert_same(mine, theirs)
    assert_same(by_hand, theirs)
    assert [leaf.name for leaf in step.artifact().function("step").inputs][-3:] == ["rates.0", "x", "y"]
    with pytest.raises(ValueError, match="got 2 rates, expected 1"):
        step(mine, x, y, rates=[0.1, 0.2])


def test_old_states_stay_valid():
    step = compiled(trainer())
    states = [fresh(step.init)]
    for x, y in batches(4):
        _, st = step(states[-1], x, y)
        states.append(st)
    kept = [numbers(st) for st in states]
    for (x, y), st, after in zip(batches(4), states, kept[1:], strict=False):
        _, again = step(st, x, y)
        assert all(array.tobytes() == after[path].tobytes() for path, array in numbers(again).items())


def test_a_donated_state_is_written_over_except_for_what_somebody_holds():
    step = compiled(trainer())
    plain = st = fresh(step.init)
    (x, y), *rest = batches(4)
    _, plain = step(plain, x, y)
    _, st = step(st, x, y)
    weight = st.vars.params[0]["weight"]
    before, address = weight.numpy().copy(), st._as_row()[0][1].address
    given_up = st
    for x, y in rest:
        _, plain = step(plain, x, y)
        _, st = step(st, x, y, donate=True)
    assert_same(st, plain)
    assert weight.numpy().tobytes() == before.tobytes()
    assert st._as_row()[0][1].address == address  # the bias, which nobody else held
    for use in (lambda: given_up.vars, lambda: given_up.step, lambda: step(given_up, x, y)):
        with pytest.raises(ValueError, match="given up to a step with donate=True"):
            use()


def test_the_state_that_a_step_was_compiled_with_stays_when_it_is_given_up(tmp_path):
    made = trainer()
    st = fresh(lambda: kn.train.init(made))
    before = numbers(st)
    step = compiled(made, state=st)
    step.save(tmp_path / "before")
    runs = []
    for begin in (step.initial, st, step.initial):
        losses, after = [], begin
        for x, y in batches(3):
            value, after = step(after, x, y, donate=True)
            losses.append(float(value))
        runs.append(losses)
        with pytest.raises(ValueError, match="given up to a step with donate=True"):
            _ = begin.vars
        assert all(array.tobytes() == before[path].tobytes() for path, array in numbers(step.initial).items())
    assert runs[0] == runs[1] == runs[2]
    step.save(tmp_path / "after")
    assert (tmp_path / "after").read_bytes() == (tmp_path / "before").read_bytes()


def test_an_interrupted_step_gives_a_donated_state_back(monkeypatch):
    step = compiled(trainer())
    x, y = next(batches(1))
    _, st = step(fresh(step.init), x, y)
    before = numbers(st)
    start = Executable.start

    def interrupted(self, record):
        raise KeyboardInterrupt

    monkeypatch.setattr(Executable, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        step(st, x, y, donate=True)
    assert all(array.tobytes() == before[path].tobytes() for path, array in numbers(st).items())

    def interrupted_late(self, record):
        start(self, record)
        raise KeyboardInterrupt

    monkeypatch.setattr(Executable, "start", interrupted_late)
    with pytest.raises(KeyboardInterrupt):
        step(st, x, y, donate=True)
    monkeypatch.undo()
    assert int(st.step) == 2  # the step as a whole


class Pair(NamedTuple):
    left: object
    right: object


def test_batches_targets_contexts_and_outputs_may_be_trees():
    inner = kn.layer.linear(in_features=6, out_features=3)

    def apply(params, state, x, *, dtype, training, ctx):
        y, state = inner.apply(params, state, x["image"] * ctx["mask"], dtype=dtype, training=training, ctx=ctx)
        return Pair(y, (x["extra"][0] + 1,)), state

    def loss(output, y):
        return kn.loss.mse(output.left, y[0]) + nx.mean(output.right[0] * y[1]["scale"])

    made = trainer(model=kn.layer.Layer(inner.init, apply), optimizer=kn.optim.sgd(lr=0.1))
    step = kn.train.compile(
        made,
        x={"image": kn.spec((8, 6)), "extra": (kn.spec(2),)},
        y=(kn.spec((8, 3)), {"scale": kn.spec(())}),
        loss=loss,
        ctx={"mask": kn.spec((8, 6))},
    )
    st = fresh(step.init)
    ones = np.ones
    x = {"extra": (ones(2, "float32"),), "image": ones((8, 6), "float32")}  # in another order
    y, ctx = (ones((8, 3), "float32"), {"scale": 0.5}), {"mask": nx.ones((8, 6))}
    value, after = step(st, x, y, ctx=ctx)
    expected, theirs = kn.train.step(
        made, st, x, loss=lambda out: loss(out, (nx.ones((8, 3)), {"scale": nx.asarray(0.5)})), ctx=ctx
    )
    np.testing.assert_allclose(float(value), float(expected), rtol=1e-6)
    output = step.predict(after, x, ctx=ctx)
    assert type(output) is Pair and output.left.shape == (8, 3)
    names = [leaf.name for leaf in step.artifact().function("step").arguments]
    assert names == [
        "params.weight", "params.bias", "step", "rng", "x.image", "x.extra.0", "y.0", "y.1.scale", "context.mask",
    ]  # fmt: skip
    np.testing.assert_allclose(after.vars.params["weight"].numpy(), theirs.vars.params["weight"].numpy(), rtol=1e-6)


X, Y = np.zeros((8, 6), np.float32), np.zeros(8, np.int32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda step, st: step(st, X[:, :4], Y), ValueError, r"step.step: x: got shape \[8, 4\], expected \[8, 6\]"),
        (lambda step, st: step(st, X.astype(np.float64), Y), TypeError, "x: got dtype float64, expected float32"),
        (lambda step, st: step(st, X, Y.astype(np.int64)), TypeError, "y: got dtype int64, expected int32"),
        (lambda step, st: step(st, X), TypeError, r"got no y, expected int32\[8\]"),
        (lambda step, st: step(st, {"x": X}, Y), TypeError, "step.step: x: .*got dict"),
        (lambda step, st: step((0.0, st), X, Y), TypeError, "the step returns the loss and the state"),
        (lambda step, st: step.predict(st, X[:3]), ValueError, r"step.predict: x: got shape \[3, 6\]"),
        (lambda step, st: step.evaluate(st, X, Y[:2]), ValueError, r"step.evaluate: y: got shape \[2\]"),
        (lambda step, st: step(st, X, Y, ctx={"mask": X}), ValueError, "step.step: ctx differs from its spec"),
        (lambda step, st: step(st, (X, Y)), TypeError, r"step.step: x: got a tuple, expected float32\[8, 6\]"),
        (lambda step, st: step(st, X, Y, rates=[1.0]), ValueError, "got rates=, .* is compiled in"),
        (
            lambda step, st: step(kn.train.State(st.vars, (), st.step, st.rng), X, Y),
            ValueError,
            "the state differs .* at `optimizer`",
        ),
        (
            lambda step, st: step(kn.train.State(st.vars, st.opt_state, st.step * 1.0, st.rng), X, Y),
            TypeError,
            "the state at `step`: got dtype float32, expected int32",
        ),
        (
            lambda step, st: step(
                kn.train.State(st.vars.with_params(kn.ptree.map(lambda p: p[:2], st.vars.params)),
                               st.opt_state, st.step, st.rng), X, Y
            ),
            ValueError,
            r"the state at `params.0.weight`: got shape \[2, 9\], expected \[6, 9\]",
        ),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named_before_anything_runs(call, error, message):
    step = compiled(trainer())
    st = fresh(step.init)
    with pytest.raises(error, match=message):
        call(step, st)


def test_a_model_whose_initialiser_looks_at_its_numbers_starts_from_a_state():
    def looking(shape, dtype):
        drawn = nx.rng.normal(shape, dtype=dtype)
        return drawn / float(nx.max(drawn))

    made = trainer(
        model=kn.layer.linear(in_features=6, out_features=3, weight_init=looking), optimizer=kn.optim.sgd(lr=0.1)
    )
    with pytest.raises(ValueError, match="being traced and has no numbers"):
        compiled(made)
    st = fresh(lambda: kn.train.init(made))
    step = compiled(made, state=st)
    assert_same(step.initial, st)
    x, y = next(batches(1))
    value, _ = step(step.initial, x, y)
    assert np.isfinite(float(value))
    with pytest.raises(ValueError, match=r"no compiled initialisers: .*being traced"):
        fresh(step.init)


def test_inside_a_traced_function_steps_refuse_and_compiled_functions_become_a_part():
    step = compiled(trainer())
    st = fresh(step.init)
    with pytest.raises(ValueError, match="is being traced and has no numbers"):
        kn.jit(lambda x: step.predict(st, x))(nx.ones((8, 6)))
    offset = nx.asarray(np.arange(3, dtype=np.float32))
    shifted = kn.compile(lambda x: nx.tanh(x) + offset, kn.spec(3))
    x = nx.asarray([0.1, 0.2, 0.3])
    gradient = kn.grad(lambda x: nx.sum(shifted(x) ** 2))(x)
    expected = kn.grad(lambda x: nx.sum((nx.tanh(x) + offset) ** 2))(x)
    np.testing.assert_allclose(gradient.numpy(), expected.numpy(), rtol=1e-6)


def test_the_artifact_says_what_each_function_takes_and_gives():
    artifact = compiled(trainer()).artifact()
    assert artifact.target == targets.host() and artifact.initial is None
    state = [leaf.name for leaf in artifact.state]
    step, predict, evaluate, start, init = artifact.functions
    assert [leaf.name for leaf in step.inputs] == [*state, "x", "y"]
    assert [leaf.name for leaf in step.outputs] == ["loss", *state[:-1]]
    parts = [name for name in state if name.startswith(("params", "state"))]
    assert [leaf.name for leaf in predict.inputs] == [*parts, "x"]
    assert [leaf.name for leaf in evaluate.inputs] == [*parts, "x", "y"]
    assert [leaf.name for leaf in init.inputs] == ["key", "first"]
    assert [leaf.name for leaf in init.outputs] == state
    assert all(leaf.name.startswith("optimizer") for leaf in start.outputs)
    for function in artifact.functions:
        arrays = [(leaf.dtype, leaf.shape) for leaf in function.inputs]
        assert arrays == [(array.dtype, array.shape) for array in function.program.inputs]
        assert len(function.outputs) == len(function.program.results)


def test_a_step_for_another_machine_is_an_artifact_but_cannot_be_called():
    step = compiled(trainer(), target="linux-riscv64")
    assert step.artifact().target.architecture == "riscv64"
    assert step.kernels and step.memory.arena > 0
    st = fresh(lambda: kn.train.init(trainer()))
    x, y = next(batches(1))
    with pytest.raises(ValueError, match=r"compiled for riscv64-.*cannot run on"):
        step(st, x, y)
