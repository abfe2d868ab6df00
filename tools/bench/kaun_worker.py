"""Runs a benchmark's problems in Kaun, as a process that answers the requests of `peers.serve` and a few more."""

from __future__ import annotations

import dataclasses
from typing import Any

import kaun as kn
import numpy as np
from kaun import nx
from kaun.compiler.ir import Node, ops
from kaun.compiler.ir.interpreter import evaluate
from kaun.compiler.schedule.fusion import ScheduledKernel
from kaun.execution import CompiledGraph
from kaun.runtime import target as targets
from kaun.runtime.cache import default_cache
from kaun.runtime.profile import time_calls
from kaun.tools.bench.peaks import measure_peaks
from kaun.tools.bench.peers import (
    BETA1,
    BETA2,
    EPSILON,
    LEARNING_RATE,
    WEIGHT_DECAY,
    Arrays,
    System,
    parameters_of,
    serve,
)
from kaun.tools.compiled_steps import compiled_step

# Seconds for which each kernel is repeated.
_KERNEL_SECONDS = 0.05


def network(parameters: list[Any]) -> kn.layer.Layer:
    """The layers whose parameters these are: 4 axes make a convolution, ReLU and pooling; 2 a dense layer."""
    layers: list[kn.layer.Layer] = []
    weights = parameters[::2]
    for weight in weights:
        if weight.ndim == 4:
            layers += [kn.layer.conv2d(in_channels=weight.shape[1], out_channels=weight.shape[0]), kn.layer.relu()]
            layers.append(kn.layer.max_pool2d(kernel_size=2))
        else:
            layers += [kn.layer.flatten(), kn.layer.linear(in_features=weight.shape[0], out_features=weight.shape[1])]
            layers.append(kn.layer.relu())
    return kn.layer.sequential(layers[:-1])


class Step:
    """Training steps through `kn.train.fit`, as a user makes them."""

    def __init__(self, arrays: Arrays) -> None:
        parameters = parameters_of(arrays)
        model = network(parameters)
        optimizer = kn.optim.adamw(
            lr=LEARNING_RATE, b1=BETA1, b2=BETA2, eps=EPSILON, weight_decay=WEIGHT_DECAY
        )
        self.trainer = kn.train.make(model=model, optimizer=optimizer)
        with nx.rng.run(seed=0):
            variables = kn.layer.init(model)
        _, rebuild = kn.ptree.flatten(variables.params)
        # Leaves come in the order of the layers; within a layer the arrays say weight, then bias.
        named = iter(parameters)
        ordered = [
            leaf for weight in named for leaf in self._layer_leaves(weight, next(named), variables.params)
        ]
        self.initial = kn.train.make_state(self.trainer, variables.with_params(rebuild(ordered)))
        self.batches = [
            (nx.asarray(x, copy=True), nx.asarray(y, copy=True)) for x, y in zip(arrays["x"], arrays["y"], strict=True)
        ]
        self.reset()

    @staticmethod
    def _layer_leaves(weight: Any, bias: Any, params: Any) -> list[nx.Tensor]:
        names = [path.rpartition(".")[2] for path, _ in kn.ptree.flatten_with_paths(params)[:2]]
        both = {"weight": nx.asarray(weight, copy=True), "bias": nx.asarray(bias, copy=True)}
        return [both[name] for name in names]

    def reset(self) -> None:
        self.state = self.initial

    def run(self, times: int) -> None:
        batches = [self.batches[number % len(self.batches)] for number in range(times)]
        self.state = kn.train.fit(self.trainer, self.state, batches, loss=kn.loss.cross_entropy_sparse)

    def values(self, count: int) -> list[float]:
        losses: list[float] = []
        batches = [self.batches[number % len(self.batches)] for number in range(count)]
        kn.train.fit(
            self.trainer, self.initial, batches, loss=kn.loss.cross_entropy_sparse,
            report=lambda step, loss, state: losses.append(loss),
        )  # fmt: skip
        return losses

    def compiled(self) -> CompiledGraph:
        """The compiled step; `run` has made it."""
        return compiled_step(self.trainer)


class Product:
    def __init__(self, arrays: Arrays) -> None:
        self.a, self.b = nx.asarray(arrays["a"], copy=True), nx.asarray(arrays["b"], copy=True)
        self.product = kn.jit(nx.matmul)

    def reset(self) -> None:
        pass

    def run(self, times: int) -> None:
        for _ in range(times):
            self.product(self.a, self.b)

    def values(self, count: int) -> list[float]:
        return [float(value) for value in np.diagonal(self.product(self.a, self.b).numpy())[:count]]

    def compiled(self) -> CompiledGraph:
        return self.product.compiled.specialise(self.a, self.b).compiled  # type: ignore[attr-defined,no-any-return]


def make(arrays: Arrays) -> System:
    """The problem of these arrays in Kaun."""
    return Product(arrays) if "a" in arrays else Step(arrays)


# --- looking inside --------------------------------------------------------------------------------------------------


def interpreted_losses(step: Step, count: int) -> list[float]:
    """The losses of the first steps by the NumPy interpreter, which shares nothing with the compiled code.

    Feeding a step's new state to the next uses that its results, the loss first, come in the order of its arguments.
    """
    (function,) = step.trainer._compiled.values()
    (special,) = function._specialisations.values()
    state = step.initial
    variables = state.vars
    leaves = [*map(kn.ptree.leaves, (variables.params, variables.state, state.opt_state))]
    changing = [leaf.numpy() for tree in leaves for leaf in tree] + [state.step.numpy()]
    captured = list(special.captured)
    fixed = len(special.graph.inputs) - len(changing) - 1 - 2 - len(captured)
    if fixed:
        raise ValueError(f"kaun_worker.interpreted_losses: got {fixed} unknown inputs, expected none")
    losses = []
    for number in range(count):
        x, y = step.batches[number % len(step.batches)]
        inputs = [*changing, state.rng.numpy(), x.numpy(), y.numpy(), *captured]
        loss, *changing = evaluate(special.graph, inputs)
        losses.append(float(loss))
    return losses


@dataclasses.dataclass(frozen=True)
class KernelTime:
    """One kernel of a program and how long it takes alone. `bytes` counts each of its buffers once."""

    what: str
    where: str
    seconds: float
    flops: int
    bytes: int
    chunks: int


def kernel_times(compiled: CompiledGraph, inputs: list[Any], seconds: float) -> list[KernelTime]:
    """Every kernel call of a program in order, run alone on the program's own buffers."""
    times = time_calls(compiled.executable, [array.ctypes.data for array in inputs], seconds=seconds)
    kernels = zip(compiled.compilation.kernels, compiled.compilation.program.calls, times, strict=True)
    return [
        KernelTime(
            what=_what(scheduled),
            where=_where(scheduled),
            seconds=time,
            flops=sum(node.op.flops(node) for node in scheduled.nodes),
            bytes=sum(buffer.node.nbytes for buffer in scheduled.kernel.buffers),
            chunks=call.chunks,
        )
        for scheduled, call, time in kernels
    ]


def _what(scheduled: ScheduledKernel) -> str:
    """The kernel in a few words: its contraction or reductions, the number of other operations, what it stores."""
    computing = [node for node in scheduled.nodes if node.op.kind not in ("leaf", "movement")]
    contractions = [node for node in computing if node.op is ops.dot_general]
    heavy = contractions or [node for node in computing if node.op.kind in ("reduce", "index")]
    names = [_contraction(node) if node.op is ops.dot_general else node.op.name for node in heavy]
    rest = len(computing) - len(heavy)
    if rest:
        names.append(f"{rest} elementwise")
    largest = max(scheduled.outputs, key=lambda node: node.size)
    extent = "x".join(map(str, largest.shape)) or "scalar"
    return f"{' + '.join(dict.fromkeys(names)) or 'copy'} > {len(scheduled.outputs)} of {extent}"


def _contraction(node: Node) -> str:
    depth = node.op.flops(node) // (2 * max(1, node.size))
    return f"dot {'x'.join(map(str, node.shape))} over {depth}"


def _where(scheduled: ScheduledKernel) -> str:
    """The layers and the phases of the step that the kernel serves."""
    paths = sorted({node.source.path for node in scheduled.nodes if node.source.path})
    phases = dict.fromkeys(node.source.phase for node in scheduled.nodes)
    return f"{','.join(paths) or '-'} {'+'.join(phase[:3] for phase in phases)}"


def _profile(system: Any, request: dict[str, Any]) -> Any:
    compiled = system.compiled()
    if isinstance(system, Product):
        trees: Any = (system.a, system.b)
        captured: tuple[Any, ...] = ()
    else:
        (function,) = system.trainer._compiled.values()
        (special,) = function._specialisations.values()
        captured = special.captured
        state = system.initial
        trees = (state.vars.params, state.vars.state, state.opt_state, state.step, state.rng, *system.batches[0])
    leaves = kn.ptree.leaves(trees)
    arrays = [np.ascontiguousarray(leaf.numpy()) for leaf in leaves] + list(captured)
    return {
        "kernels": [dataclasses.asdict(k) for k in kernel_times(compiled, arrays, request.get("seconds", 0.05))],
        "arena_bytes": compiled.compilation.program.arena_bytes,
    }


def _peaks(system: System, request: dict[str, Any]) -> Any:
    return dataclasses.asdict(measure_peaks(targets.host(), seconds=request.get("seconds", 0.2)))


def _statistics(system: System, request: dict[str, Any]) -> Any:
    return dataclasses.asdict(default_cache().statistics)


def _interpreted(system: Any, request: dict[str, Any]) -> list[float]:
    if isinstance(system, Product):
        product = np.asarray(system.a.numpy(), np.float64) @ system.b.numpy()
        return [float(value) for value in np.diagonal(product)[: request["count"]]]
    return interpreted_losses(system, request["count"])


MORE = {"kernels": _profile, "peaks": _peaks, "statistics": _statistics, "interpreted": _interpreted}

if __name__ == "__main__":
    serve(make, MORE)
