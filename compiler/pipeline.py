"""The pipeline: every stage from a traced graph to a program, in order. The page to read first.

    traced          the graph as the user's function built it                 compiler/ir
    differentiated  the same with gradients and updates                       compiler/autodiff
    simplified      after the graph passes                                    compiler/passes
    fused           which nodes share a kernel, and kernels a launch          compiler/schedule/{fusion,bundling}.py
    scheduled       each kernel as loop IR, launches, memory plan             compiler/schedule, compiler/program.py
    llvm            each kernel as LLVM IR                                    compiler/codegen
    assembly        made by the runtime, which owns LLVM                      runtime/engine.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from . import passes
from .codegen.entry import emit_entry
from .codegen.kernels import emit_kernel, launch
from .codegen.vector_target import VectorTarget
from .ir import Graph, Node, print_graph
from .ir.computed import cached_property
from .program import Array, Call, Chain, Module, Place, Program
from .program_aliases import find_aliases
from .program_text import print_program
from .schedule import bundling
from .schedule.bundling import Launch
from .schedule.fusion import ScheduledKernel, fuse
from .schedule.in_place import Shared, shared_places
from .schedule.loop_ir import Kernel
from .schedule.memory import Lifetime, peak_bytes, plan_arena
from .schedule.order import order_kernels
from .schedule.parse import parse_kernel
from .schedule.text import print_kernel
from .schedule.waits import Waits, without_waits

STAGES: tuple[str, ...] = ("traced", "differentiated", "simplified", "fused", "scheduled", "llvm")


@dataclass(frozen=True, eq=False)
class Compilation:
    """A graph on its way to a program; each stage is computed when it is first looked at.

    `pass_names` tells which passes make the simplified graph of the differentiated one.
    """

    differentiated: Graph
    target: VectorTarget
    pass_names: tuple[str, ...] = passes.STANDARD

    @cached_property
    def traced(self) -> Graph:
        """The forward part of the graph: up to what its results, gradients and updates are made from."""
        graph = self.differentiated
        given = set(graph.inputs)
        forward: set[Node] = set()
        for node in graph.nodes:
            if node in given or (node.source.phase == "forward" and all(c in forward for c in node.inputs)):
                forward.add(node)
        needed = set(graph.outputs) | {c for node in graph.nodes if node not in forward for c in node.inputs}
        ends = [node for node in graph.nodes if node in forward and node in needed and node.inputs]
        return Graph(graph.inputs, tuple(ends), graph.input_names)

    @cached_property
    def simplified(self) -> Graph:
        """The graph after the passes. Its inputs correspond to the differentiated graph's, one by one."""
        return passes.run(self.differentiated, self.pass_names)

    @cached_property
    def fused(self) -> list[ScheduledKernel]:
        """The kernels as fusion made them, in the order in which they are bundled."""
        graph, waits = self._without_waits
        return order_kernels(fuse(graph, self.target.lanes("float32"), waits), graph)

    @property
    def scheduled_graph(self) -> Graph:
        """What the kernels compute: the simplified graph without the order in which it asks for things."""
        return self._without_waits[0]

    @property
    def scheduled_nodes(self) -> Mapping[Node, Node]:
        """What nodes of the simplified graph are in the scheduled one; some are in it no more."""
        return self._without_waits[1].freed

    @cached_property
    def _without_waits(self) -> tuple[Graph, Waits]:
        """The graph that kernels are made of, and the order that what is computed again asks for."""
        return without_waits(self.simplified)

    @cached_property
    def _launches(self) -> list[Launch]:
        """How each of `fused` is run."""
        return [launch(k.kernel, self.target) for k in self.fused]

    @cached_property
    def _bundles(self) -> list[bundling.Bundle]:
        """What each launch runs, in numbers of `fused`."""
        return bundling.bundle(self.fused, self._launches, self._without_waits[0], self.target.l2_bytes)

    @cached_property
    def _order(self) -> list[int]:
        return [k for bundle in self._bundles for chain in bundle for k in chain.kernels]

    @cached_property
    def kernels(self) -> list[ScheduledKernel]:
        """The kernels in the order of the program's calls, in which they can run one by one."""
        return [self.fused[k] for k in self._order]

    @cached_property
    def launches(self) -> list[Launch]:
        """How each of `kernels` is run."""
        return [self._launches[k] for k in self._order]

    @cached_property
    def places(self) -> list[Shared]:
        """The places of the arena, each with the intermediates that are in it one after the other."""
        steps: list[list[list[ScheduledKernel]]] = []
        for bundle in self._bundles:
            chains = [[self.fused[k] for k in chain.kernels] for chain in bundle]
            steps += [chains] if len(chains) > 1 else [*([[kernel]] for kernel in chains[0]), []]
        return shared_places(steps, self.lifetimes)

    @cached_property
    def lifetimes(self) -> dict[Node, Lifetime]:
        """The intermediates: values written by one kernel for others, and outputs of no one.

        A step is what runs at a time: a bundle of several chains, or each kernel of a chain by itself.
        """
        results = set(self._without_waits[0].outputs)
        first: dict[Node, int] = {}
        last: dict[Node, int] = {}
        step = 0
        for bundle in self._bundles:
            for scheduled in (self.fused[k] for chain in bundle for k in chain.kernels):
                for node in scheduled.outputs:
                    first[node] = last[node] = step
                for node in scheduled.reads:
                    last[node] = step
                step += len(bundle) == 1
            step += 1
        return {n: Lifetime(n.nbytes, first[n], last[n]) for n in first if n not in results}

    @cached_property
    def program(self) -> Program:
        """The program the runtime runs."""
        graph, _ = self._without_waits
        offsets, arena_bytes = plan_arena([shared.lifetime for shared in self.places])
        places = {
            n: Place("arena", offset)
            for shared, offset in zip(self.places, offsets, strict=True)
            for n in shared.values
        }
        places.update({n: Place("input", i) for i, n in enumerate(graph.inputs)})
        computed = [n for n in dict.fromkeys(graph.outputs) if n not in places]
        places.update({n: Place("output", i) for i, n in enumerate(computed)})
        numbers: dict[str, int] = {}
        modules: list[Module] = []
        table: list[Kernel] = []
        calls = []
        for scheduled, how in zip(self.kernels, self.launches, strict=True):
            text = print_kernel(scheduled.kernel)
            if text not in numbers:
                numbers[text] = len(modules)
                table.append(scheduled.kernel)
                modules.append(Module(text, _emitter(scheduled.kernel, self.target)))
            buffers = tuple(places[b.node] for b in scheduled.kernel.buffers)
            calls.append(Call(numbers[text], buffers, how.chunks))
        remaining = iter(calls)
        bundles = tuple(
            tuple(Chain(tuple(next(remaining) for _ in chain.kernels), chain.pieces) for chain in bundle)
            for bundle in self._bundles
        )
        program = Program(
            inputs=tuple(Array(n.dtype, n.shape) for n in graph.inputs),
            outputs=tuple(Array(n.dtype, n.shape) for n in computed),
            results=tuple(places[n] for n in graph.outputs),
            bundles=bundles,
            kernels=tuple(modules),
            emit_entry=lambda program, name, symbols: emit_entry(program, name, self.target, symbols),
            arena_bytes=arena_bytes,
            scratch_bytes=max((how.scratch_bytes for how in self.launches), default=0),
        )
        return replace(program, aliases=find_aliases(program, table))

    def located(self, number: int) -> str:
        """LLVM IR of the program's kernel of this number whose instructions tell for which line of its text they are.

        See `codegen/locations.py`. The instructions are those of the program, for which nobody asks that.
        """
        text = self.program.kernels[number].text
        return emit_kernel(parse_kernel(text), f"kernel_{number}", self.target, locations=True)

    @property
    def lower_bound_bytes(self) -> int:
        """Bytes of intermediates alive at once: the arena cannot be smaller."""
        return peak_bytes([shared.lifetime for shared in self.places])

    def stage(self, name: str) -> str:
        """The text of a stage. ValueError for a name that is not in STAGES."""
        if name == "traced":
            return print_graph(self.traced)
        if name == "differentiated":
            return print_graph(self.differentiated)
        if name == "simplified":
            return print_graph(self.simplified)
        if name == "fused":
            return self._fused_text()
        if name == "scheduled":
            return print_program(self.program)
        if name == "llvm":
            texts = [m.emit(f"kernel_{i}") for i, m in enumerate(self.program.kernels)]
            return "\n".join([*texts, self.program.entry.emit("entry")])
        raise ValueError(f"pipeline.stage: got {name!r}, expected one of {', '.join(STAGES)}")

    def _fused_text(self) -> str:
        """Every launch, with what it waits for, and its kernels."""
        lines = []
        written: dict[Node, int] = {}
        makers: dict[Node, int] = {}
        remaining = iter(enumerate(zip(self.kernels, self.launches, strict=True)))
        for step, bundle in enumerate(self._bundles):
            inside = [next(remaining) for chain in bundle for _ in chain.kernels]
            needed = sorted({written[n] for _, (scheduled, _) in inside for n in scheduled.reads if n in written})
            waits = f" waits for launch {', '.join(map(str, needed))}" if needed else ""
            shape = f"{len(bundle)} chains in {sum(chain.pieces for chain in bundle)} pieces"
            lines.append(f"launch {step}{waits}" + (f": {shape}" if len(bundle) > 1 else ""))
            for number, (scheduled, how) in inside:
                written.update(dict.fromkeys(scheduled.outputs, step))
                lines += _kernel_lines(number, scheduled, how)
                apart = {makers[node]: reason for node, reason in scheduled.apart.items() if node in makers}
                lines += [f"    apart from kernel {maker}: {apart[maker]}" for maker in sorted(apart)]
                makers.update(dict.fromkeys(scheduled.outputs, number))
        return "\n".join(lines) + "\n"


def _kernel_lines(number: int, scheduled: ScheduledKernel, how: Launch) -> list[str]:
    stored = ", ".join(f"{n.op.name} {n.dtype}{list(n.shape)}" for n in scheduled.outputs)
    inside = " ".join(n.op.name for n in scheduled.nodes if n.op.kind not in ("leaf", "movement"))
    paths = sorted({n.source.path for n in scheduled.nodes if n.source.path})
    return [
        f"kernel {number}: stores {stored}",
        f"    computes {inside}",
        f"    chunks {how.chunks}, scratch {how.scratch_bytes} bytes, layers {', '.join(paths) or '-'}",
    ]


def _emitter(kernel: Kernel, target: VectorTarget) -> Callable[[str], str]:
    return lambda name: emit_kernel(kernel, name, target)


def compile_graph(graph: Graph, target: VectorTarget) -> Compilation:
    """Start compiling `graph` for `target`. Nothing is computed until a stage or the program is asked for."""
    return Compilation(graph, target)
