"""What is measured: training steps, operations and products, as arrays that every system is given alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from kaun.tools.bench.model_problems import BATCHES, MODELS, Model
from kaun.tools.bench.operation_problems import OPERATIONS, Operation

Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]

__all__ = ["GROUPS", "PROBLEMS", "Model", "Network", "Operation", "Problem", "Product", "chosen", "parameters"]


@dataclass(frozen=True)
class Network:
    """A training step: ReLU classifier, mean cross-entropy, AdamW (1e-3, 0.9, 0.999, 1e-8, 0.01).

    `channels` are those of 3x3 convolutions, each with ReLU and 2x2 max pooling; `widths` those of the dense layers
    after them, the number of classes last. Images are (1, side, side).
    """

    name: str
    title: str
    batch: int
    side: int
    channels: tuple[int, ...]
    widths: tuple[int, ...]

    def arrays(self, seed: int = 0) -> Arrays:
        """Parameters p0, p1, ... (weight (in, out) or (out, in, 3, 3), then bias, layer by layer) and batches x, y."""
        generator = np.random.default_rng(seed)
        parameters: list[np.ndarray[Any, np.dtype[Any]]] = []

        def add(shape: tuple[int, ...], fan_in: int, outputs: int) -> None:
            parameters.append(generator.normal(0.0, (2 / fan_in) ** 0.5, shape).astype(np.float32))
            parameters.append(np.zeros(outputs, np.float32))

        previous, side = 1, self.side
        for channels in self.channels:
            add((channels, previous, 3, 3), previous * 9, channels)
            previous, side = channels, side // 2
        previous *= side * side
        for width in self.widths:
            add((previous, width), previous, width)
            previous = width
        image = (1, self.side, self.side) if self.channels else (self.side * self.side,)
        x = generator.standard_normal((BATCHES, self.batch, *image)).astype(np.float32)
        y = generator.integers(0, self.widths[-1], (BATCHES, self.batch)).astype(np.int32)
        return {"x": x, "y": y} | {f"p{i}": parameter for i, parameter in enumerate(parameters)}


@dataclass(frozen=True)
class Product:
    """A float32 product of two square matrices."""

    name: str
    size: int

    @property
    def title(self) -> str:
        return f"matmul {self.size}"

    @property
    def flops(self) -> int:
        return 2 * self.size**3

    def arrays(self, seed: int = 0) -> Arrays:
        """The matrices a and b."""
        generator = np.random.default_rng(seed)
        a, b = generator.standard_normal((2, self.size, self.size)).astype(np.float32)
        return {"a": a, "b": b}


Problem = Network | Product | Model | Operation

# What is measured if nothing is chosen.
_QUICK: tuple[Problem, ...] = (
    Network("mlp-128", "MLP 784-128-10, batch 64", 64, 28, (), (128, 10)),
    Network("mlp-512", "MLP 784-512-512-10, batch 128", 128, 28, (), (512, 512, 10)),
    Network("cnn", "CNN 16-32-128-10 on 28x28, batch 32", 32, 28, (16, 32), (128, 10)),
    *(Product(f"matmul-{size}", size) for size in (256, 512, 1024, 2048)),
)
_PRODUCTS: tuple[Problem, ...] = tuple(Product(f"matmul-{size}", size) for size in (64, 128, 256, 512, 1024, 2048))
_STEPS: tuple[Problem, ...] = (*(problem for problem in _QUICK if isinstance(problem, Network)), *MODELS)

GROUPS: dict[str, tuple[Problem, ...]] = {
    "quick": _QUICK,
    "steps": _STEPS,
    "ops": OPERATIONS,
    "matmul": _PRODUCTS,
    "all": (*_STEPS, *OPERATIONS, *_PRODUCTS),
}
PROBLEMS: tuple[Problem, ...] = GROUPS["all"]


def chosen(names: Sequence[str]) -> list[Problem]:
    """The problems of these names and groups, in the order of `PROBLEMS`. ValueError for a name of neither."""
    wanted: set[str] = set()
    known = {problem.name for problem in PROBLEMS}
    for name in names:
        if name in GROUPS:
            wanted.update(problem.name for problem in GROUPS[name])
        elif name in known:
            wanted.add(name)
        else:
            groups, problems = ", ".join(GROUPS), ", ".join(problem.name for problem in PROBLEMS)
            raise ValueError(
                f"got {name!r}, expected one of the groups {groups} or of the problems {problems}"
            )
    return [problem for problem in PROBLEMS if problem.name in wanted]


def parameters(arrays: Mapping[str, Any]) -> list[Any]:
    """The parameters among a network's arrays, in order."""
    return [arrays[f"p{i}"] for i in range(sum(name.startswith("p") for name in arrays))]
