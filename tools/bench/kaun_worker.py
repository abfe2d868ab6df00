"""Runs a benchmark's problems in Kaun, as a process that answers the requests of `peers.serve` and a few more."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import time
import warnings
from typing import Any

import numpy as np
from kaun.compiler.codegen.kernels import saved_multiply_adds
from kaun.compiler.codegen.vector_target import VectorTarget
from kaun.compiler.ir.interpreter import evaluate
from kaun.compiler.schedule.fusion import ScheduledKernel
from kaun.compiler.schedule.naming import computed, describe
from kaun.compiler.schedule.traffic import traffic_bytes
from kaun.runtime import target as targets
from kaun.runtime.cache import default_cache
from kaun.runtime.peaks import measure_peaks
from kaun.runtime.profile import time_calls
from kaun.tools.bench import kaun_problems
from kaun.tools.bench.model_problems import PARAMETER
from kaun.tools.bench.peers import (
    BETA1,
    BETA2,
    EPSILON,
    LEARNING_RATE,
    WEIGHT_DECAY,
    Arrays,
    System,
    parameters_of,
    peak_bytes,
    sample,
    serve,
)
from kaun.tools.compiled_steps import compiled_step

import kaun as kn
from kaun import nx
from kaun.execution import CompiledGraph, Storage, vector_target
from kaun.tracing import Specialisation


def network(parameters: list[Any]) -> tuple[kn.layer.Layer, dict[str, Any]]:
    """The layers whose parameters these are, and the parameters by path.

    A weight with 4 axes makes a convolution, ReLU and pooling; one with 2 a dense layer, with ReLU except the last.
    """
    layers: list[kn.layer.Layer] = []
    named: dict[str, Any] = {}
    images = False
    for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
        if images and weight.ndim == 2:
            layers.append(kn.layer.flatten())
        images = weight.ndim == 4
        named |= {f"{len(layers)}.weight": weight, f"{len(layers)}.bias": bias}
        if images:
            layers += [kn.layer.conv2d(in_channels=weight.shape[1], out_channels=weight.shape[0]), kn.layer.relu()]
            layers.append(kn.layer.max_pool2d(kernel_size=2))
        else:
            layers += [kn.layer.linear(in_features=weight.shape[0], out_features=weight.shape[1]), kn.layer.relu()]
    return kn.layer.sequential(layers[:-1]), named


class Step:
    """Training steps through `kn.train.fit`, as a user makes them."""

    def __init__(self, arrays: Arrays, memory_budget: int | None = None) -> None:
        # Whether steps are short enough for a thousand with closures, and for those of the interpreter.
        self.small = "settings" not in arrays
        if self.small:
            model, named = network(parameters_of(arrays))
        else:
            named = {name.removeprefix(PARAMETER): a for name, a in arrays.items() if name.startswith(PARAMETER)}
            model = kaun_problems.model(json.loads(str(arrays["settings"])))
        optimizer = kn.optim.adamw(lr=LEARNING_RATE, b1=BETA1, b2=BETA2, eps=EPSILON, weight_decay=WEIGHT_DECAY)
        self.trainer = kn.train.make(model=model, optimizer=optimizer, memory_budget=memory_budget)
        if self.small:
            with nx.rng.run(seed=0):
                variables = kn.layer.init(model)
            tensors = {path: nx.asarray(array, copy=True) for path, array in named.items()}
            variables = variables.with_params(kn.ptree.unflatten_from_paths(tensors, like=variables.params))
        else:
            variables = kaun_problems.variables(json.loads(str(arrays["settings"])), named)
        self.initial = kn.train.make_state(self.trainer, variables)
        self.batches = [
            (nx.asarray(x, copy=True), nx.asarray(y, copy=True)) for x, y in zip(arrays["x"], arrays["y"], strict=True)
        ]
        self.reset()

    def reset(self) -> None:
        self.states = [self.initial]

    def forget_initial(self) -> None:
        del self.initial

    def run(self, times: int) -> None:
        batches = [self.batches[number % len(self.batches)] for number in range(times)]
        # Nothing but the loop holds the state it starts from, as in `fit(trainer, init(trainer), data)`.
        self.states.append(kn.train.fit(self.trainer, self.states.pop(), batches, loss=kn.loss.cross_entropy_sparse))

    def state_bytes(self) -> int:
        """Of the parameters, running statistics and the optimizer's state."""
        state = self.initial
        leaves = kn.ptree.leaves((state.vars.params, state.vars.state, state.opt_state))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    def values(self, count: int) -> list[float]:
        losses: list[float] = []
        batches = [self.batches[number % len(self.batches)] for number in range(count)]
        kn.train.fit(
            self.trainer, self.initial, batches, loss=kn.loss.cross_entropy_sparse,
            report=lambda step, loss, state: losses.append(loss),
        )  # fmt: skip
        return losses

    def traced(self) -> tuple[Specialisation, Any]:
        """The compiled step, which `run` has made, and arguments for it."""
        state, (x, y) = self.initial, self.batches[0]
        changing = (state.vars.params, state.vars.state, state.opt_state, state.step)
        return compiled_step(self.trainer), (*changing, state.rng, x, y)


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

    def traced(self) -> tuple[Specialisation, Any]:
        return self.product.compiled.specialise(self.a, self.b), (self.a, self.b)  # type: ignore[attr-defined]


class Operation:
    def __init__(self, arrays: Arrays) -> None:
        self.function = kaun_problems.operation(json.loads(str(arrays["settings"])))
        inputs = [f"i{i}" for i in range(sum(name.startswith("i") for name in arrays))]
        self.arguments = [nx.asarray(arrays[name], copy=True) for name in ("c", *inputs)]

    def reset(self) -> None:
        pass

    def run(self, times: int) -> None:
        for _ in range(times):
            self.function(*self.arguments)

    def values(self, count: int) -> list[float]:
        return sample([result.numpy() for result in self.function(*self.arguments)])

    def traced(self) -> tuple[Specialisation, Any]:
        return self.function.compiled.specialise(*self.arguments), tuple(self.arguments)  # type: ignore[attr-defined]


def make(arrays: Arrays) -> System:
    """The problem of these arrays in Kaun."""
    if "c" in arrays:
        return Operation(arrays)
    return Product(arrays) if "a" in arrays else Step(arrays)


# --- looking inside --------------------------------------------------------------------------------------------------


def interpreted_losses(step: Step, count: int) -> list[float]:
    """The losses of the first steps by the NumPy interpreter, which shares nothing with the compiled code."""
    special, arguments = step.traced()
    *changing, rng, _, _ = [leaf.numpy() for leaf in kn.ptree.leaves(arguments)]
    captured = [storage.array for storage in special.captured]
    losses = []
    for number in range(count):
        batch = [tensor.numpy() for tensor in step.batches[number % len(step.batches)]]
        # The results are the loss and then, in the order of the arguments, what a step changes.
        loss, *changing = evaluate(special.graph, [*changing, rng, *batch, *captured])
        losses.append(float(loss))
    return losses


@dataclasses.dataclass(frozen=True)
class KernelTime:
    """One kernel of a program and how long it takes alone.

    `flops` are what it does, which may be less than its operations are defined by; `bytes` counts each element that it
    touches once; `text` is the stage "fused" of it.
    """

    what: str
    where: str
    seconds: float
    flops: int
    bytes: int
    chunks: int
    text: str = ""


def kernel_times(compiled: CompiledGraph, inputs: list[Storage], seconds: float) -> list[KernelTime]:
    """Every kernel call of a program in order, run alone on the program's own buffers."""
    target = vector_target(targets.host())
    times = time_calls(compiled.executable, [storage.address for storage in inputs], seconds=seconds)
    fused = re.sub(r"^launch .*\n", "", compiled.compilation.stage("fused"), flags=re.MULTILINE)
    texts = re.split(r"^(?=kernel \d+:)", fused, flags=re.MULTILINE)[1:]
    kernels = zip(compiled.compilation.kernels, compiled.compilation.program.calls, times, texts, strict=True)
    return [
        KernelTime(
            what=describe(scheduled),
            where=_where(scheduled),
            seconds=time,
            flops=_flops(scheduled, target),
            bytes=traffic_bytes(scheduled.reads, scheduled.outputs, computed(scheduled)),
            chunks=call.chunks,
            text=text,
        )
        for scheduled, call, time, text in kernels
    ]


def _flops(scheduled: ScheduledKernel, target: VectorTarget) -> int:
    defined = sum(node.op.flops(node) for node in computed(scheduled))
    return defined - 2 * saved_multiply_adds(scheduled.kernel, target)


def _where(scheduled: ScheduledKernel) -> str:
    """The layers that the kernel computes something of, and the phases of the step that it stores results of."""
    paths = sorted({node.source.path for node in computed(scheduled) if node.source.path})
    phases = dict.fromkeys(node.source.phase for node in scheduled.outputs)
    return " ".join([",".join(paths) or "-", *phases])


def _profile(system: Any, request: dict[str, Any]) -> Any:
    special, arguments = system.traced()
    inputs = [Storage.of(leaf.numpy()) for leaf in kn.ptree.leaves(arguments)]
    times = kernel_times(special.compiled, [*inputs, *special.captured], request["seconds"])
    return {
        "kernels": [dataclasses.asdict(kernel) for kernel in times],
        "arena_bytes": special.compiled.compilation.program.arena_bytes,
        "lower_bound_bytes": special.compiled.compilation.lower_bound_bytes,
        "state_bytes": system.state_bytes() if isinstance(system, Step) else 0,
        "launches": len(special.compiled.compilation.program.bundles),
        "closures": closure_times(system) if isinstance(system, Step) and system.small else None,
    }


def closure_times(step: Step, steps: int = 1000) -> dict[str, float]:
    """Steps with a fresh closure per batch, as in the guide, beside the bare native call of the same step.

    `compiled` counts the kernels that the steps made the compiler compile beyond the first step's.
    """

    def elements(count: int) -> list[Any]:
        batches = (step.batches[number % len(step.batches)] for number in range(count))
        return [(x, lambda output, y=y: kn.loss.cross_entropy_sparse(output, y)) for x, y in batches]

    state = kn.train.fit(step.trainer, step.initial, elements(10))
    before = default_cache().statistics.compiled
    data = elements(steps)
    started = time.perf_counter()
    kn.train.fit(step.trainer, state, data)
    whole = (time.perf_counter() - started) / steps
    special, arguments = step.traced()
    addresses = [Storage.of(leaf.numpy()) for leaf in kn.ptree.leaves(arguments)]
    inputs = [storage.address for storage in [*addresses, *special.captured]]
    started = time.perf_counter()
    for _ in range(steps):
        special.compiled.executable.run(inputs)
    native = (time.perf_counter() - started) / steps
    return {"steps": steps, "step": whole, "native": native, "compiled": default_cache().statistics.compiled - before}


def _peaks(system: Any, request: dict[str, Any]) -> Any:
    return dataclasses.asdict(measure_peaks(targets.host(), seconds=request["seconds"]))


def _statistics(system: Any, request: dict[str, Any]) -> Any:
    return dataclasses.asdict(default_cache().statistics)


def _frugal(system: Any, request: dict[str, Any]) -> Any:
    """Memory, intermediates and time of a step that computes as much again as saves memory; for a new process."""
    made: list[Step] = []

    def make_frugal(arrays: Arrays) -> Step:
        made.append(Step(arrays, memory_budget=0))
        return made[0]

    with warnings.catch_warnings():
        # That no budget of nothing can be met: the least is what is asked for.
        warnings.filterwarnings("ignore", message="kn.remat: a budget")
        peak = peak_bytes(make_frugal, request["arrays"], request["steps"])
    seconds = []
    for _ in range(request["steps"]):
        started = time.perf_counter()
        made[0].run(1)
        seconds.append(time.perf_counter() - started)
    compilation = compiled_step(made[0].trainer).compiled.compilation
    return {"peak_bytes": peak, "arena_bytes": compilation.program.arena_bytes, "seconds": min(seconds)}


def _interpreted(system: Any, request: dict[str, Any]) -> list[float]:
    if isinstance(system, Product):
        product = np.asarray(system.a.numpy(), np.float64) @ system.b.numpy()
        return [float(value) for value in np.diagonal(product)[: request["count"]]]
    return interpreted_losses(system, request["count"])


MORE = {"kernels": _profile, "frugal": _frugal, "peaks": _peaks, "statistics": _statistics, "interpreted": _interpreted}

if __name__ == "__main__":
    for module in ("kaun.compiler.pipeline", "kaun.runtime.engine"):
        importlib.import_module(module)  # now, as peers do, so that the first request is not charged for it
    serve(make, MORE)
