"""Loop IR as text: a canonical form that is equal for structurally equal kernels, and what `key`s the kernel cache.

    kernel(%0: float32[640] in, %1: float32[64] out) {
      parallel o0 < 64 {
        for r0_0 < 10 {
          v0 = load %0[10*o0 + r0_0] : float32
          v1 = exp(v0) : float32
          s0 = reduce_sum v1
        }
        once {
          v2 = result s0 : float32
          store %1[o0] = v2
        }
      }
    }

A contraction is

    kernel(%0: float32[192] in, %1: float32[128] in, %2: float32[6] out, %3: float32[2] out) {
      contract b < 1, m < 3, n < 2 over k < 64 in float32 {
        v0 = load %0[3*k + m] : float32
        left v0
        v1 = load %1[2*k + n] : float32
        right v1
        v2 = accumulator : float32
        store %2[2*m + n] = v2
        column sums {
          v3 = accumulator : float32
          store %3[n] = v3
        }
      }
    }

and a chain

    kernel(...) {
      chain b < 8, m < 64, n < 64 in float32 if 0 <= m + -1*n < 64 {
        product over k0 < 32 {
          v0 = load %0[2048*b + 32*m + k0] : float32
          left v0
          v1 = load %1[2048*b + 32*n + k0] : float32
          right v1
        } = p0
        pass {
          v2 = at p0 : float32
          s0 = reduce_max v2 : float32
        }
        pass {
          v3 = result s0 : float32
          v4 = sub(v2, v3) of float32 : float32
          v5 = exp(v4) of float32 : float32
          keep v5 = p1
        }
        sum over n, e0 < 32 {
          v6 = at p1 : float32
          left v6
          v7 = load %2[2048*b + 32*n + e0] : float32
          right v7
          v8 = accumulator : float32
          store %3[2048*b + 32*m + e0] = v8
        }
      }
    }
"""

from __future__ import annotations

from ..ir.text import format_value
from .collapse import summed_origin
from .index import format_index
from .loop_ir import (
    Accumulator,
    Apply,
    ChainKernel,
    ChainSum,
    Condition,
    ContractionKernel,
    Guarded,
    IndexValue,
    Keep,
    Kept,
    Kernel,
    Literal,
    Load,
    LoopKernel,
    Origin,
    Product,
    ProductAt,
    Reduced,
    Reduction,
    Store,
    Value,
)


def print_kernel(kernel: Kernel) -> str:
    """The kernel as text."""
    return _Printer().kernel(kernel)


def line_origins(kernel: Kernel) -> list[Origin]:
    """For each line of the kernel's text the origin of what it computes, loads or stores; None for those of loops."""
    printer = _Printer()
    printer.kernel(kernel)
    return [None, *printer.origins, None]


class _Printer:
    def __init__(self) -> None:
        self.numbers: dict[Value, int] = {}
        self.reductions: dict[Reduction, int] = {}
        # What stands for a product or for something kept, however many values refer to it.
        self.blocks: dict[Product | Keep, str] = {}
        self.lines: list[str] = []
        self.origins: list[Origin] = []
        self.indent = "  "

    def line(self, text: str, origin: Origin = None) -> None:
        self.lines.append(self.indent + text)
        self.origins.append(origin)

    def kernel(self, kernel: Kernel) -> str:
        written = {s.buffer for s in stores_of(kernel)}
        buffers = ", ".join(
            f"%{b.position}: {b.dtype}[{b.size}] {'out' if b in written else 'in'}" for b in kernel.buffers
        )
        header = f"kernel({buffers}) {{"
        if isinstance(kernel, LoopKernel):
            self._loops(kernel)
        elif isinstance(kernel, ChainKernel):
            self._chain(kernel)
        else:
            self._contraction(kernel)
        return "\n".join([header, *self.lines, "}"]) + "\n"

    def _open(self, text: str, origin: Origin = None) -> None:
        self.line(text + " {", origin)
        self.indent += "  "

    def _close(self, after: str = "", origin: Origin = None) -> None:
        self.indent = self.indent[:-2]
        self.line("}" + after, origin)

    def _operands(self, left: Value, right: Value) -> None:
        self.line(f"left {self.value(left)}", left.origin)
        self.line(f"right {self.value(right)}", right.origin)

    def _loops(self, kernel: LoopKernel) -> None:
        outer = ", ".join(f"{v.name} < {v.extent}" for v in kernel.outer)
        self._open(f"parallel {outer}".rstrip())
        for each in kernel.passes:
            loops = ", ".join(f"{v.name} < {v.extent}" for v in each.variables)
            self._open(f"for {loops}" if loops else "once")
            for reduction in each.reductions:
                self._reduction(reduction)
            for store in each.stores:
                self._store(store)
            self._close()
        self._close()

    def _contraction(self, kernel: ContractionKernel) -> None:
        loops = ", ".join(f"{v.name} < {v.extent}" for v in (kernel.batch, kernel.rows, kernel.columns))
        over = f"{kernel.depth.name} < {kernel.depth.extent}"
        self._open(f"contract {loops} over {over} in {kernel.element}", kernel.origin)
        if kernel.image is not None:
            axes = zip(kernel.image.axes, kernel.image.places, strict=True)
            places = ", ".join(f"{v.name} < {v.extent} at {format_index(place, self.value)}" for v, place in axes)
            self.line(f"image {places}")
        self._operands(kernel.left, kernel.right)
        for store in kernel.stores:
            self._store(store)
        if kernel.column_stores:
            self._open("column sums", summed_origin(kernel.column_stores))
            for store in kernel.column_stores:
                self._store(store)
            self._close()
        self._close()

    def _chain(self, kernel: ChainKernel) -> None:
        loops = ", ".join(f"{v.name} < {v.extent}" for v in (kernel.batch, kernel.rows, kernel.columns))
        self._open(f"chain {loops} in {kernel.element}{self._guard(kernel.live)}")
        for product in kernel.products:
            self._open(f"product over {product.depth.name} < {product.depth.extent}", product.origin)
            self._operands(product.left, product.right)
            self._close(f" = {self._name_block(product)}", product.origin)
        for each in kernel.passes:
            self._open("pass")
            for reduction in each.reductions:
                self._reduction(reduction)
            for keep in each.keeps:
                value = self.value(keep.value)
                self.line(f"keep {value} = {self._name_block(keep)}", keep.value.origin)
            self._close()
        if kernel.stores:
            self._open("rows")
            for store in kernel.stores:
                self._store(store)
            self._close()
        for each_sum in kernel.sums:
            self._sum(kernel, each_sum)
        self._close()

    def _sum(self, kernel: ChainKernel, each: ChainSum) -> None:
        over = kernel.rows if each.over_rows else kernel.columns
        self._open(f"sum over {over.name}, {each.free.name} < {each.free.extent}", each.origin)
        for term in each.terms:
            self._operands(term.left, term.right)
        for store in each.stores:
            self._store(store)
        self._close()

    def _name_block(self, block: Product | Keep) -> str:
        self.blocks[block] = f"p{len(self.blocks)}"
        return self.blocks[block]

    def _reduction(self, reduction: Reduction) -> None:
        value = self.value(reduction.value)
        position = f" at {self.value(reduction.position)}" if reduction.position is not None else ""
        self.reductions[reduction] = len(self.reductions)
        name = f"s{self.reductions[reduction]}"
        self.line(f"{name} = {reduction.combine} {value}{position} : {reduction.dtype}", reduction.origin)

    def _store(self, store: Store) -> None:
        value = self.value(store.value)
        sign = "+=" if store.accumulate else "="
        index = format_index(store.index, self.value)
        self.line(f"store %{store.buffer.position}[{index}] {sign} {value}{self._guard(store.guard)}", store.origin)

    def _conditions(self, conditions: tuple[Condition, ...]) -> str:
        return ", ".join(f"{c.low} <= {format_index(c.index, self.value)} < {c.high}" for c in conditions)

    def _guard(self, guard: tuple[Condition, ...]) -> str:
        return f" if {self._conditions(guard)}" if guard else ""

    def value(self, value: Value) -> str:
        """The name of `value`, printing its definition first if this is its first use."""
        if value not in self.numbers:
            for operand in value.operands:
                self.value(operand)
            text = self._definition(value)
            self.numbers[value] = len(self.numbers)
            self.line(f"v{self.numbers[value]} = {text} : {value.dtype}", value.origin)
        return f"v{self.numbers[value]}"

    def _definition(self, value: Value) -> str:
        if isinstance(value, Literal):
            return f"literal {format_value(value.value)}"
        if isinstance(value, IndexValue):
            return f"index {format_index(value.index, self.value)}"
        if isinstance(value, Load):
            return f"load %{value.buffer.position}[{format_index(value.index, self.value)}]{self._guard(value.guard)}"
        if isinstance(value, Guarded):
            inside, outside = self.value(value.inside), self.value(value.outside)
            return f"select {inside} else {outside}{self._guard(value.conditions)}"
        if isinstance(value, Apply):
            arguments = ", ".join(map(self.value, value.arguments))
            return f"{value.name}({arguments}) of {value.argument_dtype}"
        if isinstance(value, Reduced):
            return f"result s{self.reductions[value.reduction]}"
        if isinstance(value, Accumulator):
            return "accumulator"
        if isinstance(value, ProductAt):
            return f"at {self.blocks[value.product]}"
        if isinstance(value, Kept):
            return f"at {self.blocks[value.keep]}"
        raise TypeError(f"text.print_kernel: unknown value {type(value).__name__}")


def stores_of(kernel: Kernel) -> tuple[Store, ...]:
    """All stores of the kernel, in order."""
    if isinstance(kernel, ContractionKernel):
        return (*kernel.stores, *kernel.column_stores)
    if isinstance(kernel, ChainKernel):
        return (*kernel.stores, *(store for each in kernel.sums for store in each.stores))
    return tuple(store for each in kernel.passes for store in each.stores)
