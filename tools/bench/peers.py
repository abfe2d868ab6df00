"""Runs a benchmark's problems in PyTorch, JAX or NumPy, as a process that answers requests.

    python peers.py torch | torch-compile | jax | numpy

It is started by path with any Python that has NumPy and the library, so it imports nothing from this package but the
modules beside it, and those only when a problem needs them. Requests come as lines of JSON on the standard input, one
answer each goes out; see `serve`.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

Arrays = Mapping[str, Any]

# A measurement repeats a problem for at least this long between two looks at the clock.
BLOCK_SECONDS = 0.02

# Entries of each result of an operation that have to agree.
SAMPLED = 32

# Where Linux tells how much memory this process has, and where it is told to forget the highest mark.
_STATUS, _CLEAR = "/proc/self/status", "/proc/self/clear_refs"

LEARNING_RATE, BETA1, BETA2, EPSILON, WEIGHT_DECAY = 1e-3, 0.9, 0.999, 1e-8, 0.01


class System(Protocol):
    """A problem ready to run in some library."""

    def reset(self) -> None:
        """Back to the initial parameters."""

    def run(self, times: int) -> None:
        """Do it `times` times, steps on one batch after the other, and wait until all is done."""

    def values(self, count: int) -> list[float]:
        """From the initial parameters: the losses of the first steps; of a matrix product, its first diagonal.

        Of another operation, a `sample` of its results.
        """


def parameters_of(arrays: Arrays) -> list[Any]:
    return [arrays[f"p{i}"] for i in range(sum(name.startswith("p") for name in arrays))]


def sample(results: Sequence[Any]) -> list[float]:
    """A few numbers about arrays: for each its root mean square, and some entries as multiples of that."""
    numbers: list[float] = []
    for result in results:
        flat = np.asarray(result).reshape(-1)
        scale = float(np.sqrt(np.mean(np.square(flat, dtype=np.float64)))) or 1.0
        # A stride that is odd, so that entries of all rows and columns are among them.
        entries = flat[:: max(1, flat.size // SAMPLED) | 1][:SAMPLED]
        numbers += [scale, *(float(entry) / scale for entry in entries)]
    return numbers


# --- PyTorch ---------------------------------------------------------------------------------------------------------


def torch_network(arrays: Arrays) -> tuple[list[Any], Callable[[Any, Any], Any]]:
    """(parameters, mean loss of a batch) of the classifier of these arrays, as modules."""
    import torch

    layers: list[Any] = []
    parameters = parameters_of(arrays)
    images = False
    for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
        if weight.ndim == 4:
            layer = torch.nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
            layers += [layer, torch.nn.ReLU(), torch.nn.MaxPool2d(2)]
        else:
            layer = torch.nn.Linear(*weight.shape)
            layers += [*([torch.nn.Flatten()] if images else []), layer, torch.nn.ReLU()]
        images = weight.ndim == 4
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight if weight.ndim == 4 else weight.T.copy()))
            layer.bias.copy_(torch.from_numpy(bias))
    model = torch.nn.Sequential(*layers[:-1])

    def objective(x: Any, y: Any) -> Any:
        return torch.nn.functional.cross_entropy(model(x), y)

    return list(model.parameters()), objective


class TorchStep:
    """Autograd and the fused AdamW; `compiled` sends forward pass, loss and their gradients to Inductor."""

    def __init__(self, arrays: Arrays, compiled: bool) -> None:
        import torch

        self.torch = torch
        if "settings" in arrays:
            self.parameters, objective = importlib.import_module("peer_torch").model(arrays)
        else:
            self.parameters, objective = torch_network(arrays)
        self.initial = [parameter.detach().clone() for parameter in self.parameters]
        self.optimizer = torch.optim.AdamW(
            self.parameters, LEARNING_RATE, (BETA1, BETA2), EPSILON, WEIGHT_DECAY, fused=True
        )
        pairs = zip(arrays["x"], arrays["y"], strict=True)
        self.batches = [(torch.from_numpy(x.copy()), torch.from_numpy(y.astype(np.int64))) for x, y in pairs]
        self.objective = torch.compile(objective) if compiled else objective

    def step(self, number: int) -> Any:
        x, y = self.batches[number % len(self.batches)]
        self.optimizer.zero_grad()
        loss = self.objective(x, y)
        loss.backward()
        self.optimizer.step()
        return loss

    def forget_initial(self) -> None:
        del self.initial

    def reset(self) -> None:
        with self.torch.no_grad():
            for parameter, value in zip(self.parameters, self.initial, strict=True):
                parameter.copy_(value)
            for state in self.optimizer.state.values():
                for tensor in state.values():
                    tensor.zero_()

    def run(self, times: int) -> None:
        for number in range(times):
            self.step(number)

    def values(self, count: int) -> list[float]:
        self.reset()
        return [float(self.step(number)) for number in range(count)]


class TorchProduct:
    def __init__(self, arrays: Arrays) -> None:
        import torch

        self.torch = torch
        self.a, self.b = torch.from_numpy(arrays["a"].copy()), torch.from_numpy(arrays["b"].copy())

    def reset(self) -> None:
        pass

    def run(self, times: int) -> None:
        for _ in range(times):
            self.torch.mm(self.a, self.b)

    def values(self, count: int) -> list[float]:
        return [float(value) for value in self.torch.mm(self.a, self.b).diagonal()[:count]]


class TorchOperation:
    def __init__(self, arrays: Arrays, compiled: bool) -> None:
        self.function, self.arguments = importlib.import_module("peer_torch").operation(arrays, compiled)

    def reset(self) -> None:
        pass

    def run(self, times: int) -> None:
        for _ in range(times):
            self.function(*self.arguments)

    def values(self, count: int) -> list[float]:
        return sample([result.detach().numpy() for result in self.function(*self.arguments)])


def torch_system(arrays: Arrays, compiled: bool) -> System:
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if "c" in arrays:
        return TorchOperation(arrays, compiled)
    return TorchProduct(arrays) if "a" in arrays else TorchStep(arrays, compiled)


# --- JAX -------------------------------------------------------------------------------------------------------------


def jax_loss(parameters: list[Any], state: Any, x: Any, y: Any) -> Any:
    """(mean loss of a batch, `state`) of a classifier with these parameters."""
    import jax
    import jax.numpy as jnp

    last = len(parameters) - 2
    for i in range(0, len(parameters), 2):
        weight, bias = parameters[i], parameters[i + 1]
        if weight.ndim == 4:
            layout = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=layout) + bias
            x = jax.nn.relu(x)
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        else:
            x = x.reshape(x.shape[0], -1) @ weight + bias
            x = x if i == last else jax.nn.relu(x)
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], axis=1)), state


def jax_step(objective: Callable[..., Any]) -> Callable[..., Any]:
    """`(state, x, y) -> (loss, state)` in plain JAX, compiled, the old state given up."""
    import jax
    import jax.numpy as jnp

    def step(state: Any, x: Any, y: Any) -> Any:
        parameters, first, second, count, statistics = state
        (loss, statistics), gradients = jax.value_and_grad(objective, has_aux=True)(parameters, statistics, x, y)
        count = count + 1
        first = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, first, gradients)
        second = jax.tree.map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, second, gradients)
        scale1, scale2 = 1 / (1 - BETA1**count), 1 / (1 - BETA2**count)

        def updated(p: Any, m: Any, v: Any) -> Any:
            return p - LEARNING_RATE * (m * scale1 / (jnp.sqrt(v * scale2) + EPSILON) + WEIGHT_DECAY * p)

        return loss, (jax.tree.map(updated, parameters, first, second), first, second, count, statistics)

    # Declared, as without JAX its types are unknown.
    compiled: Callable[..., Any] = jax.jit(step, donate_argnums=0)
    return compiled


class JaxStep:
    """One jitted step. Images have their channels last, as JAX's own libraries lay them out."""

    def __init__(self, arrays: Arrays) -> None:
        import jax

        self.jax: Any = jax
        self.wait: Callable[[Any], Any] = self.jax.block_until_ready
        self.parameters: Any
        self.statistics: Any = {}
        if "settings" in arrays:
            self.parameters, self.statistics, objective, x = importlib.import_module("peer_jax").model(arrays)
        else:
            self.parameters = self.channels_last(parameters_of(arrays), arrays["x"].shape[-1])
            x = arrays["x"].transpose(0, 1, 3, 4, 2) if arrays["x"].ndim == 5 else arrays["x"]
            objective = jax_loss
        self.compiled = jax_step(objective)
        self.batches = [(jax.device_put(a), jax.device_put(b)) for a, b in zip(x, arrays["y"], strict=True)]
        self.reset()

    @staticmethod
    def channels_last(parameters: list[Any], side: int) -> list[Any]:
        """The parameters of the same function of images whose channels come last."""
        arranged, channels = [], 0
        for parameter in parameters:
            if parameter.ndim == 4:
                channels, side = parameter.shape[0], side // 2
                parameter = parameter.transpose(2, 3, 1, 0)
            elif parameter.ndim == 2 and channels:
                flat = parameter.shape
                parameter = parameter.reshape(channels, side, side, -1).transpose(1, 2, 0, 3).reshape(flat)
                channels = 0
            arranged.append(np.ascontiguousarray(parameter))
        return arranged

    def reset(self) -> None:
        def copies(values: Any) -> Any:
            return self.jax.tree.map(self.jax.numpy.array, values)

        zeros = self.jax.tree.map(np.zeros_like, self.parameters)
        count = self.jax.numpy.float32(0)
        self.state = (copies(self.parameters), copies(zeros), copies(zeros), count, copies(self.statistics))
        self.wait(self.state)

    def forget_initial(self) -> None:
        del self.parameters

    def step(self, number: int) -> Any:
        x, y = self.batches[number % len(self.batches)]
        loss, self.state = self.compiled(self.state, x, y)
        return loss

    def run(self, times: int) -> None:
        for number in range(times):
            self.step(number)
        self.wait(self.state)

    def values(self, count: int) -> list[float]:
        self.reset()
        return [float(self.step(number)) for number in range(count)]


class JaxProduct:
    def __init__(self, arrays: Arrays) -> None:
        import jax

        self.product = jax.jit(jax.numpy.matmul)
        self.a, self.b = jax.device_put(arrays["a"]), jax.device_put(arrays["b"])

    def reset(self) -> None:
        pass

    def run(self, times: int) -> None:
        for _ in range(times):
            self.product(self.a, self.b).block_until_ready()

    def values(self, count: int) -> list[float]:
        return [float(value) for value in self.product(self.a, self.b).diagonal()[:count]]


class JaxOperation:
    def __init__(self, arrays: Arrays) -> None:
        import jax

        self.wait: Callable[[Any], Any] = jax.block_until_ready
        self.function, self.arguments = importlib.import_module("peer_jax").operation(arrays)

    def reset(self) -> None:
        pass

    def run(self, times: int) -> None:
        for _ in range(times):
            self.wait(self.function(*self.arguments))

    def values(self, count: int) -> list[float]:
        return sample(self.function(*self.arguments))


def jax_system(arrays: Arrays) -> System:
    if "c" in arrays:
        return JaxOperation(arrays)
    return JaxProduct(arrays) if "a" in arrays else JaxStep(arrays)


# --- NumPy -----------------------------------------------------------------------------------------------------------


class NumpyProduct:
    def __init__(self, arrays: Arrays) -> None:
        self.a, self.b = arrays["a"], arrays["b"]
        self.out = np.empty_like(self.a)

    def reset(self) -> None:
        pass

    def run(self, times: int) -> None:
        for _ in range(times):
            np.matmul(self.a, self.b, out=self.out)

    def values(self, count: int) -> list[float]:
        return [float(value) for value in np.matmul(self.a, self.b).diagonal()[:count]]


# --- answering requests ----------------------------------------------------------------------------------------------


def time_blocks(system: System, seconds: float) -> list[float]:
    """Seconds that one run takes, from several blocks of runs that together last about `seconds`."""

    def block(times: int) -> float:
        system.reset()
        started = time.perf_counter()
        system.run(times)
        return (time.perf_counter() - started) / times

    block(1)
    times = max(1, int(BLOCK_SECONDS / max(block(2), 1e-9)))
    blocks, stop = [block(times)], time.perf_counter() + seconds
    while time.perf_counter() < stop:
        blocks.append(block(times))
    return blocks


Handler = Callable[[System | None, dict[str, Any]], Any]


def resident_bytes(highest: bool = False) -> int:
    """Memory of this process that is resident, or the most there was since `start_peak`.

    Where the system does not tell, the most there ever was.
    """
    if not os.path.exists(_STATUS):
        import resource

        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return largest if sys.platform == "darwin" else 1024 * largest
    with open(_STATUS) as status:
        sizes = dict(line.split(":", 1) for line in status if line.startswith("Vm"))
    return 1024 * int(sizes["VmHWM" if highest else "VmRSS"].split()[0])


def start_peak() -> None:
    """Forget how much memory was resident before, where the system can."""
    if os.path.exists(_CLEAR):
        with open(_CLEAR, "w") as clear:
            clear.write("5")


def peak_bytes(make: Callable[[Arrays], System], file: str, steps: int) -> int:
    """The most memory resident in `steps` steps beyond what was before the model was made: for a new process.

    The first steps, which compile and make the optimizer's state, are not among them; what they leave behind is.
    """
    before = resident_bytes()
    system: Any = make(read_arrays(file))
    system.forget_initial()
    system.run(2)
    gc.collect()
    start_peak()
    system.run(steps)
    return resident_bytes(highest=True) - before


def read_arrays(file: str) -> Arrays:
    """All arrays of an .npz file."""
    with np.load(file) as archive:
        return {name: archive[name] for name in archive.files}


def answer_with(make: Callable[[Arrays], System], more: Mapping[str, Handler]) -> Callable[[dict[str, Any]], Any]:
    """The function from a request to its answer; it holds the problem loaded last."""
    loaded: list[System] = []

    def answer(request: dict[str, Any]) -> Any:
        do = request["do"]
        if do == "load":
            arrays = read_arrays(request["arrays"])
            started = time.perf_counter()
            loaded[:] = [make(arrays)]
            loaded[0].run(1)
            return time.perf_counter() - started
        if do == "values":
            return loaded[0].values(request["count"])
        if do == "time":
            return time_blocks(loaded[0], request["seconds"])
        if do == "memory":
            return peak_bytes(make, request["arrays"], request["steps"])
        return more[do](loaded[0] if loaded else None, request)

    return answer


def serve(make: Callable[[Arrays], System], more: Mapping[str, Handler] | None = None) -> None:
    """Answer requests until the input ends.

    {"do": "load", "arrays": file} makes a problem ready and runs it once: the seconds that took, with compiling.
    {"do": "values", "count": n} and {"do": "time", "seconds": s}: see `System.values`, `time_blocks`.
    {"do": "memory", "arrays": file, "steps": n}: see `peak_bytes`.
    An answer is {"answer": ...} or {"error": "..."}. Other requests are looked up in `more`.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not look like an answer
    answer = answer_with(make, more or {})
    for line in sys.stdin:
        try:
            reply = {"answer": answer(json.loads(line))}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"[:500]}
        answers.write(json.dumps(reply) + "\n")


MAKERS: dict[str, tuple[str, Callable[[Arrays], System]]] = {
    "torch": ("torch", lambda arrays: torch_system(arrays, False)),
    "torch-compile": ("torch", lambda arrays: torch_system(arrays, True)),
    "jax": ("jax", jax_system),
    "numpy": ("numpy", NumpyProduct),
}

if __name__ == "__main__":
    library, maker = MAKERS[sys.argv[1]]
    importlib.import_module(library)  # now, so that the first request is not charged for it
    serve(maker)
