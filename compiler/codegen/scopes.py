"""Where code goes: scopes, the loops and tests around them, and the lanes of a vectorised variable.

A scope is a place where some loop variables have a value. Every expression is emitted in the outermost scope that
binds all the variables it depends on, which is how invariant code leaves loops. For that, the block in front of a loop
is left open until the loop is finished.

One variable may be vectorised: it then stands for `lanes` consecutive values, and expressions that depend on it are
vectors. The tail of such a loop is emitted once more with a constant mask of active lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from llvmlite import ir

from ..schedule.index import Index, Variable
from .arithmetic import I64, lanes_of, splat
from .constants import integer, lane_mask
from .lanes import VectorLoop, lane_step


@dataclass(eq=False)
class Scope:
    """Where some variables are bound; `block` is the end of the code emitted in it so far."""

    variables: frozenset[Variable]
    block: ir.Block | None = None
    memo: dict[Any, ir.Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Lanes:
    """The vectorised variable: how many values at once, and which of them exist.

    active: the number of lanes that exist, a vector of bits that says which, or None for all.
    aligned: whether lane 0 is always at a multiple of `count`.
    """

    variable: Variable
    count: int
    active: int | ir.Value | None = None
    aligned: bool = True

    @property
    def loop(self) -> VectorLoop:
        return VectorLoop(self.variable, self.count, self.aligned)


class Scopes:
    """The scopes of one kernel function, from its entry block inwards."""

    def __init__(self, builder: ir.IRBuilder):
        self.builder = builder
        # The scopes expressions may be emitted in now, and all that are open.
        self.scopes: list[Scope] = [Scope(frozenset())]
        self._open: list[Scope] = list(self.scopes)
        self.bindings: dict[Variable, ir.Value] = {}
        self.lanes: Lanes | None = None

    def bind(self, variable: Variable, value: ir.Value) -> None:
        """Bind a variable for all that is emitted."""
        self.scopes[0].variables |= {variable}
        self.bindings[variable] = value

    @contextmanager
    def scope(self, bindings: dict[Variable, ir.Value], lanes: Lanes | None = None) -> Iterator[Scope]:
        """Bind variables for the code emitted inside; `lanes` says that one of them is vectorised."""
        self.scopes[-1].block = self.builder.block
        scope = Scope(frozenset(bindings))
        outer_lanes = self.lanes
        self.scopes.append(scope)
        self._open.append(scope)
        self.bindings.update(bindings)
        if lanes is not None:
            self.lanes = lanes
        try:
            yield scope
        finally:
            self.scopes.pop()
            self._open.remove(scope)
            self.lanes = outer_lanes

    @contextmanager
    def at(self, scope: Scope) -> Iterator[None]:
        """Emit at the end of an enclosing scope's code."""
        here = self.builder.block
        target = here if scope is self.scopes[-1] else scope.block
        assert target is not None
        position = self.scopes.index(scope)
        inner, self.scopes = self.scopes[position + 1 :], self.scopes[: position + 1]
        self.builder.position_at_end(target)
        try:
            yield
        finally:
            self.scopes = self.scopes + inner
            if target is not here:
                scope.block = self.builder.block
                self.builder.position_at_end(here)

    def advance(self, old: ir.Block, new: ir.Block) -> None:
        """The code that ended in block `old` now ends in `new`."""
        if old is not new:
            for scope in self._open:
                if scope.block is old:
                    scope.block = new

    def loop(
        self,
        variable: Variable | None,
        start: ir.Value | int,
        stop: ir.Value | int,
        step: int,
        carried: Sequence[ir.Value],
        body: Callable[[ir.Value, list[ir.Value]], Sequence[ir.Value]],
        lanes: Lanes | None = None,
    ) -> list[ir.Value]:
        """`for variable in range(start, stop, step)`, at least once; `body(counter, carried) -> carried`.

        Returns the carried values after the loop. A static single iteration makes no loop.
        """
        single = isinstance(start, int) and isinstance(stop, int) and stop - start <= step
        begin = integer(64, start) if isinstance(start, int) else start
        limit = integer(64, stop) if isinstance(stop, int) else stop
        if single:
            with self.scope({variable: begin} if variable else {}, lanes):
                return list(body(begin, list(carried)))
        builder = self.builder
        header = builder.function.append_basic_block("loop")
        after = builder.function.append_basic_block("after")
        with builder.goto_block(header):
            counter = builder.phi(I64)
            phis = [builder.phi(value.type) for value in carried]
        with self.scope({variable: counter} if variable else {}, lanes):
            builder.position_at_end(header)
            results = list(body(counter, list(phis)))
            following = builder.add(counter, integer(64, step), flags=("nsw",))
            builder.cbranch(builder.icmp_signed("<", following, limit), header, after)
            latch = builder.block
        before = self._close(header, after)
        counter.add_incoming(begin, before)
        counter.add_incoming(following, latch)
        for phi, initial, result in zip(phis, carried, results, strict=True):
            phi.add_incoming(initial, before)
            phi.add_incoming(result, latch)
        return results

    def _close(self, enter: ir.Block, after: ir.Block, condition: ir.Value | None = None) -> ir.Block:
        """End the open block in front of an inner construct: go to `enter` (or past it), continue in `after`."""
        before = self.scopes[-1].block
        assert before is not None
        self.builder.position_at_end(before)
        if condition is None:
            self.builder.branch(enter)
        else:
            self.builder.cbranch(condition, enter, after)
        self.builder.position_at_end(after)
        self.advance(before, after)
        return before

    def when(self, condition: ir.Value, body: Callable[[], object]) -> None:
        """`if condition: body()`; invariant code that the body needs is emitted in front of the test."""
        function = self.builder.function
        then, after = function.append_basic_block("then"), function.append_basic_block("after")
        with self.scope({}):
            self.builder.position_at_end(then)
            body()
            self.builder.branch(after)
        self._close(then, after, condition)

    # What was emitted before

    def home(self, variables: frozenset[Variable]) -> Scope:
        """The innermost scope that binds one of the variables: where what depends on them goes."""
        for scope in reversed(self.scopes):
            if scope.variables & variables:
                return scope
        return self.scopes[0]

    def remembered(self, key: Any, variables: frozenset[Variable], emit: Callable[[], ir.Value]) -> ir.Value:
        """What `emit` gives, emitted once, where what depends on these variables goes."""
        home = self.home(variables)
        found = home.memo.get(key)
        if found is None:
            with self.at(home):
                found = emit()
            home.memo[key] = found
        return found

    # Lanes

    def varies(self, variables: frozenset[Variable]) -> bool:
        """Whether the vectorised variable is one of these."""
        return self.lanes is not None and self.lanes.variable in variables

    def spread(self, value: ir.Value) -> ir.Value:
        """The value in all lanes (itself if it is a vector or nothing is vectorised)."""
        if self.lanes is None or lanes_of(value):
            return value
        return splat(self.builder, value, self.lanes.count)

    def active_mask(self) -> ir.Value | None:
        """The lanes that exist, None for all."""
        if self.lanes is None or self.lanes.active is None:
            return None
        if not isinstance(self.lanes.active, int):
            return self.lanes.active
        return lane_mask(i < self.lanes.active for i in range(self.lanes.count))

    def lane_step(self, index: Index) -> int | None:
        """By how much the index grows from lane to lane, None if that is not one number."""
        return 0 if self.lanes is None else lane_step(index, self.lanes.loop)
