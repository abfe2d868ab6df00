"""The inverse error function, as polynomials fitted to it.

With w = -log((1 - x) * (1 + x)), erfinv(x) / x is smooth in w, and for large w in sqrt(w): Giles, Approximating the
erfinv function, GPU Computing Gems (2011). The coefficients here are Chebyshev fits of the relative error to 40-digit
values, lowest power first, in the variable less the middle of its interval.
"""

from __future__ import annotations

import math

from kaun.compiler.ir import Node, dtypes, full, ops

from .operands import cast, floating, node_of
from .tensor import Tensor, TensorLike

# float32: w in [0, 5] (1e-7), sqrt(w) in [sqrt(5), 5] (2e-7).
_SINGLE_NEAR = (
    1.5014094165658, 0.24664074355208682, -0.004177678720187379, -0.0012537298404050048, 0.0002185773789342452,
    -4.38963428576366e-06, -3.5222364853017437e-06, 3.4307343265569463e-07, 2.79895560683755e-08,
)  # fmt: skip
_SINGLE_FAR = (
    3.454432016118984, 1.0080640214189027, 0.002625314380303213, -0.0016428456695694778, 0.0007817938392653681,
    -0.00039129590006916953, 0.00025270156699803823, -0.0002085623263440761, 8.628243890283253e-05,
    1.3740026929294205e-05, -1.3624331676197594e-05,
)  # fmt: skip
# float64: w in [0, 6.25] (2e-14), sqrt(w) in [2.5, 4] and [4, 6.7] (3e-15).
_DOUBLE_NEAR = (
    1.6536545626831056, 0.24015818242561235, -0.0060336708714808585, -0.0007407025343266805,
    0.0001867342082940342, -1.3882523080860387e-05, -1.365469625293989e-06, 4.2347854521509925e-07,
    -2.907003451387164e-08, -4.112525158438288e-09, 1.0510611365867066e-09, -5.4185341563632987e-11,
    -1.2932946631576215e-11, 2.6392251364803103e-12, -8.908154972210168e-14, -4.1216372030355503e-14,
    7.510754122795451e-15, 6.984185401985938e-17, -1.961450066549593e-16, 9.143322107933614e-18,
    3.850880860219575e-18, -1.32580368214077e-19, -4.9041253550947685e-20,
)  # fmt: skip
_DOUBLE_FAR = (
    3.0838856104922225, 1.005258967694133, 0.005370914553490212, -0.0037512085056406247, 0.0024914421018587983,
    -0.0016882756029927759, 0.0009532892831979243, -0.000355036994464799, 2.403183367492612e-05,
    6.828175260522618e-05, -4.7321147674138275e-05, 1.248559063596863e-05, 2.9302964526177026e-06,
    -4.0332518968432535e-06, 1.4933260926432673e-06, 3.761522191107932e-08, -2.6813457171953534e-07,
    8.277209421447026e-08,
)  # fmt: skip
_DOUBLE_TAIL = (
    5.203486396338181, 1.010136025128012, -0.00031616324994852184, -0.0001293286449796637, 4.85832043802615e-05,
    -1.2280789028148632e-05, 2.7000979668929847e-06, -5.519502486179638e-07, 1.0865322449274393e-07,
    -2.169861475470612e-08, 5.131516920786433e-09, -1.886020930822986e-09, 8.879151679111668e-10,
    -3.4970457294834346e-10, 1.682125280396305e-10, -1.1861657616807714e-10, 4.5187639022107095e-11,
    -9.104584016034226e-13, -2.309656894287394e-12,
)  # fmt: skip


def _polynomial(x: Node, middle: float, coefficients: tuple[float, ...]) -> Node:
    """Horner's rule in x - middle."""
    x = x - middle
    result = full(coefficients[-1], x.dtype, x.shape)
    for coefficient in coefficients[-2::-1]:
        result = result * x + coefficient
    return result


def _ratio(w: Node) -> Node:
    """erfinv(x) / x."""
    # Kept from 0, where it is not used and its derivative is infinite.
    root = ops.sqrt(ops.maximum(w, w.like(1.0)))
    if w.dtype is dtypes.float32:
        near = _polynomial(w, 2.5, _SINGLE_NEAR)
        far = _polynomial(root, (math.sqrt(5.0) + 5.0) / 2, _SINGLE_FAR)
        return ops.where(ops.lt(w, w.like(5.0)), near, far)
    far = ops.where(
        ops.lt(root, w.like(4.0)), _polynomial(root, 3.25, _DOUBLE_FAR), _polynomial(root, 5.35, _DOUBLE_TAIL)
    )
    return ops.where(ops.lt(w, w.like(6.25)), _polynomial(w, 3.125, _DOUBLE_NEAR), far)


def inverse_error(x: Node) -> Node:
    """erfinv of a float32 or float64 node: infinite at -1 and 1, NaN outside of them."""
    one = x.like(1.0)
    end = ops.eq(ops.abs_(x), one)
    inside = ops.where(end, x.like(0.0), x)
    w = -ops.log((1.0 - inside) * (1.0 + inside))
    limit = ops.where(ops.lt(x, x.like(0.0)), x.like(-math.inf), x.like(math.inf))
    return ops.where(end, limit, inside * _ratio(w))


def from_tail(p: Node) -> Node:
    """erfinv(1 - 2 p) for p in (0, 1/2], accurate however small p is."""
    return (1.0 - p * 2.0) * _ratio(-ops.log(p * 4.0 * (1.0 - p)))


def erfinv(x: TensorLike, /) -> Tensor:
    """The inverse of `nx.erf`, in floats: infinite at -1 and 1, NaN outside of [-1, 1].

    Relative error at most 5e-7 in float32 and 1e-13 in float64.
    """
    node = floating(node_of("nx.erfinv", x))
    return Tensor(cast(inverse_error(cast(node, node.dtype.compute)), node.dtype))
