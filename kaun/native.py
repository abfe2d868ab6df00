"""One function of an artifact: what it takes and gives, its graph, and its machine code once something runs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from kaun import execution, observe
from kaun import probes as probing
from kaun.compiler.ir import Graph, Node, key, substitute
from kaun.compiler.ir.computed import cached_property
from kaun.compiler.program import Program
from kaun.compiler.program_text import print_program
from kaun.compiler.schedule.traffic import traffic_bytes
from kaun.execution import CompiledProgram, Storage
from kaun.probes import Probe
from kaun.runtime import artifact, cpu_features
from kaun.runtime import target as targets
from kaun.runtime.artifact import Details, KernelSummary, Leaf, Memory
from kaun.runtime.target import Target

if TYPE_CHECKING:  # the compiler is loaded when something is compiled
    from kaun.compiler.pipeline import Compilation


class Native(ABC):
    """A function of leaves, known by its name in an artifact.

    inputs, outputs: its leaves; constants: the numbers of the last inputs, which callers do not give.
    """

    def __init__(self, name: str, inputs: tuple[Leaf, ...], outputs: tuple[Leaf, ...], constants: list[Storage]):
        self.name, self.inputs, self.outputs, self.constants = name, inputs, outputs, constants
        # What the function shows or checks where it was traced; its machine code gives that before the results.
        self.probes: tuple[Probe, ...] = ()

    @property
    @abstractmethod
    def graph(self) -> Graph:
        """What it computes, with the names of its inputs."""

    @property
    @abstractmethod
    def compiled(self) -> CompiledProgram:
        """Its machine code. ValueError if that is for another machine."""

    @property
    @abstractmethod
    def function(self) -> artifact.Function:
        """Its part of the artifact."""

    def function_for(self, target: Target) -> artifact.Function:
        """The function compiled anew for a target."""
        from kaun.compiler.pipeline import Compilation

        return described(self, Compilation(self.graph, execution.vector_target(target)), target)

    def __call__(self, given: list[Storage]) -> list[Storage]:
        """The results for the numbers of all inputs but the constants."""
        inputs = given + self.constants
        ran = self.watched(inputs)
        results = self.compiled(inputs)
        if ran is not None:
            ran(results[len(self.probes) :])
        return self.results(results)

    def watched(self, *inputs: list[Storage]) -> observe.Results | None:
        """Show what is about to run, on these inputs one after the other, to whoever looks on.

        What is given back, if anything, is to be called with the results, without what is only shown.
        """
        if not observe.observers:
            return None
        return observe.running(self.graph, [storage for part in inputs for storage in part])

    def results(self, outputs: list[Storage]) -> list[Storage]:
        """What the function returns, of all that the machine code gives; what it shows is shown."""
        return probing.shown(self.probes, outputs) if self.probes else outputs

    def spliced(self, given: Sequence[Node]) -> list[Node]:
        """The results as nodes of what is being traced."""
        values = [*given, *map(execution.computed_leaf, self.constants)]
        mapping = dict(zip(self.graph.inputs, values, strict=True))
        for probe, node in zip(self.probes, substitute([p.node for p in self.probes], mapping), strict=True):
            probing.record(probe.resolved(node))
        return substitute(self.graph.outputs, mapping)


class TracedNative(Native):
    """A function that was traced in this process. Compiled when it is first run."""

    def __init__(
        self, name: str, graph: Graph, inputs: tuple[Leaf, ...], outputs: tuple[Leaf, ...], constants: list[Storage],
        target: Target, probes: tuple[Probe, ...] = (),
    ):  # fmt: skip
        super().__init__(name, inputs, outputs, constants)
        self.probes = probes
        self._graph, self._target = Graph(graph.inputs, graph.outputs, tuple(leaf.name for leaf in inputs)), target

    @property
    def graph(self) -> Graph:
        return self._graph

    @cached_property
    def compiled(self) -> CompiledProgram:
        return self._compiled_graph

    @cached_property
    def _compiled_graph(self) -> execution.CompiledGraph:
        if not cpu_features.runs_here(self._target):
            raise ValueError(
                f"compiled: this function was compiled for {self._target.name}, and cannot run on "
                f"{targets.host().name}; export it, or compile it without `target`"
            )
        graph = probing.showing(self._graph, self.probes)
        return execution.compiled(graph, key(graph), self._target)

    @cached_property
    def function(self) -> artifact.Function:
        # What is kept in files shows nothing: its program is that of the function without.
        if self.probes or not cpu_features.runs_here(self._target):
            return self.function_for(self._target)
        return described(self, self._compilation, self._target, self.compiled.executable.program)

    @property
    def _compilation(self) -> Compilation:
        """The way to the program, with this function's names."""
        found = self._compiled_graph.compilation
        if found.differentiated.input_names == self._graph.input_names:
            return found
        from kaun.compiler.pipeline import Compilation

        return Compilation(self._graph, execution.vector_target(self._target))


def described(
    native: Native, compilation: Compilation, target: Target, program: Program | None = None
) -> artifact.Function:
    """The function as a part of an artifact for `target`; `program`: the compilation's, where it is there already."""
    program = compilation.program if program is None else program
    return artifact.Function(
        name=native.name,
        program=program,
        inputs=native.inputs,
        outputs=native.outputs,
        constants=tuple(storage.array for storage in native.constants),
        stages=Stages(compilation, program, target),
        describe=lambda: _details(compilation, program),
    )


def _details(compilation: Compilation, program: Program) -> Details:
    launches = [i for i, bundle in enumerate(program.bundles) for chain in bundle for _ in chain.calls]
    kernels = tuple(
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
    return Details(kernels, Memory.of(program, compilation.lower_bound_bytes))


class Stages(Mapping[str, str]):
    """The text of each stage of the pipeline by name, made when it is looked at."""

    def __init__(self, compilation: Compilation, program: Program | None = None, target: Target | None = None):
        self._compilation, self._given = compilation, program
        self._target = targets.host() if target is None else target

    @property
    def _program(self) -> Program:
        return self._compilation.program if self._given is None else self._given

    def __getitem__(self, name: str) -> str:
        if name == "scheduled":
            return print_program(self._program)
        if name == "llvm":
            return "\n".join(self._modules)
        if name == "assembly":
            from kaun.runtime import engine

            with ThreadPoolExecutor(targets.usable_cores(), "kaun-assembly") as workers:
                return "\n".join(workers.map(lambda text: engine.assembly(text, self._target), self._modules))
        if name not in self:
            raise KeyError(f"compiled.stages: got {name!r}, expected one of {', '.join(self)}")
        return self._compilation.stage(name)

    @cached_property
    def _modules(self) -> list[str]:
        """The LLVM IR of each kernel and of the entry."""
        kernels = [module.emit(f"kernel_{number}") for number, module in enumerate(self._program.kernels)]
        return [*kernels, self._program.entry.emit("entry")]

    def __contains__(self, name: object) -> bool:
        return any(name == stage for stage in self)

    def __iter__(self) -> Iterator[str]:
        from kaun.compiler.pipeline import STAGES

        return iter((*STAGES, "assembly"))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"<stages {', '.join(self)}>"
