"""Makes a `CompiledStep`: traces a trainer's step, prediction, evaluation and first states for one type of batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kaun import execution, nx, optim, ptree, tracing, train
from kaun.arguments import Argument, argument
from kaun.closure import Captured, capture
from kaun.compiled import Spec, argument_of_spec, native_of, result_leaves, target_of, traced
from kaun.compiled_step import CompiledStep, Signature
from kaun.compiler.ir.dtypes import DType, float32, uint32
from kaun.execution import Storage
from kaun.native import TracedNative
from kaun.nx import Tensor
from kaun.ptree import Structure, Tree
from kaun.runtime import target as targets
from kaun.runtime.artifact import Leaf
from kaun.runtime.target import Target
from kaun.training_state import State
from kaun.training_step import (
    RowForm,
    row_form,
    row_paths,
    row_structure,
    traceable_evaluation,
    traceable_prediction,
    traceable_step,
)

if TYPE_CHECKING:
    from kaun.train import Trainer

_KEY, _COUNT, _RATE = Spec((2,), uint32), Spec((), uint32), Spec((), float32)
_EMPTY, _LEAF = ptree.structure(()), ptree.structure(np.zeros(()))


def compile_step(
    trainer: Trainer, *, x: Any, y: Any, loss: Callable[..., Any], ctx: Mapping[str, Any] | None, dtype: DType,
    state: State | None, target: Target | str,
) -> CompiledStep:  # fmt: skip
    """The compiled step; see `train.compile`."""
    wanted = target_of(target)
    first = _first_state(trainer, dtype, state)
    captured = capture(loss)
    batch = _Batch(
        argument_of_spec("x", "x", x),
        _targets(y),
        argument_of_spec("ctx", "context", ptree.Dict(sorted(ctx.items()) if ctx else ())),
    )
    functions = _Functions(trainer, captured, batch, first, wanted)
    functions.trace()
    host_rates = trainer.optimizer.rates if trainer.optimizer.rate_count else None
    made = CompiledStep(functions.signature, functions.natives, wanted, state, host_rates)
    if wanted == targets.host():
        _ = functions.natives["step"].compiled
    return made


@dataclass(frozen=True)
class _Batch:
    """What callers give beside the state."""

    x: Argument
    targets: Argument
    context: Argument


def _targets(y: Any) -> Argument:
    """A tuple of the targets, empty without any."""
    if y is None:
        return Argument("y", _EMPTY, ())
    inner = argument_of_spec("y", "y", y)
    return Argument("y", _tuple_of(inner.structure), inner.leaves)


def _tuple_of(*structures: Structure) -> Structure:
    return ptree.structure(tuple(structure([np.zeros(())] * structure.leaf_count) for structure in structures))


# --- the first state -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _FirstState:
    """What states are, and the traced initialisers with the number of keys they draw; why not, if there are none."""

    form: RowForm
    init: tracing.Traced | None
    draws: int
    problem: str | None = None


def _first_state(trainer: Trainer, dtype: DType, state: State | None) -> _FirstState:
    if state is None:
        return _traced_first_state(trainer, dtype)
    row = state._as_row()
    if row is None:
        raise ValueError("train.compile: the state is being traced and has no numbers")
    form = row[1]
    try:
        found = _traced_first_state(trainer, form.dtype)
    except (ValueError, TypeError) as error:
        return _FirstState(form, None, 0, str(error))
    if found.form is not form:
        return _FirstState(form, None, 0, "the state that was given is not one that the model's initialisers make")
    return found


def _traced_first_state(trainer: Trainer, dtype: DType) -> _FirstState:
    """The state that `train.init` makes in a scope of this key, if `first` children of it were drawn before."""
    draws, dtypes = 0, dtype

    def traceable(key: Tensor, first: Tensor) -> tuple[Tree, Tensor]:
        nonlocal draws, dtypes
        with nx.rng.traced_scope(key, first) as count:
            made = train.init(trainer, dtype=dtype)
            draws, dtypes = count(), made.vars.dtype
        return (made.vars.params, made.vars.state, made.opt_state, made.step), made.rng

    found = traced("train.compile: init", traceable, _INIT)
    structure = found.result.children[0]
    types = tuple(part for node in found.graph.outputs[:-1] for part in (node.dtype, node.shape))
    return _FirstState(row_form(structure, dtypes, types), found, draws)


_INIT = (
    argument("the key", "key", _LEAF, [_KEY]),
    argument("the number of its next child", "first", _LEAF, [_COUNT]),
)


# --- the functions ---------------------------------------------------------------------------------------------------


class _Functions:
    """The native functions of a step, as they are traced one by one, and what they agree on."""

    def __init__(self, trainer: Trainer, captured: Captured, batch: _Batch, first: _FirstState, target: Target):
        self.trainer, self.captured, self.batch, self.first, self.target = trainer, captured, batch, first, target
        self.natives: dict[str, TracedNative] = {}
        self.tensors = execution.realize([tensor._node for tensor in captured.tensors])
        form = first.form
        types = zip(row_paths(form.structure), form.types[::2], form.types[1::2], strict=True)
        self.row = tuple(Leaf(name, dtype, shape) for name, dtype, shape in types)  # type: ignore[arg-type]
        self.signature = Signature(
            form.structure, self.row, form.dtype, batch.x, batch.targets, batch.context,
            trainer.optimizer.rate_count, _LEAF, first.draws, first.problem,
        )  # fmt: skip
        self.params, self.state, self.optimizer = (self.signature.part(position) for position in range(3))

    def trace(self) -> None:
        """All of them."""
        batch, dtype = self.batch, self.first.form.dtype
        self._step()
        given = [self.params, self.state, batch.x, batch.context]
        output = self._add("predict", traceable_prediction(self.trainer, dtype), given, "output")
        self.signature = replace(self.signature, output=output)
        given = [self.params, self.state, batch.x, batch.targets, batch.context]
        self._add("evaluate", traceable_evaluation(self.trainer, self.captured, dtype), given, "loss", self.tensors)
        self._add("start", lambda params: optim.init(self.trainer.optimizer, params), [self.params], "optimizer")
        if self.first.init is not None:
            outputs = (*self.row, self.signature.rng)
            self.natives["init"] = native_of("init", self.first.init, _INIT, outputs, self.target)

    def _step(self) -> None:
        signature, form = self.signature, self.first.form
        rates = argument("the rates", "rates", _tuple_of(*[_LEAF] * signature.rates), [_RATE] * signature.rates)
        row = Argument("the state", row_structure(form.structure), self.row)
        rng = argument("the key", "rng", _LEAF, [_KEY])
        given = [row, rng, rates, self.batch.x, self.batch.targets, self.batch.context]
        step = traceable_step(self.trainer, self.captured, True, form.dtype, form.structure)
        found = self._traced("step", step, given, self.tensors)
        loss, *after = found.graph.outputs
        for leaf, node in zip(self.row, after, strict=True):
            if (node.dtype, node.shape) != (leaf.dtype, leaf.shape):
                raise ValueError(
                    f"train.compile: the step takes {leaf!r} and gives {node.dtype}{list(node.shape)}, expected a "
                    "state of the same types"
                )
        outputs = (Leaf("loss", loss.dtype, loss.shape), *self.row)
        self.natives["step"] = native_of("step", found, given, outputs, self.target, self.tensors)

    def _add(
        self, name: str, function: Callable[..., Any], given: Sequence[Argument], results: str,
        tensors: Sequence[Storage] | None = None,
    ) -> Structure:  # fmt: skip
        """Trace a function; the structure of its result, whose leaves are named below `results`."""
        found = self._traced(name, function, given, tensors)
        outputs = result_leaves(results, found.result, found.graph.outputs)
        self.natives[name] = native_of(name, found, given, outputs, self.target, tensors or ())
        return found.result

    def _traced(
        self, name: str, function: Callable[..., Any], given: Sequence[Argument], tensors: Sequence[Storage] | None
    ) -> tracing.Traced:
        """The function traced; unless that is None, with the tensors that the loss holds as its last argument."""
        if tensors is not None:
            structure = _tuple_of(*[_LEAF] * len(tensors))
            given = [*given, argument("the loss's tensors", "constants", structure, tensors)]
        return traced(f"train.compile: {name}", function, given)
