"""What tests of the scheduler share: traced functions and training steps, and kernels run one by one in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from kaun.compiler.codegen.vector_target import VectorTarget
from kaun.compiler.ir import Graph, Node, topological
from kaun.compiler.pipeline import Compilation
from kaun.compiler.schedule.collapse import collapse
from kaun.compiler.schedule.fusion import ScheduledKernel
from kaun.compiler.schedule.loop_ir import Kernel, LoopKernel
from kaun.compiler.schedule.run import run_kernel

from kaun import attention, execution, layer, loss, nx, optim, ptree, value_and_grad
from kaun.optim.apply import host_rates, traced_step

# What is scheduled does not depend on the machine.
TARGET = VectorTarget(
    vector_bits=256, vector_registers=16, has_fma=True, l1_bytes=32768, l2_bytes=1 << 20, l3_bytes=1 << 23
)


@dataclass(frozen=True)
class Traced:
    """A graph and arguments for it."""

    graph: Graph
    arguments: tuple[Any, ...]

    @property
    def compilation(self) -> Compilation:
        return Compilation(self.graph, TARGET)


def trace(function: Callable[..., Any], *trees: Any) -> Traced:
    """The graph of `function` on trees of tensors or arrays, which are its arguments. Nothing is compiled."""
    leaves, structure = ptree.flatten(trees)
    arrays = [np.asarray(leaf.numpy() if isinstance(leaf, nx.Tensor) else leaf) for leaf in leaves]
    inputs = [execution.placeholder(a.shape, nx.asarray(a).dtype) for a in arrays]
    outputs = [leaf._node for leaf in ptree.leaves(function(*structure([nx.Tensor(node) for node in inputs])))]
    captured = [n for n in topological(outputs, stop=lambda n: n.value is not None) if n.value is not None]
    return Traced(Graph((*inputs, *captured), tuple(outputs)), (*arrays, *map(execution.array, captured)))


def training_step(model: layer.Layer, optimizer: optim.Transformation, x: Any, classes: Any) -> Traced:
    """Forward, backward and update of a classifier, as one graph."""
    with nx.rng.run(seed=0):
        variables = layer.init(model)
    state = optim.init(optimizer, variables.params)
    rates = host_rates(optimizer, state)

    def step(params: Any, opt_state: Any, key: nx.Tensor, x: nx.Tensor, classes: nx.Tensor) -> Any:
        def objective(params: Any) -> Any:
            with nx.rng.with_key(key):
                output, after = layer.apply(model, variables.with_params(params), x, training=True)
            return loss.cross_entropy_sparse(output, classes), after.state

        (value, after), grads = value_and_grad(objective, has_aux=True)(params)
        updates, new = traced_step(optimizer, opt_state, params, grads, rates)
        return value, after, optim.apply_updates(params, updates), new

    return trace(step, variables.params, state, nx.rng.key(1), x, classes)


def perceptron() -> Traced:
    random = np.random.default_rng(0)
    model = layer.sequential(
        [layer.linear(in_features=20, out_features=16), layer.relu(), layer.linear(in_features=16, out_features=10)]
    )
    x, classes = random.normal(size=(8, 20)).astype(np.float32), random.integers(0, 10, 8)
    return training_step(model, optim.adamw(lr=1e-3), x, classes)


def convolutional() -> Traced:
    random = np.random.default_rng(1)
    layers = [
        layer.conv2d(in_channels=1, out_channels=4, kernel_size=3), layer.relu(), layer.max_pool2d(kernel_size=2),
        layer.conv2d(in_channels=4, out_channels=6, kernel_size=3, padding="valid"), layer.batch_norm(num_features=6),
        layer.gelu(), layer.flatten(), layer.dropout(rate=0.3), layer.linear(in_features=24, out_features=10),
    ]  # fmt: skip
    x, classes = random.normal(size=(5, 1, 8, 8)).astype(np.float32), random.integers(0, 10, 5)
    return training_step(layer.sequential(layers), optim.adam(lr=1e-3), x, classes)


def normalised() -> Traced:
    random = np.random.default_rng(2)
    layers = [
        layer.linear(in_features=12, out_features=16), layer.layer_norm(dim=16), layer.tanh(),
        layer.linear(in_features=16, out_features=10),
    ]  # fmt: skip
    x, classes = random.normal(size=(6, 12)).astype(np.float32), random.integers(0, 10, 6)
    return training_step(layer.sequential(layers), optim.sgd(lr=0.1), x, classes)


def attentive() -> Traced:
    """Causal attention with grouped heads, rotated positions and dropout, between linear layers."""
    random = np.random.default_rng(3)
    layers = [
        attention.multi_head_attention(
            embed_dim=8, num_heads=4, num_kv_heads=2, dropout=0.25, is_causal=True, rope=True
        ),
        layer.flatten(), layer.linear(in_features=88, out_features=10),
    ]  # fmt: skip
    x, classes = random.normal(size=(3, 11, 8)).astype(np.float32), random.integers(0, 10, 3)
    return training_step(layer.sequential(layers), optim.sgd(lr=0.1), x, classes)


MODELS = {"perceptron": perceptron, "convolutional": convolutional, "normalised": normalised, "attentive": attentive}


def collapsed(kernel: Kernel) -> Kernel:
    """The kernel as code is generated for it."""
    return collapse(kernel) if isinstance(kernel, LoopKernel) else kernel


def run_kernels(
    compilation: Compilation, arguments: Sequence[Any], change: Callable[[Kernel], Kernel] = lambda kernel: kernel
) -> list[Any]:
    """The results of a compilation: its kernels, changed by `change`, run one after the other in NumPy."""
    graph = compilation.simplified
    arrays: dict[Node, Any] = {
        node: np.array(value, node.dtype.numpy, order="C") for node, value in zip(graph.inputs, arguments, strict=True)
    }
    for scheduled in compilation.kernels:
        _allocate(scheduled, arrays)
        run_kernel(change(scheduled.kernel), [arrays[buffer.node] for buffer in scheduled.kernel.buffers])
    return [arrays[n] if n in arrays else np.empty(n.shape, n.dtype.numpy) for n in graph.outputs]


def _allocate(scheduled: ScheduledKernel, arrays: dict[Node, Any]) -> None:
    """Memory for what the kernel writes; it starts with bytes that no kernel should let through."""
    for buffer in scheduled.kernel.buffers:
        if buffer.node in scheduled.outputs:
            raw = np.full(buffer.size * buffer.dtype.itemsize, 0xA5, np.uint8)
            arrays[buffer.node] = raw.view(buffer.dtype.numpy).reshape(buffer.node.shape)
        assert buffer.node in arrays, f"{buffer.node} is read before it is written"
