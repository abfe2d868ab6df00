"""Column sums of a contraction: of its right operand over the depth, beside the products, and finished like them.

    for panel of nr columns:                       in scratch memory, or in place where B is read so
      for p in the k block step PARTIAL:           rows p, p + 1, ... each into sums of their own: additions in flight
        partial[p % PARTIAL] += B[p, panel]
      sums[panel] (+)= the partial ones, added in pairs

The chunks with the first rows do this right after their tiles have read the same elements. A sum's order depends on the
plan alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

from llvmlite import ir

from .contraction_blocking import Blocking, Contraction
from .control_flow import carried_loop, counted_loop, index, offset
from .micro_kernel import element_type, load_vector
from .vector_target import element_bits

# finish(builder, batch, n, sums, valid): store what becomes of the sums of columns n to n + valid - 1.
FinishColumns = Callable[[ir.IRBuilder, ir.Value, ir.Value, ir.Value, int], None]

_IN_FLIGHT = 8  # additions that do not wait for one another: two in a cycle, four cycles each


@dataclass(frozen=True)
class ColumnSums:
    """Sums of a block's columns. `sums` holds one for each column, padded to whole panels."""

    builder: ir.IRBuilder
    contraction: Contraction
    blocking: Blocking
    sums: ir.Value

    @property
    def scalar(self) -> ir.Type:
        return element_type(self.contraction.element)

    @property
    def vector(self) -> ir.Type:
        return ir.VectorType(self.scalar, self.blocking.lanes)

    @property
    def bytes(self) -> int:
        return element_bits(self.contraction.element) // 8

    @property
    def accumulates(self) -> bool:
        """Whether there are several k blocks to add up."""
        return self.contraction.k > self.blocking.kc

    def clear(self) -> None:
        """Start with zeros, where k blocks add up."""
        if not self.accumulates:
            return
        padded, lanes = -(-self.blocking.nc // self.blocking.nr) * self.blocking.nr, self.blocking.lanes
        with counted_loop(self.builder, 0, padded, lanes, name="sums.clear") as at:
            self.builder.store(ir.Constant(self.vector, None), self._place(at), align=lanes * self.bytes)

    def add(self, panel: Callable[[ir.Value], ir.Value], k_count: ir.Value, n_count: ir.Value) -> None:
        """Add the rows of one k block; panel(j) points to the first one's element in column j of the block."""
        builder, nr, lanes = self.builder, self.blocking.nr, self.blocking.lanes
        rest = self.contraction.n % nr
        whole = builder.sub(n_count, builder.urem(n_count, index(nr))) if rest else n_count
        if self.contraction.n >= nr:
            with counted_loop(builder, 0, whole, nr, name="sums.panel") as j:
                self._add_panel(panel(j), j, nr // lanes, lanes, k_count)
        if rest:
            with builder.if_then(builder.icmp_signed("<", whole, n_count)):
                self._add_panel(panel(whole), whole, -(-rest // lanes), rest % lanes or lanes, k_count)

    def _add_panel(self, rows: ir.Value, j: ir.Value, vectors: int, last: int, k_count: ir.Value) -> None:
        """Add `vectors` columns of vectors, of which the last has `last` lanes where B is read in place."""
        builder, lanes, direct = self.builder, self.blocking.lanes, self.blocking.direct_b
        step = (self.contraction.b.strides or (0, 0))[0] if direct else self.blocking.nr
        align = self.bytes if direct else lanes * self.bytes
        partial = 1
        while 2 * partial * vectors <= _IN_FLIGHT:
            partial *= 2

        def added(p: ir.Value, sums: list[ir.Value], number: int) -> list[ir.Value]:
            """The sums with row p + number of each vector."""
            row = offset(builder, rows, self.scalar, (p, step), (number, step))
            result = []
            for v, total in enumerate(sums):
                valid = last if direct and v == vectors - 1 else lanes
                place = offset(builder, row, self.scalar, (v * lanes, 1))
                result.append(self._sum(total, load_vector(builder, place, self.scalar, lanes, valid, align)))
            return result

        def several(p: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            parts = [added(p, sums[number * vectors :][:vectors], number) for number in range(partial)]
            return [total for part in parts for total in part]

        def one(p: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            return added(p, sums[:vectors], 0) + sums[vectors:]

        sums: list[ir.Value] = [ir.Constant(self.vector, None)] * (partial * vectors)
        most = builder.and_(k_count, index(-partial))
        sums = carried_loop(builder, index(0), most, partial, sums, several, name="sums.rows")
        if partial > 1:
            sums = carried_loop(builder, most, k_count, 1, sums, one, name="sums.rest")
        while len(sums) > vectors:
            half = len(sums) // 2
            sums = [self._sum(a, b) for a, b in zip(sums[:half], sums[half:], strict=True)]
        for v, total in enumerate(sums):
            place = self._place(j, v * lanes)
            if self.accumulates:
                total = self._sum(builder.load(place, typ=self.vector, align=lanes * self.bytes), total)
            builder.store(total, place, align=lanes * self.bytes)

    def finish(self, finish: FinishColumns, batch: ir.Value, n_range: tuple[ir.Value, ir.Value]) -> None:
        """Hand each vector of sums to `finish`; code for a whole vector and for the partial one appears once each."""
        builder, lanes, partial = self.builder, self.blocking.lanes, self.contraction.n % self.blocking.lanes
        n_start, n_count = n_range

        def hand(at: ir.Value, valid: int) -> None:
            sums = builder.load(self._place(at), typ=self.vector, align=lanes * self.bytes)
            finish(builder, batch, builder.add(n_start, at, flags=("nsw",)), sums, valid)

        whole = builder.and_(n_count, index(-lanes)) if partial else n_count
        if self.contraction.n >= lanes:
            with counted_loop(builder, 0, whole, lanes, name="sums.finish") as at:
                hand(at, lanes)
        if partial:
            with builder.if_then(builder.icmp_signed("<", whole, n_count)):
                hand(whole, partial)

    def _place(self, at: ir.Value, more: int = 0) -> ir.Value:
        return offset(self.builder, self.sums, self.scalar, (at, 1), (more, 1))

    def _sum(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.add(a, b) if isinstance(self.scalar, ir.IntType) else self.builder.fadd(a, b)
