"""Single operations to measure, forward and with their gradients, as the arrays that every system is given."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = dict[str, Array]


@dataclass(frozen=True)
class Operation:
    """An operation of random inputs, alone or with the gradients for a random cotangent of its result.

    `operation` names the function of `kaun_operations`, `peer_torch` and `peer_jax` that computes it. `shapes` are
    those of the inputs that have gradients; `indices` is the shape of an integer input after them, below `below`.
    `deviations` of the inputs are 1 where they are not given.
    """

    operation: str
    detail: str
    shapes: tuple[tuple[int, ...], ...]
    result: tuple[int, ...]
    backward: bool = False
    indices: tuple[int, ...] | None = None
    below: int = 0
    deviations: tuple[float, ...] = ()
    slow_to_compile: bool = True  # operations are too many to send each to Inductor unasked

    @property
    def name(self) -> str:
        size = "-1024" if self.operation.endswith("gelu") and 1024 in (*self.result, *self.shapes[-1]) else ""
        return self.operation + size + ("-grad" if self.backward else "")

    @property
    def title(self) -> str:
        return f"{self.operation} {self.detail}{', backward' if self.backward else ''}"

    def arrays(self, seed: int = 0) -> Arrays:
        """The inputs i0, i1, ..., the cotangent c (of a scalar too), and the settings as JSON."""
        generator = np.random.default_rng(seed)
        deviations = self.deviations or (1.0,) * len(self.shapes)
        inputs = [
            (deviation * generator.standard_normal(shape)).astype(np.float32)
            for shape, deviation in zip(self.shapes, deviations, strict=True)
        ]
        if self.indices is not None:
            inputs.append(generator.integers(0, self.below, self.indices).astype(np.int32))
        settings = {"operation": self.operation, "differentiated": len(self.shapes) if self.backward else 0}
        cotangent = np.asarray(generator.standard_normal(self.result), np.float32)
        return {"settings": np.array(json.dumps(settings)), "c": cotangent} | {f"i{i}": x for i, x in enumerate(inputs)}


def _both(
    operation: str, detail: str, shapes: tuple[tuple[int, ...], ...], result: tuple[int, ...], **more: Any
) -> tuple[Operation, Operation]:
    return (
        Operation(operation, detail, shapes, result, **more),
        Operation(operation, detail, shapes, result, backward=True, **more),
    )


_SEQUENCES, _WIDE, _IMAGES, _HEADS = (32, 128, 256), (32, 128, 1024), (32, 64, 32, 32), (32, 8, 128, 32)

OPERATIONS: tuple[Operation, ...] = (
    *_both("layer_norm", "(32, 128, 256)", (_SEQUENCES, (256,), (256,)), _SEQUENCES),
    *_both("rms_norm", "(32, 128, 256)", (_SEQUENCES, (256,)), _SEQUENCES),
    *_both("softmax", "(32, 128, 256)", (_SEQUENCES,), _SEQUENCES),
    *_both("gelu", "(32, 128, 256)", (_SEQUENCES,), _SEQUENCES),
    *_both("gelu", "(32, 128, 1024)", (_WIDE,), _WIDE),
    *_both("batch_norm", "(32, 256, 8, 8)", ((32, 256, 8, 8), (256,), (256,)), (32, 256, 8, 8)),
    *_both("attention", "(32, 8, 128, 32)", (_HEADS,) * 3, _HEADS),
    *_both("causal_attention", "(32, 8, 128, 32)", (_HEADS,) * 3, _HEADS),
    *_both(
        "conv1d", "(32, 64, 128) to 64, k 3", ((32, 64, 128), (64, 64, 3), (64,)), (32, 64, 128),
        deviations=(1.0, 0.07, 1.0),
    ),
    *_both(
        "conv2d", "(32, 64, 32, 32) to 128, 3x3 same", (_IMAGES, (128, 64, 3, 3), (128,)), (32, 128, 32, 32),
        deviations=(1.0, 0.04, 1.0),
    ),
    *_both("max_pool", "(32, 64, 32, 32), 2x2", (_IMAGES,), (32, 64, 16, 16)),
    *_both("avg_pool", "(32, 64, 32, 32), 2x2", (_IMAGES,), (32, 64, 16, 16)),
    *_both(
        "linear", "(4096, 256) to 256", ((4096, 256), (256, 256), (256,)), (4096, 256), deviations=(1.0, 0.06, 1.0)
    ),
    *_both(
        "linear_gelu", "(4096, 256) to 1024", ((4096, 256), (256, 1024), (1024,)), (4096, 1024),
        deviations=(1.0, 0.06, 1.0),
    ),
    *_both("embedding", "32000 x 256 at (32, 128)", ((32000, 256),), _SEQUENCES, indices=(32, 128), below=32000),
    *_both("cross_entropy", "(512, 32000)", ((512, 32000),), (), indices=(512,), below=32000),
)  # fmt: skip
