"""All of a training run as one immutable value, which holds its numbers in the row that a compiled step takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kaun import execution, nx, ptree, tracing
from kaun.described import block
from kaun.execution import Storage
from kaun.layer import Vars
from kaun.nx import Tensor
from kaun.ownership import Row
from kaun.ptree import Tree
from kaun.training_step import RowForm, row_form


@dataclass(frozen=True, repr=False)
class State:
    """All of a training run: variables, optimizer state, number of steps made (int32) and random key. Immutable."""

    vars: Vars
    opt_state: Tree
    step: Tensor
    rng: Tensor

    # A state that a step returned holds its numbers in a row, which is what the next step takes; the fields above are
    # made from them when something asks.

    @classmethod
    def _of(cls, storages: list[Storage], form: RowForm, rng: Tensor) -> State:
        state = object.__new__(cls)
        state.__dict__.update(_row=(storages, form), rng=rng)
        return state

    def __getattr__(self, name: str) -> Any:
        row = self.__dict__.get("_row")
        if name not in ("vars", "opt_state", "step"):
            raise AttributeError(f"'State' object has no attribute {name!r}")
        if row is None:
            raise ValueError(
                "train.State: this state was given up to a step with donate=True; use the one that the step returned"
            )
        storages, form = row
        params, state, opt_state, step = form.tensors(storages)
        self.__dict__.update(vars=Vars(params, state, form.dtype), opt_state=opt_state, step=step)
        return self.__dict__[name]

    def _as_row(self) -> tuple[list[Storage], RowForm] | None:
        """The numbers in a row, and what they are; None if a tensor of the state is being traced and has none."""
        found: tuple[list[Storage], RowForm] | None = self.__dict__.get("_row")
        if found is None:
            leaves, structure = ptree.flatten((self.vars.params, self.vars.state, self.opt_state, self.step))
            nodes = [nx.asarray(leaf)._node for leaf in leaves]
            if execution.is_traced(nodes):
                return None
            storages = execution.realize(nodes)
            found = storages, row_form(structure, self.vars.dtype, tracing.types_of(storages))
            self.__dict__["_row"] = found
        return found

    def _twin(self) -> State:
        """Another state of the same numbers: to give one of the two up leaves the other as it is."""
        if "_row" not in self.__dict__:
            return State(self.vars, self.opt_state, self.step, self.rng)
        storages, form = self.__dict__["_row"]
        return State._of(list(storages), form, self.rng)

    def _give_up(self) -> Row[RowForm] | None:
        """The numbers, which this state does not hold any more; None if it is being traced."""
        found = self._as_row()
        if found is None:
            return None
        for name in ("_row", "vars", "opt_state", "step"):
            self.__dict__.pop(name, None)
        return Row(*found)

    def _take_back(self, row: Row[RowForm]) -> None:
        """Be the state of these numbers, after they were given up."""
        self.__dict__["_row"] = row.current()

    def __reduce__(self) -> tuple[Any, ...]:
        return State, (self.vars, self.opt_state, self.step, self.rng)

    def __repr__(self) -> str:
        step = repr(self.step) if nx.is_traced(self.step) else self.step.item()
        parts = [f"vars={self.vars!r}", f"opt_state={ptree.text(self.opt_state)}", f"step={step}"]
        return block("State(", [*parts, f"rng={ptree.text(self.rng)}"], ")")

    def to_tree(self) -> ptree.Dict:
        """The state as a tree: `params`, `state`, `optimizer`, `step`, `rng`."""
        return ptree.Dict(
            params=self.vars.params, state=self.vars.state, optimizer=self.opt_state, step=self.step, rng=self.rng
        )

    def with_tree(self, tree: Tree) -> State:
        """The state with the tensors of a tree that `to_tree` of such a state gave."""
        entries = ptree.as_tree(tree)
        variables = Vars(entries["params"], entries["state"], self.vars.dtype)
        return State(variables, entries["optimizer"], entries["step"], entries["rng"])
