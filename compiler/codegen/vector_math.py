"""Emits exp, log, tanh, erf, sin, pow, ... as LLVM IR for scalars and vectors of any width.

Every function is within 2 ulp of the exact result over the full range, handles subnormals, infinities, NaN and
signed zeros as C99 annex F says, and calls no library. All are free of branches, but for one in sin, cos and pow that
is taken only when some lane has a huge argument, or a base or exponent of which the power is a special case. No
fast-math flag is set: the results depend on the order of the operations as written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kaun.compiler.codegen import vector_math_exponential as exponential
from kaun.compiler.codegen import vector_math_logarithm as logarithm
from kaun.compiler.codegen import vector_math_trigonometric as trigonometric
from kaun.compiler.codegen.vector_math_lanes import Lanes
from llvmlite import ir

UNARY: dict[str, Callable[[Lanes], Lanes]] = {
    "exp": exponential.exp,
    "expm1": exponential.expm1,
    "log": logarithm.log,
    "log1p": logarithm.log1p,
    "sin": trigonometric.sin,
    "cos": trigonometric.cos,
    "tanh": exponential.tanh,
    "erf": exponential.erf,
    "atan": trigonometric.atan,
}

FUNCTIONS: frozenset[str] = frozenset({*UNARY, "pow"})


def emit(builder: ir.IRBuilder, function: str, arguments: Sequence[ir.Value], *, has_fma: bool = True) -> ir.Value:
    """The value of function(*arguments), emitted at the builder's position.

    function: one of `FUNCTIONS`; "pow" takes (base, exponent), the others one argument.
    arguments: values of one type: float, double, or a vector of either, of any width.
    has_fma: whether the target multiplies and adds with one rounding in one instruction. Without it nothing calls
        the library's fma, and sums that need exact products split their factors instead.
    After "sin", "cos" and "pow" the builder stands in another basic block; take `builder.block` anew for a phi.

    Raises ValueError for an unknown function or a wrong number of arguments, TypeError for other or unequal types.
    """
    if function not in FUNCTIONS:
        raise ValueError(f"vector_math.emit: got function {function!r}, expected one of {sorted(FUNCTIONS)}")
    expected = 2 if function == "pow" else 1
    if len(arguments) != expected:
        raise ValueError(f"vector_math.emit: got {len(arguments)} arguments for {function!r}, expected {expected}")
    types = [argument.type for argument in arguments]
    lanes = [Lanes(builder, argument, has_fma) for argument in arguments]
    if not all(lane.is_float for lane in lanes) or any(type_ != types[0] for type_ in types):
        raise TypeError(
            f"vector_math.emit: got {', '.join(map(str, types))} for {function!r}, "
            "expected float, double or vectors of them, all of one type"
        )
    if function == "pow":
        return logarithm.pow(*lanes).value
    return UNARY[function](lanes[0]).value
