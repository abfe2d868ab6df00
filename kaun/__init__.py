"""Kaun: neural networks whose whole training step is one compiled program that you can read."""

from kaun import (
    attention,
    checkpoint,
    context,
    data,
    datasets,
    debug,
    fn,
    hf,
    init,
    layer,
    loss,
    metric,
    nx,
    optim,
    ptree,
    train,
)
from kaun.compiled import Compiled, compile, load, spec
from kaun.compiled_step import CompiledStep
from kaun.compiler.ir.dtypes import (
    bfloat16,
    bool_,
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
from kaun.gradients import grad, gradcheck, stop_gradient, value_and_grad, vjp
from kaun.remat import remat
from kaun.tracing import jit

__version__ = "0.1.0"

__all__ = [
    "Compiled",
    "CompiledStep",
    "attention",
    "bfloat16",
    "bool",
    "bool_",
    "checkpoint",
    "compile",
    "context",
    "data",
    "datasets",
    "debug",
    "float16",
    "float32",
    "float64",
    "fn",
    "grad",
    "gradcheck",
    "hf",
    "init",
    "int8",
    "int16",
    "int32",
    "int64",
    "jit",
    "layer",
    "load",
    "loss",
    "metric",
    "nx",
    "optim",
    "ptree",
    "remat",
    "spec",
    "stop_gradient",
    "train",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "value_and_grad",
    "vjp",
]
