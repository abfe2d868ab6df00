"""Training steps compiled ahead of their first call, with prediction, evaluation and first states beside them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kaun import execution, nx, ptree, tree_data
from kaun.arguments import Argument
from kaun.compiled import AheadOfTime
from kaun.compiler.ir import Node
from kaun.compiler.ir.dtypes import DType, uint32
from kaun.execution import Array, Storage, computed_leaf
from kaun.layer import Vars
from kaun.native import Native
from kaun.nx import Tensor
from kaun.ptree import Structure, Tree
from kaun.runtime.artifact import Artifact, Leaf
from kaun.runtime.target import Target
from kaun.training_state import State
from kaun.training_step import RowForm, row_form

if TYPE_CHECKING:  # loaded when something is profiled or exported
    from kaun.profiling import Profile
    from kaun.runtime.export import Exported


@dataclass(frozen=True, eq=False)
class Signature:
    """What the functions of a step take and give: enough to call them without model, optimizer and loss.

    state: of (parameters, layer state, optimizer state, steps made); `row` are its leaves; dtype: of the variables.
    x, targets, context: what callers give; `targets` is a tuple of one tree, or of none.
    rates: how many numbers the host computes for a step; output: of the model.
    draws: how many keys the initialisers take from the random scope.
    no_init: why there is no function "init".
    """

    state: Structure
    row: tuple[Leaf, ...]
    dtype: DType
    x: Argument
    targets: Argument
    context: Argument
    rates: int
    output: Structure
    draws: int = 0
    no_init: str | None = None

    @property
    def form(self) -> RowForm:
        """What rows of a state in this order are."""
        return row_form(self.state, self.dtype, tuple(part for leaf in self.row for part in (leaf.dtype, leaf.shape)))

    @property
    def rng(self) -> Leaf:
        return Leaf("rng", uint32, (2,))

    @property
    def variables(self) -> int:
        """How many leaves at the start of a row are parameters and layer state."""
        return sum(child.leaf_count for child in self.state.children[:2])

    def part(self, position: int) -> Argument:
        """The parameters, layer state or optimizer state, as an argument."""
        before = sum(child.leaf_count for child in self.state.children[:position])
        structure = self.state.children[position]
        label = ("the parameters", "the layer state", "the optimizer state")[position]
        return Argument(label, structure, self.row[before : before + structure.leaf_count])


class CompiledStep(AheadOfTime):
    """A training step compiled for one type of batch. It never traces again.

    Called as `step(st, x, y)` it gives (loss, state), with the same bits as `train.step`. States are those of `train`:
    `train.init` makes them too, and `checkpoint` keeps them.

    stages, kernels, memory, cost: of the step, as for a `Compiled`; `functions` has the others' by name.
    initial: the state it was compiled or saved with, if there was one.
    """

    _main = "step"

    def __init__(
        self, signature: Signature, functions: Mapping[str, Native], target: Target, initial: State | None = None,
        host_rates: Callable[[Tree], Sequence[float]] | None = None,
    ):  # fmt: skip
        self.functions, self._target = functions, target
        self._initial = None if initial is None else initial._twin()
        self._signature, self._host_rates = signature, host_rates
        # For each form of state that was seen, where its leaves are in the order of ours; None if they are in order.
        self._orders: dict[RowForm, tuple[int, ...] | None] = {}
        self._form = signature.form

    @property
    def initial(self) -> State | None:
        """The state it was compiled or saved with, if there was one. It stays: what this gives may be given up."""
        return None if self._initial is None else self._initial._twin()

    def __call__(
        self, st: State, x: Any, y: Any = None, *, ctx: Mapping[str, Any] | None = None,
        rates: Sequence[float] | None = None, donate: bool = False,
    ) -> tuple[Tensor, State]:  # fmt: skip
        """(loss, state) after one step on the batch.

        rates: the learning rates of this step, for an optimizer whose schedule is a Python function; computed by that
            where it is known, but it is not in a file.
        donate: give `st` up: the new state may be written over the memory of the old, as far as nobody else holds a
            part of it, and `st` cannot be used any more. Otherwise old states stay valid.

        ValueError or TypeError, naming the argument, for what is not of the types the step was compiled for; nothing
        has run then.
        """
        row, form = self._row("step", st)
        native = self.functions["step"]
        given = self._others(st, x, y, ctx, rates)
        if not donate or row is not st._as_row()[0]:  # type: ignore[index]  # a state that `_row` took is not traced
            value, *after = native(row + given)
            return Tensor(computed_leaf(value)), State._of(after, form, st.rng)
        del row
        owned, others = st._give_up(), given + native.constants
        assert owned is not None
        try:
            ran = native.watched(owned.current()[0], others)
            results = owned.run(native.compiled, others, form)
            if ran is not None:
                ran(results[len(native.probes) :] + owned.current()[0])
            (value,) = native.results(results)
        except BaseException:
            st._take_back(owned)
            raise
        return Tensor(computed_leaf(value)), State._of(*owned.current(), st.rng)

    def _others(
        self, st: State, x: Any, y: Any, ctx: Mapping[str, Any] | None, rates: Sequence[float] | None
    ) -> list[Storage]:
        """What a step takes after the row, but for its constants."""
        given = [*self._rate_storages(st, rates), *self._batch("step", x, y, ctx)]
        return [*self._storages("step", [st.rng._node]), *given]

    def profile(
        self, st: State, x: Any, y: Any = None, *, ctx: Mapping[str, Any] | None = None,
        rates: Sequence[float] | None = None, seconds: float = 1.0,
    ) -> Profile:  # fmt: skip
        """Where the time of a step goes, kernel by kernel, in place as in a loop; see `kaun.profiling.Profile`.

        Steps from a copy of `st` are made for about `seconds`, all with the same batch. The same errors as for a step.
        """
        row, _ = self._row("step", st)
        return self._profile(row + self._others(st, x, y, ctx, rates), seconds)

    def predict(self, st: State, x: Any, *, ctx: Mapping[str, Any] | None = None) -> Any:
        """The model's output for `x` in evaluation mode, as `train.predict` gives it."""
        row, _ = self._row("predict", st)
        nodes = self._signature.x.nodes("step.predict", x) + self._context("predict", ctx)
        results = self.functions["predict"]([*row[: self._signature.variables], *self._storages("predict", nodes)])
        return self._signature.output([Tensor(computed_leaf(storage)) for storage in results])

    def evaluate(self, st: State, x: Any, y: Any = None, *, ctx: Mapping[str, Any] | None = None) -> Tensor:
        """The loss of the batch in evaluation mode; nothing is updated."""
        row, _ = self._row("evaluate", st)
        batch = self._batch("evaluate", x, y, ctx)
        (value,) = self.functions["evaluate"](row[: self._signature.variables] + batch)
        return Tensor(computed_leaf(value))

    def init(self, *, vars: Vars | None = None) -> State:
        """A fresh state from the RNG scope, the one that `train.init` makes there; or one of the given variables.

        ValueError outside of a scope, where the initialisers could not be compiled (a state was given instead), and for
        variables of other structure, shapes or dtypes. With `vars`, the state's key is that of seed 0 outside a scope.
        """
        if vars is not None:
            return self._started(vars)
        native = self.functions.get("init")
        if native is None:
            raise ValueError(f"step.init: there are no compiled initialisers: {self._signature.no_init}")
        key, number = nx.rng.take(self._signature.draws)
        first = Storage.of(np.array(number, np.uint32))
        *row, rng = native([key._node.value, first])
        return State._of(row, self._form, Tensor(computed_leaf(rng)))

    def _started(self, variables: Vars) -> State:
        if not isinstance(variables, Vars):
            raise TypeError(f"step.init: got vars of type {type(variables).__name__}, expected Vars")
        self._check_dtype("init", variables.dtype)
        params, state = self._signature.part(0), self._signature.part(1)
        given = params.nodes("step.init", variables.params) + state.nodes("step.init", variables.state)
        row = self._storages("init", given)
        row += self.functions["start"](row[: params.structure.leaf_count])
        row.append(Storage.of(np.zeros((), np.int32)))
        key = nx.rng.next_key() if nx.rng.in_scope() else nx.rng.key(0)
        return State._of(row, self._form, key)

    # What is given, checked.

    def _row(self, function: str, st: State) -> tuple[list[Storage], RowForm]:
        """The numbers of a state in this step's order, and what they are."""
        if not isinstance(st, State):
            hint = " (the step returns the loss and the state)" if isinstance(st, tuple) else ""
            raise TypeError(f"step.{function}: got a state of type {type(st).__name__}, expected a State{hint}")
        found = st._as_row()
        if found is None:
            raise self._traced(function)
        row, form = found
        if form not in self._orders:
            self._orders[form] = self._checked_order(function, form)
        order = self._orders[form]
        return found if order is None else ([row[position] for position in order], self._form)

    def _checked_order(self, function: str, form: RowForm) -> tuple[int, ...] | None:
        self._check_dtype(function, form.dtype)
        signature = self._signature
        order = tree_data.positions(signature.state, form.structure)
        if order is None:
            raise ValueError(
                f"step.{function}: the state differs from the one it was compiled for at "
                f"{_named_difference(signature.state, form.structure)}"
            )
        for leaf, position in zip(signature.row, order, strict=True):
            dtype, shape = form.types[2 * position], form.types[2 * position + 1]
            if shape != leaf.shape:
                raise ValueError(
                    f"step.{function}: the state at `{leaf.name}`: got shape {list(shape)}, "  # type: ignore[call-overload]
                    f"expected {list(leaf.shape)}"
                )
            if dtype is not leaf.dtype:
                raise TypeError(
                    f"step.{function}: the state at `{leaf.name}`: got dtype {dtype}, expected {leaf.dtype}"
                )
        return None if order == tuple(range(len(order))) else order

    def _check_dtype(self, function: str, dtype: DType) -> None:
        if dtype is not self._signature.dtype:
            raise TypeError(
                f"step.{function}: got variables of dtype {dtype}, expected {self._signature.dtype}"
            )

    def _batch(self, function: str, x: Any, y: Any, ctx: Mapping[str, Any] | None) -> list[Storage]:
        signature, where = self._signature, f"step.{function}"
        nodes = signature.x.nodes(where, x)
        if signature.targets.structure.children:
            if y is None:
                raise TypeError(f"{where}: got no y, expected {_types_text(signature.targets)}")
            nodes += _only(signature.targets).nodes(where, y)
        elif y is not None:
            raise TypeError(f"{where}: got y, expected none: the loss was compiled without")
        return self._storages(function, nodes + self._context(function, ctx))

    def _context(self, function: str, ctx: Mapping[str, Any] | None) -> list[Node]:
        context = self._signature.context
        if not ctx and not context.leaves:
            return []
        return context.nodes(f"step.{function}", ptree.Dict({name: nx.asarray(t) for name, t in (ctx or {}).items()}))

    def _rate_storages(self, st: State, rates: Sequence[float] | None) -> list[Storage]:
        count = self._signature.rates
        if rates is None:
            if not count:
                return []
            if self._host_rates is None:
                raise TypeError(
                    f"step: got no rates, expected {count}: the schedule of the learning rate is a Python function, "
                    "which is not in the file; pass its values for this step"
                )
            rates = self._host_rates(st.opt_state)
        if not count:
            raise ValueError("step: got rates=, expected none: the schedule of the learning rate is compiled in")
        if len(rates) != count:
            raise ValueError(f"step: got {len(rates)} rates, expected {count}: one for each schedule")
        return [Storage.of(np.array(float(rate), np.float32)) for rate in rates]

    def _storages(self, function: str, nodes: Sequence[Node]) -> list[Storage]:
        if all(map(execution.has_value, nodes)):
            return [node.value for node in nodes]
        if execution.is_traced(nodes):
            raise self._traced(function)
        return execution.realize(nodes)

    @staticmethod
    def _traced(function: str) -> ValueError:
        return ValueError(
            f"step.{function}: what is given is being traced and has no numbers; inside a traced function use the one "
            "of kaun.train"
        )

    # What is kept.

    def artifact(self, target: Target | str | None = None, *, state: State | None = None) -> Artifact:
        """The functions as plain data, for the target they were compiled for or compiled anew for another one.

        state: goes along as the initial one; default: `initial`.
        """
        return self._artifact("artifact", target, state)

    def _artifact(self, function: str, target: Target | str | None, state: State | None) -> Artifact:
        """`function`: what errors say the caller called."""
        signature = self._signature
        state = self.initial if state is None else state
        initial = None if state is None else self._numbers(function, state)
        wanted, functions = self._functions(target)
        trees = {
            "state": tree_data.encoded(signature.state),
            "dtype": signature.dtype.name,
            "x": tree_data.encoded(signature.x.structure),
            "targets": tree_data.encoded(signature.targets.structure),
            "context": tree_data.encoded(signature.context.structure),
            "rates": signature.rates,
            "output": tree_data.encoded(signature.output),
            "draws": signature.draws,
            "no_init": signature.no_init,
        }
        return Artifact("step", "step", functions, wanted, trees, self._made_by(), self._state_leaves, initial)

    def save(self, path: str | os.PathLike[str], *, state: State | None = None) -> None:
        """Write the step to a file for `kn.load`: machine code, signature, texts of all stages.

        state: goes along as the initial one, such as a trained one; default: `initial`.

        Atomic: whatever was at `path` is there until the new file is whole. OSError if it cannot be written.
        """
        from kaun import saved

        self.warn_of_probes("step.save")
        saved.save(path, self._artifact("save", None, state), self._sections)

    def export(
        self, directory: str | Path, target: Target | str | None = None, *, state: State | None = None,
        name: str | None = None, initial: str | None = None, threads: int | None = None,
    ) -> Exported:  # fmt: skip
        """Write a folder with the step for C and C++, which needs neither Python nor Kaun where it runs.

        NAME.o is the machine code; NAME.h declares its functions and the layout of the state, NAME.json tells the same
        and more to programs; main.c trains on a file of raw data, CMakeLists.txt builds it. Where there is a C compiler
        for the target, NAME.so and NAME.a are made too.

        target: the machine to compile for, by name or as a Target; default: the one the step was compiled for.
        state: to start from; default: `initial`, else a fresh one from the RNG scope. Outside of a scope there is none,
            and states come from files, which `write_state` and the exported program itself write.
        name: of the files, and in every symbol: `kaun_NAME_run`. Default: "step". Two exports of different names go
            into one program.
        initial: where the state to start from is kept: "embedded" in the object; "file": in NAME.state beside it; or
            None: embedded if what is not zero of it takes at most 4 MiB.
        threads: the most that can share a step, 1 for code without threads; default: 64 where the target has pthreads.

        The program's losses and states have the bits they have in Python on that target, on any number of threads.

        ValueError or TypeError for an argument that cannot be, RuntimeError if the system's linker fails.
        """
        from kaun.runtime import export

        if state is None and self.initial is None and nx.rng.in_scope() and "init" in self.functions:
            state = self.init()
        self.warn_of_probes("step.export")
        artifact = self._artifact("export", target, state)
        return export.export(artifact, directory, name=name, initial=initial, threads=threads)

    def read_state(self, path: str | Path) -> State:
        """The state in a file that an exported program of this step saved. ValueError unless it is one, and whole."""
        from kaun.runtime import export

        try:
            numbers = export.read_state(self._state_leaves, path)
        except ValueError as error:
            raise ValueError(f"step.read_state: {os.fspath(path)}: {error}") from None
        *row, rng = map(Storage.of, numbers)
        return State._of(row, self._form, Tensor(computed_leaf(rng)))

    def write_state(self, st: State, path: str | Path) -> None:
        """Write a file that an exported program of this step loads. ValueError or TypeError for a state of another."""
        from kaun.runtime import export

        export.write_state(self._state_leaves, self._numbers("write_state", st), path)

    @property
    def _state_leaves(self) -> tuple[Leaf, ...]:
        return (*self._signature.row, self._signature.rng)

    def _numbers(self, function: str, st: State) -> tuple[Array, ...]:
        """The arrays of a state, its key included."""
        row, _ = self._row(function, st)
        return tuple(storage.array for storage in row + self._storages(function, [st.rng._node]))

    def __repr__(self) -> str:
        signature = self._signature
        given = ", ".join(f"{leaf!r}" for leaf in (*signature.x.leaves, *signature.targets.leaves))
        return f"<compiled step of {given}: {self._summary()}>"


def _types_text(argument: Argument) -> str:
    return ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in argument.leaves)


def _only(targets: Argument) -> Argument:
    """The one argument in a tuple of one."""
    return Argument("y", targets.structure.children[0], targets.leaves)


def _named_difference(expected: Structure, given: Structure) -> str:
    """Where two structures of states differ, by the names of their parts."""
    for name, one, other in zip(
        ("params", "state", "optimizer", "step"), expected.children, given.children, strict=True
    ):
        found = ptree.difference(one, other, name)
        if found is not None:
            return found
    return "the root"
