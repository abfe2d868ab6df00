"""Stateless functions: what the layers compute, without parameters of their own."""

from .activation import (
    celu,
    elu,
    gelu,
    glu,
    hard_sigmoid,
    hard_silu,
    hard_tanh,
    leaky_relu,
    log_sigmoid,
    log_softmax,
    mish,
    prelu,
    relu,
    relu6,
    selu,
    sigmoid,
    silu,
    softmax,
    softplus,
    softsign,
    squareplus,
    tanh,
)
from .attention import dot_product_attention, rope
from .convolution import conv1d, conv2d
from .dense import dropout, embedding, linear
from .normalization import batch_norm, batch_statistics, layer_norm, rms_norm
from .pooling import avg_pool1d, avg_pool2d, max_pool1d, max_pool2d

__all__ = [
    "avg_pool1d", "avg_pool2d", "batch_norm", "batch_statistics", "celu", "conv1d", "conv2d", "dot_product_attention",
    "dropout", "elu", "embedding", "gelu", "glu", "hard_sigmoid", "hard_silu", "hard_tanh", "layer_norm", "leaky_relu",
    "linear", "log_sigmoid", "log_softmax", "max_pool1d", "max_pool2d", "mish", "prelu", "relu", "relu6", "rms_norm",
    "rope", "selu", "sigmoid", "silu", "softmax", "softplus", "softsign", "squareplus", "tanh",
]  # fmt: skip
