"""Functions compiled ahead of their first call, for argument types given by specs; and a look inside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kaun import execution, nx, ptree
from kaun.compiler.ir import dtypes
from kaun.compiler.ir.dtypes import DType
from kaun.compiler.ir.rules import check_shape
from kaun.compiler.schedule.traffic import traffic_bytes
from kaun.runtime import target as targets
from kaun.tracing import Function, Specialisation

if TYPE_CHECKING:  # the compiler is loaded when something is compiled
    from kaun.compiler.pipeline import Compilation


@dataclass(frozen=True)
class Spec:
    """The type of a tensor: its shape and dtype, without values. A leaf of trees."""

    shape: tuple[int, ...]
    dtype: DType

    def __repr__(self) -> str:
        return f"spec({self.dtype}{list(self.shape)})"


def spec(shape: Sequence[int] | int, dtype: DType | str = dtypes.float32) -> Spec:
    """The type of a tensor of `shape` and `dtype` (float32), to compile a function for before there are values.

    ValueError for a negative extent, TypeError for an unknown dtype.
    """
    extents = (shape,) if isinstance(shape, int) else tuple(shape)
    return Spec(check_shape("compiled.spec", extents), dtypes.of(dtype))


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


class Stages(Mapping[str, str]):
    """The text of each stage of the pipeline by name, made when it is looked at."""

    def __init__(self, compilation: Compilation):
        self._compilation = compilation

    def __getitem__(self, name: str) -> str:
        if name == "assembly":
            from kaun.runtime import engine

            target = targets.host()
            modules = [*self._compilation.program.kernels, self._compilation.program.entry]
            return "\n".join(engine.assembly(m.emit(f"kernel_{i}"), target) for i, m in enumerate(modules))
        if name not in self:
            raise KeyError(f"compiled.stages: got {name!r}, expected one of {', '.join(self)}")
        return self._compilation.stage(name)

    def __contains__(self, name: object) -> bool:
        return any(name == stage for stage in self)

    def __iter__(self) -> Iterator[str]:
        from kaun.compiler.pipeline import STAGES

        return iter((*STAGES, "assembly"))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"<stages {', '.join(self)}>"


class Compiled:
    """A function compiled for one type of arguments. Called like the function, it never traces again.

    stages: the text of each stage of the pipeline by name: "traced", "differentiated", "simplified", "fused",
        "scheduled", "llvm" and "assembly".
    kernels: a `KernelSummary` for each kernel, in the order in which they run.
    memory: a `Memory`; cost: a `Cost`.
    """

    def __init__(self, function: Callable[..., Any], specs: tuple[Any, ...]):
        self._name = getattr(function, "__name__", "function")
        self._specs = specs
        self._function = Function(getattr(function, "function", function))
        arguments = ptree.map(lambda leaf: nx.Tensor(execution.placeholder(leaf.shape, dtypes.of(leaf.dtype))), specs)
        self._special: Specialisation = self._function.specialise(*arguments)

    def __call__(self, *trees: Any) -> Any:
        """The function's result. TypeError or ValueError, naming the argument, where a type differs from its spec."""
        self._check(trees)
        return self._function(*trees)

    def _check(self, trees: tuple[Any, ...]) -> None:
        if len(trees) != len(self._specs):
            raise TypeError(f"compiled.{self._name}: got {len(trees)} arguments, expected {len(self._specs)}")
        for position, (given, expected) in enumerate(zip(trees, self._specs, strict=True)):
            where = f"compiled.{self._name}: argument {position}"
            found = ptree.difference(ptree.structure(expected), ptree.structure(given))
            if found is not None:
                raise ValueError(f"{where} differs from its spec at {found}")
            for (path, wanted), leaf in zip(ptree.flatten_with_paths(expected), ptree.leaves(given), strict=True):
                tensor = leaf if isinstance(leaf, nx.Tensor) else nx.asarray(leaf)
                at = f" at `{path}`" if path else ""
                if tensor.shape != wanted.shape:
                    raise ValueError(f"{where}{at}: got shape {list(tensor.shape)}, expected {list(wanted.shape)}")
                if tensor.dtype is not wanted.dtype:
                    raise TypeError(f"{where}{at}: got dtype {tensor.dtype}, expected {wanted.dtype}")

    @property
    def _compilation(self) -> Compilation:
        return self._special.compiled.compilation

    @property
    def stages(self) -> Stages:
        return Stages(self._compilation)

    @property
    def kernels(self) -> tuple[KernelSummary, ...]:
        compilation = self._compilation
        launches = [i for i, bundle in enumerate(compilation.program.bundles) for chain in bundle for _ in chain.calls]
        return tuple(
            KernelSummary(
                stores=tuple(f"{n.op.name} {n.dtype}{list(n.shape)}" for n in scheduled.outputs),
                layers=tuple(sorted({n.source.path for n in scheduled.nodes if n.source.path})),
                flops=sum(node.op.flops(node) for node in scheduled.nodes),
                bytes=traffic_bytes(scheduled.reads, scheduled.outputs, scheduled.nodes),
                chunks=how.chunks,
                launch=launch,
            )
            for scheduled, how, launch in zip(compilation.kernels, compilation.launches, launches, strict=True)
        )

    @property
    def memory(self) -> Memory:
        program = self._compilation.program
        return Memory(
            arena=program.arena_bytes,
            lower_bound=self._compilation.lower_bound_bytes,
            scratch_per_thread=program.scratch_bytes,
            inputs=sum(array.nbytes for array in program.inputs),
            outputs=sum(array.nbytes for array in program.outputs),
            in_place=sum(program.outputs[output].nbytes for _, output in program.aliases),
        )

    @property
    def cost(self) -> Cost:
        kernels = self.kernels
        return Cost(sum(kernel.flops for kernel in kernels), sum(kernel.bytes for kernel in kernels))

    def __repr__(self) -> str:
        program = self._compilation.program
        counts = f"{len(program.calls)} kernels in {len(program.bundles)} launches"
        return f"<compiled {self._name}: {counts}, {self.cost.flops:,} flops>"


def compile(function: Callable[..., Any], *specs: Any) -> Compiled:
    """`function` traced and compiled now, for arguments of these types.

    specs: a tree for each positional argument, with a `spec` (or a tensor that stands for its type) at each leaf.

        step = kn.compile(lambda x, w: nx.tanh(x @ w), kn.spec((64, 784)), kn.spec((784, 10)))
        print(step.stages["fused"])

    Errors in the function surface here; wrong types at a call are a ValueError or TypeError that names the argument.
    """
    return Compiled(function, specs)
