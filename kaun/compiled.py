"""Functions compiled ahead of their first call, for argument types given by specs; and a look inside them."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kaun import arguments, execution, nx, ptree, tracing, tree_data
from kaun.arguments import Argument, joined
from kaun.compiler.ir import Node, dtypes
from kaun.compiler.ir.dtypes import DType
from kaun.compiler.ir.rules import check_shape
from kaun.execution import Storage
from kaun.native import Native, Stages, TracedNative
from kaun.ptree import Structure
from kaun.runtime import target as targets
from kaun.runtime.artifact import Artifact, Cost, KernelSummary, Leaf, Memory
from kaun.runtime.target import Target

if TYPE_CHECKING:  # loaded when something is profiled or exported
    from kaun.compiled_step import CompiledStep
    from kaun.profiling import Profile
    from kaun.runtime.export import Exported
    from kaun.runtime.saved_file import Section

__all__ = ["Compiled", "Cost", "KernelSummary", "Memory", "Spec", "Stages", "compile", "load", "spec"]


@dataclass(frozen=True)
class Spec:
    """The type of a tensor: its shape and dtype, without values. A leaf of trees."""

    shape: tuple[int, ...]
    dtype: DType

    def __repr__(self) -> str:
        return f"spec({self.dtype}{list(self.shape)})"


def spec(shape: Sequence[int] | int, dtype: DType | str = dtypes.float32) -> Spec:
    """The type of a tensor of `shape` and `dtype` (float32), to compile a function for before there are values.

    ValueError for a negative extent, TypeError for one that is no whole number and for an unknown dtype.
    """
    extents = (shape,) if isinstance(shape, int) else tuple(shape)
    if not all(isinstance(extent, (int, np.integer)) for extent in extents):
        raise TypeError(f"kn.spec: got shape {shape!r}, expected whole numbers: what is compiled has one shape")
    return Spec(check_shape("compiled.spec", extents), dtypes.of(dtype))


def target_of(target: Target | str) -> Target:
    """The target itself, or that of the name; see `target.named`. ValueError for an unknown name."""
    return target if isinstance(target, Target) else targets.named(target)


class AheadOfTime:
    """What compiled functions and training steps have in common: native functions by name, and a look inside them.

    functions: by name, "call" of a function, "step", "predict", ... of a training step.
    """

    functions: Mapping[str, Native]
    _main: str
    _target: Target
    # Of the file it was loaded from, if it was: what made it, and the sections.
    _versions: Mapping[str, str] | None = None
    _sections: dict[str, Section] | None = None

    def _made_by(self) -> Mapping[str, str]:
        return _versions() if self._versions is None else self._versions

    def artifact(self, target: Target | str | None = None) -> Artifact:
        """The functions as plain data, for the target they were compiled for or compiled anew for another one."""
        raise NotImplementedError

    def _functions(self, target: Target | str | None) -> tuple[Target, tuple[Any, ...]]:
        if target is None or (wanted := target_of(target)) == self._target:
            return self._target, tuple(native.function for native in self.functions.values())
        return wanted, tuple(native.function_for(wanted) for native in self.functions.values())

    def warn_of_probes(self, where: str) -> None:
        """UserWarning if the functions show or check something, which what is kept in files does not."""
        probes = {
            (probe.kind, probe.text, probe.source.file, probe.source.line)
            for native in self.functions.values()
            for probe in native.probes
        }
        counts = {kind: sum(1 for probe in probes if probe[0] == kind) for kind in ("check", "print")}
        found = " and ".join(f"{count} of kn.debug.{kind}" for kind, count in counts.items() if count)
        if found:
            warnings.warn(
                f"{where}: left out {found}: what is saved or exported shows and checks nothing", stacklevel=3
            )

    @property
    def stages(self) -> Mapping[str, str]:
        return self.functions[self._main].function.stages

    @property
    def kernels(self) -> tuple[KernelSummary, ...]:
        return self.functions[self._main].function.details.kernels

    @property
    def memory(self) -> Memory:
        return self.functions[self._main].function.details.memory

    @property
    def cost(self) -> Cost:
        return self.functions[self._main].function.details.cost

    def _profile(self, given: list[Storage], seconds: float) -> Profile:
        from kaun import profiling
        from kaun.compiler.pipeline import Compilation

        native = self.functions[self._main]
        compiled = native.compiled
        if not compiled.executable.kernel_addresses:
            # From a file, whose code tells no kernel from another: what is profiled is its graph, compiled anew.
            compiled = execution.compiled(native.graph)
        compilation = Compilation(native.graph, execution.vector_target(self._target))
        return profiling.profile(compiled, compilation, given + native.constants, seconds=seconds)

    def _summary(self) -> str:
        program = self.functions[self._main].function.program
        launches = "1 launch" if len(program.bundles) == 1 else f"{len(program.bundles)} launches"
        return f"{len(program.calls)} kernels in {launches}, {self.cost.flops:,} flops"


class Compiled(AheadOfTime):
    """A function compiled for one type of arguments. Called like the function, it never traces again.

    stages: the text of each stage of the pipeline by name: "traced", "differentiated", "simplified", "fused",
        "scheduled", "llvm" and "assembly".
    kernels: a `KernelSummary` for each kernel, in the order in which they run.
    memory: a `Memory`; cost: a `Cost`.
    """

    _main = "call"

    def __init__(self, name: str, native: Native, given: tuple[Argument, ...], result: Structure, target: Target):
        self._name, self._native, self._arguments, self._result = name, native, given, result
        self._target = target
        self.functions = {"call": native}

    def __call__(self, *trees: Any) -> Any:
        """The function's result. TypeError or ValueError, naming the argument, where a type differs from its spec."""
        nodes = self._nodes(trees)
        given = tracing.known_nodes(nodes)
        if given is None:
            if execution.is_traced(nodes):
                return self._result([nx.Tensor(node) for node in self._native.spliced(nodes)])
            given = execution.realize(nodes)
        return self._result([nx.Tensor(execution.computed_leaf(storage)) for storage in self._native(given)])

    def _nodes(self, trees: Sequence[Any]) -> list[Node]:
        where = f"compiled.{self._name}"
        if len(trees) != len(self._arguments):
            raise TypeError(f"{where}: got {len(trees)} arguments, expected {len(self._arguments)}")
        nodes: list[Node] = []
        for argument, tree in zip(self._arguments, trees, strict=True):
            nodes += argument.nodes(where, tree)
        return nodes

    def profile(self, *trees: Any, seconds: float = 1.0) -> Profile:
        """Where the time of a call with these arguments goes, kernel by kernel; see `kaun.profiling.Profile`.

        Calls are made for about `seconds`. The same errors as for a call, and ValueError while another function is
        being traced.
        """
        return self._profile(execution.realize(self._nodes(trees)), seconds)

    def artifact(self, target: Target | str | None = None) -> Artifact:
        wanted, functions = self._functions(target)
        trees = {
            "arguments": [[argument.label, tree_data.encoded(argument.structure)] for argument in self._arguments],
            "result": tree_data.encoded(self._result),
        }
        return Artifact("function", self._name, functions, wanted, trees, self._made_by())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the function to a file for `kn.load`: machine code, signature, constants, texts of all stages.

        Atomic: whatever was at `path` is there until the new file is whole. OSError if it cannot be written.
        """
        from kaun import saved

        self.warn_of_probes("kn.compile: save")
        saved.save(path, self.artifact(), self._sections)

    def export(
        self, directory: str | Path, target: Target | str | None = None, *, name: str | None = None,
        threads: int | None = None,
    ) -> Exported:  # fmt: skip
        """Write a folder with the function for C and C++: an object, a header, a description, a program, CMake's lines.

        target: the machine to compile for, by name or as a Target; default: the one it was compiled for.
        name: of the files, and in the symbol `kaun_NAME_run`; default: the function's name.
        threads: the most that can share a call, 1 for code without threads; default: 64 where the target has pthreads.

        The arguments' leaves are the inputs, the result's the outputs; what the function captured goes into the object.
        See `CompiledStep.export`, and "Export to C" in the guide.

        ValueError for a name or number that cannot be, RuntimeError if the system's linker fails.
        """
        from kaun.runtime import export

        self.warn_of_probes("kn.compile: export")
        return export.export(self.artifact(target), directory, name=name, threads=threads)

    def __repr__(self) -> str:
        return f"<compiled {self._name}: {self._summary()}>"


def compile(function: Callable[..., Any], *specs: Any, target: Target | str = "host") -> Compiled:
    """`function` traced and compiled now, for arguments of these types.

    specs: a tree for each positional argument, with a `spec` (or a tensor that stands for its type) at each leaf.
    target: the machine to compile for, by name ("linux-x86_64-v3") or as a `Target`; can be called if it can run here.

        step = kn.compile(lambda x, w: nx.tanh(x @ w), kn.spec((64, 784)), kn.spec((784, 10)))
        print(step.stages["fused"])

    Errors in the function surface here; wrong types at a call are a ValueError or TypeError that names the argument.
    """
    wanted = target_of(target)
    name = getattr(function, "__name__", "function")
    traceable = getattr(function, "function", function)
    names = _parameter_names(traceable, len(specs))
    given = tuple(
        argument_of_spec(f"argument {position}", names[position], tree) for position, tree in enumerate(specs)
    )
    found = traced(f"compiled.{name}", traceable, given)
    outputs = result_leaves("result", found.result, found.graph.outputs)
    native = native_of("call", found, given, outputs, wanted)
    made = Compiled(name, native, given, found.result, wanted)
    if wanted == targets.host():
        _ = native.compiled
    return made


def argument_of_spec(label: str, name: str, tree: Any) -> Argument:
    """The argument that a tree of specs, or of tensors that stand for theirs, describes.

    TypeError for a shape in the place of a spec.
    """
    _check_specs(label, tree)
    leaves, structure = ptree.flatten(arguments.with_leaves(tree))
    types = [Spec(tuple(leaf.shape), dtypes.of(leaf.dtype)) for leaf in leaves]
    return arguments.argument(label, name, structure, types)


def _check_specs(label: str, tree: Any) -> None:
    """TypeError for tuples and lists of numbers: they are meant as shapes, and would be read as trees of scalars."""
    if isinstance(tree, Mapping):
        for part in tree.values():
            _check_specs(label, part)
    elif isinstance(tree, (tuple, list)):
        if tree and all(part is None or isinstance(part, (int, float, np.number)) for part in tree):
            raise TypeError(f"{label}: got a {type(tree).__name__} of numbers; write kn.spec({tree!r})")
        for part in tree:
            _check_specs(label, part)


def traced(where: str, function: Callable[..., Any], given: Iterable[Argument]) -> tracing.Traced:
    """The function traced for these arguments. ValueError if it uses what another function is being traced for."""
    trees = [
        argument.structure([nx.Tensor(execution.placeholder(leaf.shape, leaf.dtype)) for leaf in argument.leaves])
        for argument in given
    ]
    leaves, structure = ptree.flatten(tuple(trees))
    found = tracing.trace(function, structure, [leaf._node for leaf in leaves])
    if found is None:
        raise ValueError(f"{where}: the function uses an argument of a function that is being traced")
    return found


def result_leaves(name: str, structure: Structure, nodes: Iterable[Node]) -> tuple[Leaf, ...]:
    """Leaves for the results of a function."""
    return tuple(
        Leaf(joined(name, path), node.dtype, node.shape) for path, node in zip(structure.paths, nodes, strict=True)
    )


def native_of(
    name: str, found: tracing.Traced, given: Iterable[Argument], outputs: tuple[Leaf, ...], target: Target,
    tensors: Sequence[Storage] = (),
) -> TracedNative:  # fmt: skip
    """The native function of what was traced for these arguments, and then for `tensors`, which are constants."""
    inputs = [leaf for argument in given for leaf in argument.leaves]
    constants = [*tensors, *found.captured]
    for number, storage in enumerate(constants):
        inputs.append(Leaf(f"constants.{number}", storage.dtype, storage.shape))
    return TracedNative(name, found.graph, tuple(inputs), outputs, constants, target, found.probes)


def _parameter_names(function: Callable[..., Any], count: int) -> list[str]:
    """What the function calls its first arguments; their numbers where it does not tell."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # built in, without a signature
        parameters = []
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:count]
    named = [f"{name}_" if name == "constants" else name for name in named]
    return named + [str(number) for number in range(len(named), count)]


def _versions() -> dict[str, str]:
    """What an artifact that is made now is made by."""
    import kaun
    from kaun.runtime import engine
    from kaun.runtime.cache import compiler_version

    return {"kaun": kaun.__version__, "compiler": compiler_version()[:16], "engine": engine.version()}


def load(path: str | os.PathLike[str], *, recompile: bool = False) -> Compiled | CompiledStep:
    """The compiled function or training step in a file that its `save` wrote.

    Nothing is traced or compiled, neither LLVM nor the modules that defined the model are imported, and nothing of the
    file is run. Calling what was loaded runs its machine code: load files only from those whose programs you would run.

    recompile: if this machine cannot run the file's code, compile its graphs for this machine. Otherwise that is a
        ValueError, which names the features of the processor that are missing.

    ValueError, which names the file, for one that is damaged or that `save` did not write; OSError if it cannot be
    read.
    """
    from kaun import saved  # which checks what it reads with a good part of the compiler

    return saved.load(Path(path), recompile=recompile)
