"""Parses the text of the loop IR that `text.print_kernel` prints."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from typing import Any, TypeVar

from ..ir import dtypes, ops
from ..ir.dtypes import DType
from .index import Atom, FloorDivision, FromData, Index, Remainder, Variable
from .loop_ir import (
    Accumulator,
    Apply,
    Buffer,
    ChainKernel,
    ChainSum,
    Condition,
    ContractionKernel,
    Guarded,
    Image,
    IndexValue,
    Keep,
    Kept,
    Kernel,
    Literal,
    Load,
    LoopKernel,
    Pass,
    Product,
    ProductAt,
    Reduced,
    Reduction,
    RowPass,
    Store,
    Term,
    Value,
)
from .text import stores_of

_BUFFER = re.compile(r"%(\d+): (\w+)\[(\d+)\] (in|out)")
_LOOP = re.compile(r"(\w+) < (\d+)")
_CONTRACT = re.compile(r"contract (\w+ < \d+), (\w+ < \d+), (\w+ < \d+) over (\w+ < \d+) in (\w+)")
_CHAIN = re.compile(r"chain (\w+ < \d+), (\w+ < \d+), (\w+ < \d+) in (\w+)(?: if (.*))? \{")
_PRODUCT = re.compile(r"product over (\w+ < \d+) \{")
_BLOCK = re.compile(r"\} = (p\d+)")
_KEEP = re.compile(r"keep (v\d+) = (p\d+)")
_SUM = re.compile(r"sum over (\w+), (\w+ < \d+) \{")
_IMAGE = re.compile(r"(\w+ < \d+) at (.*)")
_DEFINITION = re.compile(r"(v\d+) = (.*) : (\w+)")
_REDUCTION = re.compile(r"(s\d+) = (\w+) (v\d+)(?: at (v\d+))? : (\w+)")
_STORE = re.compile(r"store %(\d+)\[(.*)\] (\+?=) (v\d+)")
_LOAD = re.compile(r"load %(\d+)\[(.*)\]")
_SELECT = re.compile(r"select (v\d+) else (v\d+)")
_APPLY = re.compile(r"(\w+)\(([v\d, ]*)\) of (\w+)")
_CONDITION = re.compile(r"(-?\d+) <= (.*) < (-?\d+)")
_TOKEN = re.compile(r"\s*(//|-?\d+|\w+|[][()*%+<])")

_Named = TypeVar("_Named")


def parse_kernel(text: str) -> Kernel:
    """The kernel that `print_kernel` printed: printing it again gives `text`.

    A buffer's node is a new input of the buffer's dtype and size, as the text does not say whose value it holds. What
    computes something has the number of its line as its origin.
    ValueError names the line that does not parse. Whether the kernel makes sense is for `verify_kernel` to say.
    """
    return _Parser(text).kernel()


class _Parser:
    def __init__(self, text: str) -> None:
        self.lines = [line.strip() for line in text.strip().splitlines()]
        self.at = 0
        self.buffers: tuple[Buffer, ...] = ()
        self.variables: dict[str, Variable] = {}
        self.values: dict[str, Value] = {}
        self.reductions: dict[str, Reduction] = {}
        self.outer: tuple[Variable, ...] = ()
        # In a chain: products and kept values by name, and where they are. Where the accumulator of a sum is.
        self.blocks: dict[str, Product | Keep] = {}
        self.place: tuple[Variable, ...] = ()
        self.summed: tuple[Variable, ...] | None = None

    # Lines

    def error(self, reason: str) -> ValueError:
        line = self.lines[self.at] if self.at < len(self.lines) else "the end of the text"
        return ValueError(f"parse.parse_kernel: {reason} in line {self.line}: {line!r}")

    def current(self) -> str:
        """The line being parsed."""
        if self.at >= len(self.lines):
            raise self.error("expected more")
        return self.lines[self.at]

    def match(self, pattern: re.Pattern[str], text: str, expected: str) -> re.Match[str]:
        found = pattern.fullmatch(text)
        if found is None:
            raise self.error(f"expected {expected}")
        return found

    @property
    def line(self) -> int:
        """The number of the line being parsed, from 1."""
        return self.at + 1

    def closing(self) -> None:
        if self.current() != "}":
            raise self.error("expected '}'")
        self.at += 1

    def named(self, names: dict[str, _Named], name: str, what: str) -> _Named:
        if name not in names:
            raise self.error(f"{what} {name} is used before it is defined")
        return names[name]

    def dtype(self, name: str) -> DType:
        return self.named(dtypes.BY_NAME, name, "dtype")

    # Kernels

    def kernel(self) -> Kernel:
        header = self.match(re.compile(r"kernel\((.*)\) \{"), self.current(), "'kernel(buffers) {'")
        roles = self._buffers(header.group(1))
        self.at += 1
        forms: dict[str, Callable[[], Kernel]] = {"contract": self._contraction, "chain": self._chain}
        result = forms.get(self.current().partition(" ")[0], self._loops)()
        self.closing()
        if self.at != len(self.lines):
            raise self.error("expected nothing more")
        written = {store.buffer for store in stores_of(result)}
        for buffer, role in zip(self.buffers, roles, strict=True):
            if (role == "out") != (buffer in written):
                self.at = 0
                raise self.error(f"%{buffer.position} is declared {role}, and its stores say otherwise,")
        return result

    def _buffers(self, text: str) -> list[str]:
        roles, buffers = [], []
        for position, part in enumerate(text.split(", ") if text else []):
            number, name, size, role = self.match(_BUFFER, part, "'%0: float32[8] in' or '... out'").groups()
            if int(number) != position:
                raise self.error(f"buffer %{number} is in position {position}")
            dtype = self.dtype(name)
            node = ops.input_(identity=("parsed", position), dtype=dtype, shape=(int(size),))
            buffers.append(Buffer(position, dtype, int(size), node))
            roles.append(role)
        self.buffers = tuple(buffers)
        return roles

    def _variable(self, text: str) -> Variable:
        name, extent = self.match(_LOOP, text, "a loop like 'o0 < 8'").groups()
        variable = Variable(name, int(extent))
        if self.variables.setdefault(name, variable) != variable:
            raise self.error(f"{name} has had another extent")
        return variable

    def _variables(self, text: str) -> tuple[Variable, ...]:
        return tuple(self._variable(part) for part in text.split(", ")) if text else ()

    def _loops(self) -> LoopKernel:
        loops = self.match(re.compile(r"parallel ?(.*) \{"), self.current(), "'parallel ... {' or 'contract ... {'")
        self.outer = self._variables(loops.group(1))
        self.at += 1
        passes = []
        while self.current() != "}":
            passes.append(self._pass())
        self.closing()
        return LoopKernel(self.buffers, self.outer, tuple(passes))

    def _pass(self) -> Pass:
        opening = self.match(re.compile(r"(?:once|for (.*)) \{"), self.current(), "'for ... {' or 'once {'")
        variables = self._variables(opening.group(1) or "")
        self.at += 1
        reductions: list[Reduction] = []
        stores: list[Store] = []
        while self.current() != "}":
            line = self.current()
            if line.startswith("store "):
                stores.append(self._store(line))
            elif _REDUCTION.fullmatch(line):
                reductions.append(self._reduction(line))
            else:
                self._definition(line)
            self.at += 1
        self.closing()
        return Pass(variables, tuple(reductions), tuple(stores))

    def _contraction(self) -> ContractionKernel:
        expected = "'contract b < 1, m < 8, n < 8 over k < 8 in float32 {'"
        header = self.match(re.compile(r"(.*) \{"), self.current(), expected)
        *loops, element = self.match(_CONTRACT, header.group(1), expected).groups()
        batch, rows, columns, depth = (self._variable(loop) for loop in loops)
        self.outer, origin = (batch, rows, columns), self.line
        self.at += 1
        operands: dict[str, Value] = {}
        stores: list[Store] = []
        column_stores: list[Store] = []
        image: Image | None = None
        while self.current() != "}":
            line = self.current()
            side, _, name = line.partition(" ")
            if line == "column sums {" and not column_stores:
                self.advance()
                self.summed = (batch, columns)
                column_stores = self._stores()
                self.summed = None
            elif side == "image" and image is None:
                image = self._image(name)
            elif side in ("left", "right") and side not in operands:
                operands[side] = self.named(self.values, name, "value")
            elif line.startswith("store "):
                stores.append(self._store(line))
            else:
                self._definition(line)
            self.at += 1
        if len(operands) != 2:
            raise self.error("expected a left and a right operand before the end of the contraction")
        self.closing()
        left, right, kind = operands["left"], operands["right"], self.dtype(element)
        return ContractionKernel(
            self.buffers, batch, rows, columns, depth, left, right, kind, tuple(stores), image, tuple(column_stores),
            origin=origin,
        )  # fmt: skip

    def _image(self, text: str) -> Image:
        axes, places = [], []
        for part in text.split(", ") if text else []:
            axis, place = self.match(_IMAGE, part, "an axis like 'x0 < 8 at m + k'").groups()
            places.append(self._index(place))
            axes.append(self._variable(axis))
        return Image(tuple(axes), tuple(places))

    def _chain(self) -> ChainKernel:
        expected = "'chain b < 1, m < 8, n < 8 in float32 {'"
        *loops, element, live = self.match(_CHAIN, self.current(), expected).groups()
        batch, rows, columns = (self._variable(loop) for loop in loops)
        self.outer = (batch, rows)
        conditions = self._conditions(live or "")
        self.place = (batch, rows, columns)
        self.advance()
        products, passes, stores, sums = [], [], [], []
        while self.current().startswith("product"):
            products.append(self._product())
        while self.current() == "pass {":
            passes.append(self._row_pass())
        if self.current() == "rows {":
            self.advance()
            stores = self._stores()
            self.closing()
        while self.current().startswith("sum"):
            sums.append(self._sum(rows, columns))
        self.closing()
        return ChainKernel(
            self.buffers, batch, rows, columns, self.dtype(element), conditions, tuple(products), tuple(passes),
            tuple(stores), tuple(sums),
        )  # fmt: skip

    def advance(self) -> None:
        """Go to the next line."""
        self.at += 1

    def _operands(self) -> dict[str, Value]:
        """Definitions and the two operands of a contraction, up to the first line that is neither."""
        operands: dict[str, Value] = {}
        while len(operands) < 2:
            side, _, name = self.current().partition(" ")
            if side in ("left", "right") and side not in operands:
                operands[side] = self.named(self.values, name, "value")
            else:
                self._definition(self.current())
            self.advance()
        return operands

    def _product(self) -> Product:
        loop, origin = self.match(_PRODUCT, self.current(), "'product over k < 8 {'").group(1), self.line
        depth = self._variable(loop)
        self.advance()
        operands = self._operands()
        name = self.match(_BLOCK, self.current(), "'} = p0'").group(1)
        self.advance()
        product = Product(depth, operands["left"], operands["right"], origin=origin)
        self.blocks[name] = product
        return product

    def _row_pass(self) -> RowPass:
        self.advance()
        reductions: list[Reduction] = []
        keeps: list[Keep] = []
        while self.current() != "}":
            line = self.current()
            if line.startswith("keep "):
                value, name = self.match(_KEEP, line, "'keep v0 = p0'").groups()
                keeps.append(Keep(self.named(self.values, value, "value")))
                self.blocks[name] = keeps[-1]
            elif _REDUCTION.fullmatch(line):
                reductions.append(self._reduction(line))
            else:
                self._definition(line)
            self.advance()
        self.closing()
        return RowPass(tuple(reductions), tuple(keeps))

    def _stores(self) -> list[Store]:
        """Definitions and stores up to the end of the block."""
        stores = []
        while self.current() != "}":
            if self.current().startswith("store "):
                stores.append(self._store(self.current()))
            else:
                self._definition(self.current())
            self.advance()
        return stores

    def _sum(self, rows: Variable, columns: Variable) -> ChainSum:
        over, loop = self.match(_SUM, self.current(), "'sum over n, e0 < 8 {'").groups()
        if over not in (rows.name, columns.name):
            raise self.error("expected a sum over the rows or the columns")
        free, origin = self._variable(loop), self.line
        over_rows = over == rows.name
        self.advance()
        terms = [self._term()]
        while self._next_statement().startswith("left "):
            terms.append(self._term())
        self.summed = (self.outer[0], columns if over_rows else rows, free)
        stores = self._stores()
        self.summed = None
        self.closing()
        return ChainSum(over_rows, free, tuple(terms), tuple(stores), origin=origin)

    def _term(self) -> Term:
        operands = self._operands()
        left = operands["left"]
        if not isinstance(left, (ProductAt, Kept)):
            raise self.error("expected a sum of a product or of a kept value")
        return Term(left, operands["right"])

    def _next_statement(self) -> str:
        """The first line from here on that defines no value."""
        return next((line for line in self.lines[self.at :] if not _DEFINITION.fullmatch(line)), "")

    # Statements

    def _store(self, line: str) -> Store:
        place, _, guard = line.partition(" if ")
        number, index, sign, value = self.match(_STORE, place, "'store %0[index] = v0'").groups()
        buffer, stored = self._buffer(number), self.named(self.values, value, "value")
        return Store(buffer, self._index(index), stored, sign == "+=", self._conditions(guard), origin=self.line)

    def _reduction(self, line: str) -> Reduction:
        name, combine, value, position, dtype = self.match(_REDUCTION, line, "a reduction").groups()
        at = None if position is None else self.named(self.values, position, "value")
        reduced = self.named(self.values, value, "value")
        reduction = Reduction(combine, self.dtype(dtype), reduced, at, origin=self.line)
        self.reductions[name] = reduction
        return reduction

    def _definition(self, line: str) -> None:
        name, text, dtype = self.match(_DEFINITION, line, "'v0 = ... : dtype'").groups()
        if name in self.values:
            raise self.error(f"{name} is defined twice")
        self.values[name] = self._value(text, self.dtype(dtype), self.line)

    def _value(self, text: str, dtype: DType, origin: int) -> Value:
        kind, _, rest = text.partition(" ")
        text, _, guard = text.partition(" if ")
        if kind == "literal":
            return Literal(dtype, self._number(rest), origin=origin)
        if kind == "index":
            return IndexValue(dtype, self._index(rest), origin=origin)
        if kind == "load":
            number, index = self.match(_LOAD, text, "'load %0[index]'").groups()
            return Load(dtype, self._buffer(number), self._index(index), self._conditions(guard), origin=origin)
        if kind == "select":
            branches = self.match(_SELECT, text, "'select v0 else v1 if ...'").groups()
            inside, outside = (self.named(self.values, branch, "value") for branch in branches)
            return Guarded(dtype, self._conditions(guard), inside, outside, origin=origin)
        if kind == "result":
            return Reduced(dtype, self.named(self.reductions, rest, "reduction"), self.outer, origin=origin)
        if kind == "accumulator":
            return Accumulator(dtype, self.outer if self.summed is None else self.summed, origin=origin)
        if kind == "at":
            block = self.named(self.blocks, rest, "product or kept value")
            if isinstance(block, Product):
                return ProductAt(dtype, block, self.place, origin=origin)
            return Kept(dtype, block, self.place, origin=origin)
        name, arguments, argument_dtype = self.match(_APPLY, text, "a value").groups()
        operands = tuple(self.named(self.values, a, "value") for a in arguments.split(", ")) if arguments else ()
        return Apply(dtype, name, operands, self.dtype(argument_dtype), origin=origin)

    def _number(self, text: str) -> Any:
        if text in ("inf", "-inf", "nan"):
            return float(text)
        try:
            return ast.literal_eval(text)
        except (SyntaxError, ValueError) as error:
            raise self.error(f"expected a number, got {text!r}") from error

    def _buffer(self, number: str) -> Buffer:
        if int(number) >= len(self.buffers):
            raise self.error(f"unknown buffer %{number}")
        return self.buffers[int(number)]

    # Indices

    def _conditions(self, text: str) -> tuple[Condition, ...]:
        conditions = []
        for part in text.split(", ") if text else []:
            low, index, high = self.match(_CONDITION, part, "conditions like '0 <= index < 8'").groups()
            conditions.append(Condition(self._index(index), int(low), int(high)))
        return tuple(conditions)

    def _index(self, text: str) -> Index:
        return _IndexParser(text, self.error, self._atom, self._data).whole()

    def _atom(self, name: str) -> Variable:
        return self.named(self.variables, name, "variable")

    def _data(self, name: str, extent: int) -> FromData:
        return FromData(self.named(self.values, name, "value"), extent)


class _IndexParser:
    """A sum of terms: an integer, an atom, or integer*atom; an atom: name, [value < n], ((sum) // n) or ((sum) % n)."""

    def __init__(
        self,
        text: str,
        error: Callable[[str], ValueError],
        variable: Callable[[str], Variable],
        data: Callable[[str, int], FromData],
    ):
        self.error, self.variable, self.data = error, variable, data
        self.tokens = [token for token in _TOKEN.findall(text) if token]
        self.text, self.at = text, 0
        if "".join(self.tokens) != text.replace(" ", ""):
            raise error(f"expected an index, got {text!r}")

    def whole(self) -> Index:
        result = self.index()
        if self.at != len(self.tokens):
            raise self.error(f"expected an index, got {self.text!r}")
        return result

    def take(self, *expected: str) -> str:
        token = self.tokens[self.at] if self.at < len(self.tokens) else "nothing"
        if expected and token not in expected:
            raise self.error(f"expected {' or '.join(expected)}, got {token} in index {self.text!r}")
        self.at += 1
        return token

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def integer(self) -> int:
        token = self.take()
        try:
            return int(token)
        except ValueError as error:
            raise self.error(f"expected an integer, got {token} in index {self.text!r}") from error

    def index(self) -> Index:
        terms: list[tuple[Atom, int]] = []
        constant = 0
        while True:
            coefficient = 1
            if self.peek().lstrip("-").isdigit():
                coefficient = self.integer()
                if self.peek() != "*":
                    constant += coefficient
                    if self.peek() != "+":
                        return Index(tuple(terms), constant)
                    self.take("+")
                    continue
                self.take("*")
            terms.append((self.atom(), coefficient))
            if self.peek() != "+":
                return Index(tuple(terms), constant)
            self.take("+")

    def atom(self) -> Atom:
        token = self.take()
        if token == "[":
            name = self.take()
            self.take("<")
            extent = self.integer()
            self.take("]")
            return self.data(name, extent)
        if token == "(":
            self.take("(")
            inner = self.index()
            self.take(")")
            kind = FloorDivision if self.take("//", "%") == "//" else Remainder
            divisor = self.integer()
            self.take(")")
            return kind(inner, divisor)
        return self.variable(token)
