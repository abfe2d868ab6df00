"""Training: a model and an optimizer as one compiled step, and the loop around it.

A step is forward pass, loss, gradients, optimizer and new state in one compiled function. It is traced once for each
trainer, kind of input and loss, where losses that differ only in the tensors they captured are the same: a fresh
closure per batch costs no new trace (see `kaun.closure`). A loss is therefore a pure function: what else it does, such
as printing, happens when it is traced.

The random numbers of a step follow from the state alone, its key and its number of steps.
"""

from __future__ import annotations

import math
import os
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kaun import execution, nx, observe, optim, probes, ptree, tracing
from kaun import layer as layers
from kaun.closure import Captured, capture
from kaun.compiled_step import CompiledStep as CompiledStep
from kaun.compiler.ir.dtypes import DType, float32, int32
from kaun.context import Context
from kaun.described import block
from kaun.execution import Storage, computed_leaf
from kaun.finite import NotFiniteError as NotFiniteError
from kaun.finite import Watch, broken_leaves, outputs_by_layer, whole_leaves
from kaun.layer import Layer, Vars
from kaun.nx import Tensor
from kaun.optim import Transformation
from kaun.optim.apply import host_rates
from kaun.optim.control import finite, fold_in
from kaun.ownership import Row
from kaun.progress import Bar
from kaun.ptree import Tree
from kaun.remat import checked_budget
from kaun.runtime import buffers
from kaun.training_state import State as State
from kaun.training_step import (
    PreparedStep,
    RowForm,
    StepFunction,
    forward,
    row_structure,
    traceable_prediction,
    traceable_step,
)

if TYPE_CHECKING:
    from kaun.runtime.target import Target
    from kaun.training_log import TrainingLog

Loss = Callable[..., Tensor]

# Compiled steps a trainer remembers; losses that cannot be told apart by their structure would fill memory otherwise.
_MOST_STEPS = 64


# Memory kept for reuse, beyond what steps ask for, that is worth the time to take it from the system again.
_WORTH_GIVING_BACK = 16 << 20


class EarlyStop(Exception):
    """Raise it in `report` to end `fit`, which then returns the state it has reached."""


@dataclass(frozen=True, eq=False, repr=False)
class Trainer:
    """A model and its optimizer, and the steps compiled for them."""

    model: Layer
    optimizer: Transformation
    memory_budget: int | None = None
    _compiled: OrderedDict[Hashable, tracing.Function] = field(default_factory=OrderedDict, init=False, repr=False)

    def __repr__(self) -> str:
        return block("Trainer(", [f"model={self.model!r}", f"optimizer={self.optimizer!r}"], ")")

    def _remembered(self, key: Hashable, make: Callable[[], tracing.Function]) -> tracing.Function:
        found = self._compiled.get(key)
        if found is None:
            found = self._compiled[key] = make()
            if len(self._compiled) > _MOST_STEPS:
                self._compiled.popitem(last=False)
        return found


def make(*, model: Layer, optimizer: Transformation, memory_budget: int | None = None) -> Trainer:
    """A trainer.

    `memory_budget`: the bytes that intermediate values of the forward pass may take while they wait for the gradient.
    Where that is not enough, some are computed again, see `kaun.remat`; a UserWarning tells the least that is possible.

    TypeError unless it is given a Layer and an optimizer, ValueError for a negative budget.
    """
    if not isinstance(model, Layer):
        raise TypeError(f"train.make: got model {type(model).__name__}, expected a Layer")
    if not isinstance(optimizer, Transformation):
        raise TypeError(f"train.make: got optimizer {type(optimizer).__name__}, expected one of kaun.optim")
    return Trainer(model, optimizer, checked_budget("train.make", memory_budget))


def init(trainer: Trainer, *, dtype: DType = float32) -> State:
    """A fresh state: variables from the model's initialisers, and a key; both draw from the RNG scope."""
    return make_state(trainer, layers.init(trainer.model, dtype=dtype))


def make_state(trainer: Trainer, vars: Vars) -> State:
    """A state that starts from given variables, such as loaded ones.

    The key comes from the RNG scope, or is that of seed 0 outside one.
    """
    try:
        key = nx.rng.next_key()
    except ValueError:
        key = nx.rng.key(0)
    counter = nx.zeros((), dtype=int32)
    if not nx.is_traced(key):
        nx.realize(counter, key)
    return State(vars, optim.init(trainer.optimizer, vars.params), counter, key)


_NO_CONTEXT = ptree.Dict()


# --- one step --------------------------------------------------------------------------------------------------------


def step(
    trainer: Trainer, st: State, x: Any, *, loss: Loss, training: bool = True, ctx: Context | None = None
) -> tuple[Tensor, State]:
    """(loss, state) after one step on the batch `x`: gradients of `loss(model's output)`, and the optimizer's update.

    `loss` gives a scalar. `training=False` applies the layers as in evaluation but still updates the parameters.
    ValueError or TypeError for shapes that do not fit, and for a loss that is not a float scalar.
    """
    _check_given("step", trainer, st)
    _check_loss("step", loss)
    return _step(trainer, st, x, (), loss, training, ctx)


def _check_given(function: str, trainer: object, st: object) -> None:
    if not isinstance(trainer, Trainer) or not isinstance(st, State):
        raise TypeError(
            f"train.{function}: got {type(trainer).__name__} and {type(st).__name__}, expected a Trainer and its State"
            + (" (train.step returns the loss and the state)" if isinstance(st, tuple) else "")
        )


def _check_loss(function: str, loss: object) -> None:
    if not callable(loss):
        raise TypeError(
            f"train.{function}: got a loss of type {type(loss).__name__}, expected a function such as kaun.loss.mse"
        )


def _step(
    trainer: Trainer, st: State, x: Any, targets: tuple[Any, ...], loss: Loss, training: bool, ctx: Context | None
) -> tuple[Tensor, State]:
    """One step with `loss(output, *targets)`."""
    row = st._as_row()
    prepared = None if row is None else _prepared(trainer, *row, st.rng, lambda: st, x, targets, loss, training, ctx)
    if row is None or prepared is None:
        return _part_of_a_trace(trainer, st, x, targets, loss, training, ctx)
    found, others = prepared
    ran = observe.running(found.special.graph, row[0] + others) if observe.observers else None
    outputs = found.special.compiled(row[0] + others)
    if ran is not None:
        ran(outputs)
    value, *after = found.special.results(outputs)
    return Tensor(computed_leaf(value)), State._of(after, found.after, st.rng)


def _prepared(
    trainer: Trainer,
    row: list[Storage],
    form: RowForm,
    rng: Tensor,
    state: Callable[[], State],
    x: Any,
    targets: tuple[Any, ...],
    loss: Loss,
    training: bool,
    ctx: Context | None,
) -> tuple[PreparedStep, list[Storage]] | None:
    """The compiled step for inputs like these, and those of its inputs that follow the row.

    None if it uses what is being traced, and has to become a part of the function that is.
    """
    captured = capture(loss)
    rates = host_rates(trainer.optimizer, state().opt_state) if trainer.optimizer.rate_count else ()
    trees = (rng, rates, _as_input(x), _as_input(targets), _context_tree(ctx), captured.tensors)
    leaves, structure = _leaves(trees)
    others = tracing.known(leaves)
    if others is None:
        nodes = [leaf._node for leaf in leaves]
        if execution.is_traced(nodes):
            return None
        others = execution.realize(nodes)
    compiled = _compiled_step(trainer, captured, training, form)
    found = compiled.prepared(row, form, structure, tracing.types_of(others), trees)
    return None if found is None else (found, others + found.captured)


def _leaves(trees: tuple[Any, ...]) -> tuple[list[Any], Hashable]:
    """The leaves of a step's inputs, and something that is equal for inputs of one structure."""
    rng, rates, x, targets, context, tensors = trees
    if type(x) is Tensor and not context and all([type(target) is Tensor for target in targets]):  # nearly every step
        return [rng, *rates, x, *targets, *tensors], (len(rates), len(targets), len(tensors))
    return ptree.flatten(trees)


def _part_of_a_trace(
    trainer: Trainer, st: State, x: Any, targets: tuple[Any, ...], loss: Loss, training: bool, ctx: Context | None
) -> tuple[Tensor, State]:
    """A step as a part of a function that is being traced."""
    captured = capture(loss)
    leaves, structure = ptree.flatten((st.vars.params, st.vars.state, st.opt_state, st.step))
    rates = host_rates(trainer.optimizer, st.opt_state) if trainer.optimizer.rate_count else ()
    value, after = traceable_step(trainer, captured, training, st.vars.dtype, structure)(
        row_structure(structure)(leaves), st.rng, rates, _as_input(x), _as_input(targets), _context_tree(ctx),
        captured.tensors,
    )  # fmt: skip
    params, state, opt_state, step = structure(list(after.values()))
    return value, State(Vars(params, state, st.vars.dtype), opt_state, step, st.rng)


def _compiled_step(trainer: Trainer, captured: Captured, training: bool, form: RowForm) -> StepFunction:
    def make() -> StepFunction:
        return StepFunction(traceable_step(trainer, captured, training, form.dtype, form.structure))

    if captured.key is None:
        return make()  # traced anew; the program, being equal, is not compiled anew
    key = ("step", training, form.dtype, form.structure, captured.key, probes.is_noting())
    found = trainer._remembered(key, make)
    assert isinstance(found, StepFunction)
    return found


def _as_input(x: Any) -> Any:
    """A tensor, or a tuple or mapping of inputs."""
    if isinstance(x, Tensor):
        return x
    if isinstance(x, tuple):
        return tuple([_as_input(part) for part in x])
    if isinstance(x, Mapping):
        return ptree.Dict({name: _as_input(part) for name, part in x.items()})
    return nx.asarray(x)


def _context_tree(ctx: Context | Mapping[str, Any] | None) -> ptree.Dict:
    if not ctx:
        return _NO_CONTEXT
    return ptree.Dict({name: nx.asarray(tensor) for name, tensor in sorted(ctx.items())})


# --- the loop --------------------------------------------------------------------------------------------------------


def fit(
    trainer: Trainer,
    st: State,
    data: Iterable[Any],
    *,
    loss: Loss | None = None,
    report: Callable[..., object] | None = None,
    ctx: Context | None = None,
    progress: bool = False,
    check_finite: bool = False,
    log_dir: str | os.PathLike[str] | None = None,
) -> State:
    """The state after a step on every element of `data`.

    Elements are `(x, y)` and the loss is `loss(output, y)`; without `loss`, elements are `(x, loss_fn)` and the loss is
    `loss_fn(output)`. `report(step=, loss=, state=)` is called after each step, with `step` counted from 1 in this call
    and `loss` a float; raising `EarlyStop` in it ends training. `progress` shows a live bar with loss, speed and time
    left. An interrupt (Ctrl-C, KeyboardInterrupt) ends training too, also one after the last step: so that nothing is
    lost, the state of the last whole step is returned, and a UserWarning says so. A program that is to end then looks
    at the state's `step`; a second Ctrl-C is an ordinary one. With `check_finite`, a loss that is NaN or infinite
    raises `NotFiniteError`, a ValueError with the number of the step and the path of the first layer whose output was
    not finite; so does a step that makes NaN of parameters with a finite loss. Each step then takes one more pass over
    the state, and keeps the one before it.

    With `log_dir`, TensorBoard's event files are written into that folder: the loss, learning rate and norm of the
    gradients of each step, what was compiled, and kernels' times; see `kaun.training_log`. `kaun plot DIR` draws them.
    The norm takes a pass over the gradients, so such steps are other programs, a little slower, with the same updates.

    Steps run outside of Python's lock, so `data.prefetch()` makes the next batches meanwhile. The state given stays
    valid. TypeError for an element that is not such a pair; a UserWarning if there is no element at all, which is what
    a pipeline that was passed through gives until its `reset`.
    """
    _check_given("fit", trainer, st)
    if loss is not None:
        _check_loss("fit", loss)
    number = 0
    loop = _Loop(trainer, st, ctx, None if log_dir is None else _new_log(log_dir, st))
    watch = Watch(trainer._remembered("whole", lambda: tracing.Function(whole_leaves)), st) if check_finite else None
    del st  # If nobody else has it either, its memory is the loop's from the first step on.
    with Bar(_length(data)) if progress else nullcontext() as bar, loop.logging():
        try:
            for number, element in enumerate(data, 1):
                x, targets, element_loss = _element(number, element, loss)
                before = loop.state() if watch is not None else None
                try:
                    value = loop.step(x, targets, element_loss)
                except probes.CheckError as error:
                    error.step, error.element, error.state = number, element, before
                    error.add_note(f"in step {number} of train.fit")
                    raise
                if watch is not None and before is not None:
                    next_command = _next_command(loss, ctx)
                    if not math.isfinite(float(value)):
                        message, layer = _not_finite(
                            trainer, before, number, float(value), x, targets, element_loss, ctx, next_command
                        )
                        raise NotFiniteError(message, number, layer, before, element)
                    if broken := watch.broken(loop.state()):
                        message = _broken_by_update(number, float(value), broken, next_command)
                        raise NotFiniteError(message, number, None, before, element)
                if bar is not None:
                    bar.advance(value)
                if report is not None:
                    report(step=number, loss=float(value), state=loop.state())
        except EarlyStop:
            return loop.state()
        except KeyboardInterrupt:
            reached = loop.state()
            warnings.warn(
                f"train.fit: interrupted; this is the state after step {int(reached.step)}, and what follows goes on "
                "from it (another Ctrl-C ends the program)",
                stacklevel=2,
            )
            return reached
    if number == 0:
        warnings.warn(
            "train.fit: the data gave no element, so nothing was trained; a pipeline is passed through once: call "
            "data.reset() before the next epoch",
            stacklevel=2,
        )
    return loop.state()


def _new_log(folder: str | os.PathLike[str], st: State) -> TrainingLog:
    from kaun.training_log import TrainingLog  # which most training does without

    return TrainingLog(folder, int(st.step))


class _Loop:
    """A state that steps pass on to each other, in place where nobody else sees it."""

    def __init__(self, trainer: Trainer, st: State, ctx: Context | None, log: TrainingLog | None = None):
        self._trainer, self._rng, self._ctx, self._log = trainer, st.rng, ctx, log
        self._notes: dict[str, float] = {}
        self._row: Row[RowForm] | None = None
        self._steps = 0
        self._given: State | None = st
        self._shown: weakref.ref[State] | None = None

    def state(self) -> State:
        """The state after the last whole step. While somebody keeps it, no step changes what is in it."""
        if self._row is None:
            assert self._given is not None
            return self._given
        state = None if self._shown is None else self._shown()
        if state is None:
            storages, form = self._row.current()
            state = State._of(list(storages), form, self._rng)
            self._shown = weakref.ref(state)
        return state

    def step(self, x: Any, targets: tuple[Any, ...], loss: Loss) -> Tensor:
        """The loss of one more step."""
        row = self._row
        if row is None:
            assert self._given is not None
            found = self._given._as_row()
            if found is None:
                return self._traced_step(x, targets, loss)
            row = Row(list(found[0]), found[1])
            del found
        prepared = _prepared(self._trainer, *row.current(), self._rng, self.state, x, targets, loss, True, self._ctx)
        if prepared is None:
            return self._traced_step(x, targets, loss)
        step, others = prepared
        self._steps += 1
        self._row, self._given, self._shown = row, None, None
        ran = observe.running(step.special.graph, row.current()[0] + others) if observe.observers else None
        compiled, log = step.special.compiled, self._log
        runner = None if log is None else log.runner(compiled)
        outputs = row.run(compiled, others, step.after, runner)
        if ran is not None:
            ran(outputs + row.current()[0])
        (value,) = step.special.results(outputs)
        if log is not None:
            log.step(float(value.array), self._notes)
        wanted = step.special.compiled.executable.program.arena_bytes
        if self._steps == 2 and buffers.retained_bytes() > 1.25 * wanted + _WORTH_GIVING_BACK:
            # What the state took before it was the loop's own. From here on steps write it in place, and ask for
            # intermediates only.
            buffers.trim()
        return Tensor(computed_leaf(value))

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Inside, steps note what the log is to hold, if there is one; it is closed in the end."""
        if self._log is None:
            yield
            return
        try:
            with probes.noting() as self._notes:
                yield
        finally:
            self._log.close()

    def _traced_step(self, x: Any, targets: tuple[Any, ...], loss: Loss) -> Tensor:
        value, self._given = _part_of_a_trace(self._trainer, self.state(), x, targets, loss, True, self._ctx)
        self._row = None
        return value


def _not_finite(
    trainer: Trainer,
    st: State,
    number: int,
    value: float,
    x: Any,
    targets: tuple[Any, ...],
    loss: Loss,
    ctx: Context | None,
    next_command: str,
) -> tuple[str, str | None]:
    """The message for a step from `st` with such a loss, and the layer it blames.

    Both are found by running the step's forward pass again, layer by layer.
    """
    captured = capture(loss)
    dtype = st.vars.dtype
    paths: list[str] = []

    def traceable(
        params: Tree, state: Tree, counter: Tensor, rng: Tensor, x: Any, targets: Any, context: ptree.Dict, tensors: Any
    ) -> tuple[Tensor, ...]:
        with nx.rng.with_key(fold_in(rng, counter)):
            output, _ = forward(trainer, Vars(params, state, dtype), x, True, context)
            captured.rebind(tensors)(output, *targets)
        handed = outputs_by_layer(ptree.leaves(output))
        paths.extend(path for path, _ in handed)
        return tuple(finite(tensor) for _, tensor in handed)

    inputs, context = _as_input(x), _context_tree(ctx)
    flags = tracing.Function(traceable)(
        st.vars.params, st.vars.state, st.step, st.rng, inputs, _as_input(targets), context, captured.tensors
    )
    broken = [path for path, flag in zip(paths, flags, strict=True) if not flag]
    # The model's input, converted to its dtype, is handed to the first layer by no layer.
    layer = next((path for path in broken if path), "" if broken else None)
    if layer is None:
        where = "the outputs of all layers are finite, so the loss function made it"
    elif layer:
        where = f"the first layer with an output that is not finite is `{layer}`"
    else:
        where = "the model's output is not finite"
    sources = (("the input", inputs), ("the targets", (_as_input(targets), captured.tensors)), ("the context", context))
    causes = [f"{name} held NaN or infinity" for name, tree in sources if broken_leaves(tree)]
    causes += [f"the parameter `{path}` held NaN or infinity" for path in broken_leaves(st.vars.params)]
    told = "" if causes else next_command  # There is no op to look for where NaN came from outside.
    if layer is None and not causes:
        causes = ["a class index outside of the classes makes loss.cross_entropy_sparse NaN"]
    return f"train.fit: the loss of step {number} is {value}; " + "; ".join([where, *causes]) + told, layer


def _broken_by_update(number: int, value: float, broken: list[str], next_command: str) -> str:
    """The message for a step with a finite loss that broke these leaves of the state."""
    shown = ", ".join(broken[:3]) + (f" and {len(broken) - 3} more" if len(broken) > 3 else "")
    return (
        f"train.fit: step {number} made NaN or infinity in {shown}, though its loss, {value:.6g}, is finite: what is "
        f"not is a gradient or the optimizer's update{next_command}"
    )


def _next_command(loss: Loss | None, ctx: Context | None) -> str:
    given = ", loss=loss" * (loss is not None) + ", ctx=ctx" * bool(ctx)
    call = f"kn.debug.nan(kn.train.fit, trainer, error.state, [error.element]{given})"
    return f"\n    the op, with this error as `error`: {call}"


def _element(number: int, element: Any, loss: Loss | None) -> tuple[Any, tuple[Any, ...], Loss]:
    """(x, further arguments of the loss, loss) of one element of the data."""
    if not isinstance(element, (tuple, list)) or len(element) != 2:
        raise TypeError(
            f"train.fit: element {number} is a {type(element).__name__}, expected a pair "
            f"{'(x, loss_fn)' if loss is None else '(x, y)'}"
        )
    x, second = element
    if loss is not None:
        return x, (second,), loss
    if not callable(second):
        raise TypeError(
            f"train.fit: element {number} is (x, {type(second).__name__}), expected (x, loss_fn); "
            "for data of (x, y), pass loss="
        )
    return x, (), second


def _length(data: Any) -> int | None:
    length = getattr(data, "length", None)
    if callable(length):
        length = length()
    if length is None and hasattr(data, "__len__"):
        length = len(data)
    return length if isinstance(length, int) else None


def predict(trainer: Trainer, st: State, x: Any, *, ctx: Context | None = None) -> Any:
    """The model's output for `x` in evaluation mode: no dropout, running statistics, nothing updated."""
    _check_given("predict", trainer, st)
    dtype = st.vars.dtype
    compiled = trainer._remembered(
        ("predict", dtype), lambda: tracing.Function(traceable_prediction(trainer, dtype))
    )
    return compiled(st.vars.params, st.vars.state, _as_input(x), _context_tree(ctx))


# --- ahead of time ---------------------------------------------------------------------------------------------------


def compile(
    trainer: Trainer,
    *,
    x: Any,
    y: Any = None,
    loss: Loss,
    ctx: Mapping[str, Any] | None = None,
    dtype: DType = float32,
    state: State | None = None,
    target: Target | str = "host",
) -> CompiledStep:
    """The training step, and prediction, evaluation and the first state beside it, traced and compiled now.

    x, y: the types of a batch and its targets: `kn.spec`s, or trees of them. The loss is `loss(output, y)`, without `y`
        `loss(output)`.
    ctx: the types of the context's tensors by name.
    dtype: of the variables, unless `state` is given, a state that steps are to start from: its numbers go along.
    target: the machine to compile for, by name ("linux-x86_64-v3") or as a `Target`; can be called if it can run here.

        loss = kn.loss.cross_entropy_sparse
        step = kn.train.compile(trainer, x=kn.spec((64, 784)), y=kn.spec(64, kn.int32), loss=loss)
        with nx.rng.run(seed=42):
            st = step.init()
        for x, y in batches:
            value, st = step(st, x, y)
        logits = step.predict(st, x)

    Steps give the same bits as `train.step`. What is wrong in model or loss surfaces here, and so does, as a
    ValueError, a model whose initialisers look at the numbers they draw, unless `state` is given.
    """
    from kaun.traced_step import compile_step

    if not isinstance(trainer, Trainer):
        raise TypeError(f"train.compile: got a trainer of type {type(trainer).__name__}, expected a Trainer")
    if state is not None:
        _check_given("compile", trainer, state)
    _check_loss("compile", loss)
    return compile_step(trainer, x=x, y=y, loss=loss, ctx=ctx, dtype=dtype, state=state, target=target)
