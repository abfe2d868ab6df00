"""Activation functions: elementwise, but for softmax, log_softmax and glu, which work along an axis.

All take and give floats, propagate NaN, and have finite gradients wherever their own value is finite.
"""

from __future__ import annotations

import math

from kaun import nx
from kaun.nx import Tensor
from kaun.nx.errors import describe, invalid_type, invalid_value

_SELU_ALPHA = 1.6732632423543772848170429916717
_SELU_SCALE = 1.0507009873554804934193349852946


def _float(function: str, x: object) -> Tensor:
    tensor = nx.asarray(x)
    if not tensor.dtype.is_float:
        raise invalid_type(f"fn.{function}", f"got {describe(tensor._node)}, expected floats")
    return tensor


def relu(x: Tensor) -> Tensor:
    """max(x, 0). The gradient at 0 is 0. Nair and Hinton, Rectified linear units (2010)."""
    return nx.relu(_float("relu", x))


def relu6(x: Tensor) -> Tensor:
    """min(max(x, 0), 6). The gradient is 0 at 0 and at 6. Howard et al., MobileNets, arXiv:1704.04861."""
    x = _float("relu6", x)
    # Written with <= and >=, so that NaN, which compares false, stays.
    return nx.where(x <= 0, nx.zeros_like(x), nx.where(x >= 6, nx.full_like(x, 6.0), x))


def leaky_relu(x: Tensor, *, negative_slope: float = 0.01) -> Tensor:
    """x for x >= 0, negative_slope * x below. Maas et al., Rectifier nonlinearities (2013)."""
    x = _float("leaky_relu", x)
    return nx.where(x >= 0, x, negative_slope * x)


def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    """x for x >= 0, alpha * x below; alpha broadcasts against x. He et al., arXiv:1502.01852."""
    x = _float("prelu", x)
    return nx.where(x >= 0, x, nx.asarray(alpha) * x)


def hard_tanh(x: Tensor) -> Tensor:
    """min(max(x, -1), 1). The gradient is 0 at -1 and 1."""
    x = _float("hard_tanh", x)
    return nx.where(x <= -1, nx.full_like(x, -1.0), nx.where(x >= 1, nx.ones_like(x), x))


def hard_sigmoid(x: Tensor) -> Tensor:
    """relu6(x + 3) / 6. Howard et al., MobileNetV3, arXiv:1905.02244."""
    return relu6(_float("hard_sigmoid", x) + 3.0) * (1.0 / 6.0)


def hard_silu(x: Tensor) -> Tensor:
    """x * hard_sigmoid(x). Howard et al., MobileNetV3, arXiv:1905.02244."""
    return x * hard_sigmoid(x)


def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """x for x > 0, alpha * (exp(x) - 1) below. Clevert et al., arXiv:1511.07289."""
    x = _float("elu", x)
    return nx.where(x > 0, x, alpha * nx.expm1(_at_most_zero(x)))


def selu(x: Tensor) -> Tensor:
    """scale * elu(x, alpha) with the constants of Klambauer et al., Self-normalizing networks, arXiv:1706.02515."""
    return _SELU_SCALE * elu(x, alpha=_SELU_ALPHA)


def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """x for x > 0, alpha * (exp(x / alpha) - 1) below. Barron, arXiv:1704.07483."""
    x = _float("celu", x)
    return nx.where(x > 0, x, alpha * nx.expm1(_at_most_zero(x) / alpha))


def _at_most_zero(x: Tensor) -> Tensor:
    # Keeps exp from overflowing on the side that is not chosen, whose gradient would be 0 * inf = NaN.
    return nx.where(x > 0, nx.zeros_like(x), x)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)), accurate in both tails."""
    return nx.sigmoid(_float("sigmoid", x))


def tanh(x: Tensor) -> Tensor:
    """(exp(x) - exp(-x)) / (exp(x) + exp(-x))."""
    return nx.tanh(_float("tanh", x))


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x), also called swish. Elfwing et al., arXiv:1702.03118."""
    return x * sigmoid(x)


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """x * P(Z <= x) for a standard normal Z: x * (1 + erf(x / sqrt(2))) / 2. Hendrycks and Gimpel, arXiv:1606.08415.

    `approximate="tanh"` computes x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x**3))) / 2 instead.
    """
    x = _float("gelu", x)
    if approximate == "none":
        return x * (0.5 + 0.5 * nx.erf(x * math.sqrt(0.5)))
    if approximate == "tanh":
        return x * (0.5 + 0.5 * nx.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))))
    raise invalid_value("fn.gelu", f"got approximate={approximate!r}, expected 'none' or 'tanh'")


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), without overflow."""
    return nx.softplus(_float("softplus", x))


def log_sigmoid(x: Tensor) -> Tensor:
    """log(sigmoid(x)) = -softplus(-x)."""
    return nx.log_sigmoid(_float("log_sigmoid", x))


def mish(x: Tensor) -> Tensor:
    """x * tanh(softplus(x)). Misra, arXiv:1908.08681."""
    return x * nx.tanh(softplus(x))


def softsign(x: Tensor) -> Tensor:
    """x / (1 + |x|)."""
    x = _float("softsign", x)
    return x / (1.0 + nx.where(x >= 0, x, -x))


def squareplus(x: Tensor, *, b: float = 4.0) -> Tensor:
    """(x + sqrt(x**2 + b)) / 2. Barron, arXiv:2112.11687."""
    x = _float("squareplus", x)
    return 0.5 * (x + nx.sqrt(x * x + b))


def glu(x: Tensor, *, axis: int = -1) -> Tensor:
    """a * sigmoid(b) for the two halves a, b of x along `axis`. Dauphin et al., arXiv:1612.08083.

    ValueError if the axis does not exist or its extent is odd.
    """
    x = _float("glu", x)
    if not -x.ndim <= axis < x.ndim or x.shape[axis] % 2:
        raise invalid_value("fn.glu", f"got {describe(x._node)} and axis {axis}, expected an axis of even extent")
    half = x.shape[axis] // 2
    before = (slice(None),) * (axis % x.ndim)
    return x[(*before, slice(None, half))] * sigmoid(x[(*before, slice(half, None))])


def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """exp(x) / sum(exp(x)) along `axis`, shifted by the maximum so that nothing overflows."""
    return nx.softmax(_float("softmax", x), axis=axis)


def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """x - log(sum(exp(x))) along `axis`, shifted by the maximum so that nothing overflows."""
    return nx.log_softmax(_float("log_softmax", x), axis=axis)
