"""The transforms of minimal filtering: r outputs of s taps on one axis with r + s - 1 products, here 4 for 2 and 3.

With the points 0, 1, -1 and infinity, for four elements d of an image, three numbers g and two numbers y,

    sum over i < 2, j < 3 of d[i + j] * g[j] * y[i]  =  sum over p < 4 of image(d)[p] * three(g)[p] * two(y)[p].

It is linear in each, so whichever of g and y is given, the other's place holds results: two outputs of three taps are
two^T(image(d) * three(g)), three outputs of two taps are three^T(image(d) * two(y)). On two axes the transforms apply
one after the other, and 16 products do the work of 36. Only sums, differences and halves occur: small integers stay
exact, and rounding errors are of the size of those of summing the products one by one, where operands are of like size.
S. Winograd, Arithmetic complexity of computations (1980); A. Lavin and S. Gray, Fast algorithms for convolutional
neural networks, arXiv:1509.09308.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir

POINTS = 4  # products on one axis

Vectors = Sequence[ir.Value]
Transform = Callable[[ir.IRBuilder, Vectors], list[ir.Value]]


def image(b: ir.IRBuilder, d: Vectors) -> list[ir.Value]:
    """Four elements of the image at the four points."""
    return [b.fsub(d[0], d[2]), b.fadd(d[1], d[2]), b.fsub(d[2], d[1]), b.fsub(d[1], d[3])]


def three(b: ir.IRBuilder, g: Vectors) -> list[ir.Value]:
    """Three taps at the four points."""
    outer, middle = _half(b, b.fadd(g[0], g[2])), _half(b, g[1])
    return [g[0], b.fadd(outer, middle), b.fsub(outer, middle), g[2]]


def two(b: ir.IRBuilder, y: Vectors) -> list[ir.Value]:
    """Two taps at the four points."""
    return [y[0], b.fadd(y[0], y[1]), b.fsub(y[0], y[1]), b.fneg(y[1])]


def to_two(b: ir.IRBuilder, m: Vectors) -> list[ir.Value]:
    """Two outputs from the products at the four points."""
    return [b.fadd(m[0], b.fadd(m[1], m[2])), b.fsub(b.fsub(m[1], m[2]), m[3])]


def to_three(b: ir.IRBuilder, m: Vectors) -> list[ir.Value]:
    """Three outputs from the products at the four points."""
    together = _half(b, b.fadd(m[1], m[2]))
    return [b.fadd(m[0], together), _half(b, b.fsub(m[1], m[2])), b.fadd(together, m[3])]


def on_both_axes(builder: ir.IRBuilder, transform: Transform, values: Sequence[Vectors]) -> list[list[ir.Value]]:
    """The transform of each column, and then of each row of that."""
    columns = [transform(builder, column) for column in zip(*values, strict=True)]
    return [transform(builder, row) for row in zip(*columns, strict=True)]


def _half(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    half: ir.Value = ir.Constant(value.type, [0.5] * value.type.count)
    return builder.fmul(value, half)
