"""One training step as a function of a row: the leaves of a state side by side, as a compiled program takes them.

The structure of a state, its types and the program for it stay the same from step to step, so a step flattens nothing:
it looks up the program by the types of what is new, the batch, and hands over the row of the step before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kaun import layer as layers
from kaun import nx, optim, probes, ptree, tracing
from kaun.closure import Captured
from kaun.compiler.ir import KeptGraph, source
from kaun.compiler.ir.dtypes import DType
from kaun.context import Context
from kaun.execution import Storage, computed_leaf
from kaun.gradients import value_and_grad
from kaun.layer import Vars
from kaun.nx import Tensor
from kaun.optim.apply import traced_step
from kaun.optim.control import fold_in
from kaun.optim.transformation import norm
from kaun.ptree import Structure, Tree
from kaun.remat import remat

if TYPE_CHECKING:
    from kaun.train import Trainer

# Kinds of input a step remembers the programs of; what each is, the function itself knows too.
_MOST_FORMS = 128


@dataclass(frozen=True, eq=False)
class RowForm:
    """What a row is, without its numbers; equal forms are one object, which `row_form` gives.

    structure: of (parameters, state, optimizer state, steps made); dtype: of the variables; types: of the leaves.
    """

    structure: Structure
    dtype: DType
    types: tuple[Hashable, ...]

    def tensors(self, storages: list[Storage]) -> tuple[Tree, Tree, Tree, Tensor]:
        """(parameters, state, optimizer state, steps made)"""
        parts: tuple[Tree, Tree, Tree, Tensor] = self.structure([Tensor(computed_leaf(s)) for s in storages])
        return parts


@functools.lru_cache(maxsize=256)
def row_form(structure: Structure, dtype: DType, types: tuple[Hashable, ...]) -> RowForm:
    """The one object for rows like this."""
    return RowForm(structure, dtype, types)


def row_paths(structure: Structure) -> list[str]:
    """What the leaves of such a state are called, such as "params.0.weight": the paths of `State.to_tree`."""
    parts = ("params", "state", "optimizer", "step")
    split = [path.partition(".") for path in structure.paths]
    return [parts[int(part)] + dot + rest for part, dot, rest in split]


@functools.lru_cache(maxsize=256)
def row_structure(structure: Structure) -> Structure:
    """The structure of a Dict of all leaves of such a state, whose keys are the names of a step's inputs."""
    names = [path.replace(".", "/") for path in row_paths(structure)]
    if len(set(names)) < len(names):  # a name with a slash in it
        names = [f"{number}/{name}" for number, name in enumerate(names)]
    return ptree.structure(ptree.Dict({name: np.zeros(()) for name in names}))


@dataclass(frozen=True, eq=False)
class PreparedStep:
    """A step for states and inputs of one form: what it runs, and the form of the state after it."""

    special: tracing.Specialisation
    captured: list[Storage]
    after: RowForm


# What the trees after the row hold, in the order in which a step takes them.
_OTHERS = {"1": "rng", "2": "rate", "3": "x", "4": "y", "5": "context", "6": "loss"}


def _named(kept: KeptGraph, structure: Structure) -> KeptGraph:
    """The graph of a step whose inputs are called as in its state, and as the other arguments."""
    row = row_paths(structure)
    others = []
    for name in kept.input_names[len(row) :]:
        part, dot, rest = name.partition(".")
        others.append(_OTHERS.get(part, part) + dot + rest)
    return kept.named((*row, *others))


class StepFunction(tracing.Function):
    """A training step, which finds its program by the form of a row and the types of the other inputs."""

    def __init__(self, function: Callable[..., Any]):
        super().__init__(function)
        self._prepared: dict[Hashable, PreparedStep] = {}

    def prepared(
        self, row: list[Storage], form: RowForm, others: Hashable, types: tuple[Hashable, ...], trees: tuple[Any, ...]
    ) -> PreparedStep | None:
        """The step for this row and the trees, whose structure `others` and `types` tell.

        None if the function uses what is being traced by another.
        """
        key = (form, others, types)
        found = self._prepared.get(key)
        if found is None:
            made = row_structure(form.structure)([Tensor(computed_leaf(storage)) for storage in row])
            leaves, structure = ptree.flatten((made, *trees))
            special = self._specialise(structure, [leaf._node for leaf in leaves])
            if special is None:
                return None
            special = special._replace(kept=_named(special.kept, form.structure))
            first = len(special.probes) + 1
            after = tuple(part for array in special.compiled.types[first:] for part in (array.dtype, array.shape))
            found = PreparedStep(special, list(special.captured), row_form(form.structure, form.dtype, after))
            if len(self._prepared) >= _MOST_FORMS:
                self._prepared.clear()
            self._prepared[key] = found
        return found


def traceable_step(
    trainer: Trainer, captured: Captured, training: bool, dtype: DType, structure: Structure
) -> Callable[..., Any]:
    """The step as a function of the leaves of a state, in a row, and of trees."""
    in_a_row = row_structure(structure)

    def traceable(
        row: ptree.Dict,
        rng: Tensor,
        rates: tuple[Tensor, ...],
        x: Any,
        targets: tuple[Any, ...],
        context: ptree.Dict,
        tensors: tuple[Tensor, ...],
    ) -> tuple[Tensor, ptree.Dict]:
        before = params, state, opt_state, counter = structure(row.values())
        loss = captured.rebind(tensors)

        def objective(params: Tree) -> tuple[Tensor, Tree]:
            output, after = forward(trainer, Vars(params, state, dtype), x, training, context)
            return _scalar(loss(output, *targets)), after.state

        budget = trainer.memory_budget
        frugal = objective if budget is None else remat(objective, budget=budget)
        with nx.rng.with_key(fold_in(rng, counter)):
            (value, new_state), grads = value_and_grad(frugal, has_aux=True)(params)
        if probes.is_noting():
            probes.note("gradient_norm", norm(ptree.leaves(grads))._node)
        with source.phase("update"):
            updates, new_opt_state = traced_step(trainer.optimizer, opt_state, params, grads, rates)
            new_params = optim.apply_updates(params, updates)
        after = new_params, new_state, new_opt_state, counter + 1
        found = ptree.difference(structure, ptree.structure(after))
        if found is not None:
            raise ValueError(f"train.step: the states before and after the step differ at {found}")
        return value, in_a_row(ptree.leaves(ptree.map2(lambda _, new: new, before, after)))

    return traceable


def traceable_prediction(trainer: Trainer, dtype: DType) -> Callable[..., Any]:
    """The model's output in evaluation mode, as a function of trees."""

    def traceable(params: Tree, state: Tree, x: Any, context: ptree.Dict) -> Any:
        return forward(trainer, Vars(params, state, dtype), x, False, context)[0]

    return traceable


def traceable_evaluation(trainer: Trainer, captured: Captured, dtype: DType) -> Callable[..., Any]:
    """The loss in evaluation mode, as a function of trees."""

    def traceable(
        params: Tree, state: Tree, x: Any, targets: tuple[Any, ...], context: ptree.Dict, tensors: tuple[Tensor, ...]
    ) -> Tensor:
        output, _ = forward(trainer, Vars(params, state, dtype), x, False, context)
        return _scalar(captured.rebind(tensors)(output, *targets))

    return traceable


def forward(trainer: Trainer, variables: Vars, x: Any, training: bool, context: ptree.Dict) -> tuple[Any, Vars]:
    """The model applied in a function being traced."""
    return layers.apply(trainer.model, variables, x, training=training, ctx=Context(context) if context else None)


def _scalar(value: Any) -> Tensor:
    tensor = nx.asarray(value)
    if tensor.shape != () or not tensor.dtype.is_float:
        raise ValueError(
            f"train.step: got a loss of {tensor.dtype}{list(tensor.shape)}, expected a float scalar; "
            "take its mean or sum"
        )
    return tensor
