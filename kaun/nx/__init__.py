"""Lazy tensors and functions on them, with the names and meaning of the Python array API standard (2024.12)."""

import os

from kaun.compiler.ir import source
from kaun.compiler.ir.dtypes import (
    DType,
    bfloat16,
    float16,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    uint8,
    uint16,
    uint32,
    uint64,
)
from kaun.compiler.ir.dtypes import bool_ as bool

from .tensor import Tensor, TensorLike, is_traced, realize  # isort: skip  (the class comes before its functions)
from . import rng
from .creation import (
    arange,
    asarray,
    empty,
    empty_like,
    eye,
    from_dlpack,
    full,
    full_like,
    linspace,
    meshgrid,
    ones,
    ones_like,
    tril,
    triu,
    zeros,
    zeros_like,
)
from .elementwise import (
    abs,
    add,
    astype,
    atan,
    bitcast,
    bitwise_and,
    bitwise_invert,
    bitwise_left_shift,
    bitwise_or,
    bitwise_right_shift,
    bitwise_xor,
    ceil,
    clip,
    copysign,
    cos,
    divide,
    equal,
    erf,
    exp,
    expm1,
    floor,
    floor_divide,
    greater,
    greater_equal,
    isclose,
    isfinite,
    isinf,
    isnan,
    less,
    less_equal,
    log,
    log1p,
    logical_and,
    logical_not,
    logical_or,
    logical_xor,
    maximum,
    minimum,
    multiply,
    negative,
    not_equal,
    positive,
    pow,
    reciprocal,
    remainder,
    round,
    rsqrt,
    sign,
    signbit,
    sin,
    sqrt,
    square,
    stop_gradient,
    subtract,
    tanh,
    trunc,
    where,
)
from .indexing import argsort, one_hot, scatter_add, sort, take, take_along_axis
from .inverse_error import erfinv
from .linear_algebra import diagonal, dot, einsum, matmul, outer, tensordot, trace, vecdot
from .movement import (
    broadcast_arrays,
    broadcast_to,
    concat,
    expand_dims,
    flatten,
    flip,
    matrix_transpose,
    moveaxis,
    pad,
    permute_dims,
    repeat,
    reshape,
    roll,
    split,
    squeeze,
    stack,
    swapaxes,
    tile,
    transpose,
    unstack,
)
from .promotion import can_cast, finfo, iinfo, isdtype, result_type
from .reductions import all, any, argmax, argmin, count_nonzero, cumulative_prod, cumulative_sum, max, min, prod, sum
from .special import (
    acos,
    acosh,
    asin,
    asinh,
    atan2,
    atanh,
    cosh,
    exp2,
    hypot,
    log2,
    log10,
    log_sigmoid,
    log_softmax,
    logaddexp,
    logsumexp,
    relu,
    sigmoid,
    sinh,
    softmax,
    softplus,
    tan,
)
from .statistics import diff, mean, std, var, vector_norm

# Nodes are attributed to the line outside of the library that made them.
source.add_library_folder(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

concatenate = concat
pi = 3.141592653589793
e = 2.718281828459045
inf = float("inf")
nan = float("nan")
newaxis = None

__all__ = [
    "DType", "Tensor", "TensorLike", "abs", "acos", "acosh", "add", "all", "any", "arange", "argmax", "argmin",
    "argsort", "asarray", "asin", "asinh", "astype", "atan", "atan2", "atanh", "bfloat16", "bitcast", "bitwise_and",
    "bitwise_invert", "bitwise_left_shift", "bitwise_or", "bitwise_right_shift", "bitwise_xor", "bool",
    "broadcast_arrays", "broadcast_to", "can_cast", "ceil", "clip", "concat", "concatenate", "copysign", "cos", "cosh",
    "count_nonzero", "cumulative_prod", "cumulative_sum", "diagonal", "diff", "divide", "dot", "e", "einsum", "empty",
    "empty_like", "equal", "erf", "erfinv", "exp", "exp2", "expand_dims", "expm1", "eye", "finfo", "flatten", "flip",
    "float16", "float32", "float64", "floor", "floor_divide", "from_dlpack", "full", "full_like", "greater",
    "greater_equal", "hypot", "iinfo", "inf", "int8", "int16", "int32", "int64", "is_traced", "isclose", "isdtype",
    "isfinite", "isinf", "isnan", "less", "less_equal", "linspace", "log", "log1p", "log2", "log10", "log_sigmoid",
    "log_softmax", "logaddexp", "logical_and", "logical_not", "logical_or", "logical_xor", "logsumexp", "matmul",
    "matrix_transpose", "max", "maximum", "mean", "meshgrid", "min", "minimum", "moveaxis", "multiply", "nan",
    "negative", "newaxis", "not_equal", "one_hot", "ones", "ones_like", "outer", "pad", "permute_dims", "pi",
    "positive", "pow", "prod", "realize", "reciprocal", "relu", "remainder", "repeat", "reshape", "result_type", "rng",
    "roll", "round", "rsqrt", "scatter_add", "sigmoid", "sign", "signbit", "sin", "sinh", "softmax", "softplus", "sort",
    "split", "sqrt", "square", "squeeze", "stack", "std", "stop_gradient", "subtract", "sum", "swapaxes", "take",
    "take_along_axis", "tan", "tanh", "tensordot", "tile", "trace", "transpose", "tril", "triu", "trunc", "uint8",
    "uint16", "uint32", "uint64", "unstack", "var", "vecdot", "vector_norm", "where", "zeros", "zeros_like",
]  # fmt: skip
