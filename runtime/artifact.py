"""What is compiled ahead of time, as plain data: named functions that share a state, for one target.

The front end makes artifacts of traced functions (`Compiled.artifact`, `CompiledStep.artifact`); saving, exporting and
the command line only read them. A compiled function is an artifact with one function, "call", and no state. A training
step has four functions, which agree on the names of what they take and give:

    step      state, rng, rates, x, y, context  ->  loss, the new state
    predict   params and layer state, x, context  ->  output
    evaluate  params and layer state, x, y, context  ->  loss
    init      key, first  ->  a fresh state, rng included; there if the initialisers could be traced

Every function takes its constants last. Leaves of one name are the same thing in all of them. A leaf of the state that
"step" does not give back stays as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
from kaun.compiler.ir.computed import cached_property
from kaun.compiler.ir.dtypes import DType
from kaun.compiler.ir.graph import Shape
from kaun.compiler.program import Program
from kaun.runtime.target import Target

Numbers = npt.NDArray[Any]


@dataclass(frozen=True)
class Leaf:
    """One array that a function takes or gives: `name` is a path such as "params.0.weight", "x", "y.mask", "loss"."""

    name: str
    dtype: DType
    shape: Shape

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)

    def __repr__(self) -> str:
        return f"{self.name}: {self.dtype}{list(self.shape)}"


@dataclass(frozen=True)
class KernelSummary:
    """One kernel of a compiled function: what it stores, its floating-point operations and bytes, and its chunks.

    `launch` numbers what is started by one call and waited for once: kernels of one launch run side by side.
    `layers` are the layer paths it computes something of; `flops` counts each fused operation once per element, and
    `bytes` every element that is read or stored once.
    """

    stores: tuple[str, ...]
    layers: tuple[str, ...]
    flops: int
    bytes: int
    chunks: int
    launch: int


@dataclass(frozen=True)
class Memory:
    """Bytes a call needs.

    inputs: parameters and optimizer state for a training step, and the batch.
    outputs: what it computes; `in_place` of them can be written over inputs, if the caller gives those up.
    arena: for intermediates, of which `lower_bound` are alive at once; scratch_per_thread: beside it.
    """

    arena: int
    lower_bound: int
    scratch_per_thread: int
    inputs: int
    outputs: int
    in_place: int = 0

    @classmethod
    def of(cls, program: Program, lower_bound: int) -> Memory:
        """What a call of the program needs."""
        return cls(
            arena=program.arena_bytes,
            lower_bound=lower_bound,
            scratch_per_thread=program.scratch_bytes,
            inputs=sum(array.nbytes for array in program.inputs),
            outputs=sum(array.nbytes for array in program.outputs),
            in_place=sum(program.outputs[output].nbytes for _, output in program.aliases),
        )

    @property
    def peak(self) -> int:
        """The bytes of a call on one thread that may write over its inputs."""
        return self.inputs + self.outputs - self.in_place + self.arena + self.scratch_per_thread

    def __repr__(self) -> str:
        over = self.arena / self.lower_bound - 1 if self.lower_bound else 0.0
        return (
            f"<memory: peak {_size(self.peak)} = inputs {_size(self.inputs)} + outputs "
            f"{_size(self.outputs - self.in_place)} (and {_size(self.in_place)} in place) + arena {_size(self.arena)} "
            f"({over:.1%} over the {_size(self.lower_bound)} alive at once) + scratch "
            f"{_size(self.scratch_per_thread)} for each thread>"
        )


def _size(count: int) -> str:
    """Bytes for people: "512 B", "1.5 kB", "23.4 MB"."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 999.95:
            return f"{value:.1f} {unit}" if unit != "B" else f"{count} B"
        value /= 1000
    return f"{value:,.2f} GB"


@dataclass(frozen=True)
class Cost:
    """Floating-point operations and bytes of memory traffic of one call, summed over the kernels."""

    flops: int
    bytes: int


@dataclass(frozen=True)
class Details:
    """A look inside a function, with what only the whole way through the compiler tells."""

    kernels: tuple[KernelSummary, ...]
    memory: Memory

    @property
    def cost(self) -> Cost:
        return Cost(sum(kernel.flops for kernel in self.kernels), sum(kernel.bytes for kernel in self.kernels))


@dataclass(frozen=True, eq=False)
class Function:
    """One native function.

    name: "call", or "step", "predict", "evaluate" and "init" of a training step.
    program: for the artifact's target.
    inputs, outputs: a leaf for each input and each result of the program, in order.
    constants: the numbers of tensors that the function uses without being given them; its last inputs.
    stages: the text of each stage of the pipeline by name, made when it is looked at.
    describe: makes the details, which `details` remembers.
    """

    name: str
    program: Program
    inputs: tuple[Leaf, ...]
    outputs: tuple[Leaf, ...]
    constants: tuple[Numbers, ...]
    stages: Mapping[str, str]
    describe: Callable[[], Details]

    @cached_property
    def details(self) -> Details:
        return self.describe()

    @property
    def arguments(self) -> tuple[Leaf, ...]:
        """The inputs without the constants: what a caller gives."""
        return self.inputs[: len(self.inputs) - len(self.constants)]


@dataclass(frozen=True, eq=False)
class Artifact:
    """Functions compiled ahead of time for a target, and what is needed to call them without their sources.

    kind: "function" or "step".
    name: what the user's function is called; "step" for a training step.
    state: the leaves of a training step's state: "params...", "state..." (of layers), "optimizer...", "step", "rng".
    initial: their numbers at the start, if the artifact has any.
    trees: how leaves make up the trees that callers see, as plain data (lists, strings, numbers) for `kaun.tree_data`.
    versions: of what made it, by name.
    """

    kind: str
    name: str
    functions: tuple[Function, ...]
    target: Target
    trees: Mapping[str, Any]
    versions: Mapping[str, str]
    state: tuple[Leaf, ...] = ()
    initial: tuple[Numbers, ...] | None = None

    def function(self, name: str) -> Function:
        """The function of that name. KeyError tells which there are."""
        for function in self.functions:
            if function.name == name:
                return function
        known = ", ".join(function.name for function in self.functions)
        raise KeyError(f"artifact.function: got {name!r}, expected one of {known}")
