"""Compiled functions and training steps in files: saved with their machine code, loaded without compiling anything.

A file has the sections below, in the container that `kaun.runtime.saved_file` describes:

    about                JSON: the signature (names, tree paths, shapes, dtypes), structures of trees, target, features
                         of the processor that the code may use, versions, kernels' costs, the image's offsets
    code, data           the flat image of all functions and of the thread pool (`kaun.runtime.flat_image`)
    numbers              the initial state, if there is one, then each function's constants: arrays in C order, in the
                         order of their leaves, each at a multiple of 64
    text.NAME.STAGE      the text of each stage of function NAME. "scheduled" is its memory plan, from which the loader
                         knows what runs where; "differentiated" the graph, from which it is compiled anew

Loading checks all of it: checksums, then that counts, sizes, places and types of the parts fit one another. It runs
nothing of the file. Calling a function does; see the trust boundary in `kaun.runtime.saved_file`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from kaun import artifact_data, execution, plain_data, stored_programs
from kaun.artifact_data import ArtifactData, FunctionData
from kaun.compiler.ir import Graph, parse_graph
from kaun.compiler.ir.computed import cached_property
from kaun.compiler.program import Array, Program
from kaun.compiler.program_verify import verify_program
from kaun.execution import CompiledProgram, Storage
from kaun.native import Native, TracedNative
from kaun.plain_data import Plain
from kaun.runtime import artifact, cpu_features, saved_code, saved_file
from kaun.runtime import target as targets
from kaun.runtime.artifact import Artifact, Details, Leaf, Memory, Numbers
from kaun.runtime.flat_image import FlatImage
from kaun.runtime.program import Executable
from kaun.runtime.saved_code import LoadedCode
from kaun.runtime.saved_file import Section
from kaun.runtime.target import Target

if TYPE_CHECKING:
    from kaun.compiled import Compiled
    from kaun.compiled_step import CompiledStep

Path = str | os.PathLike[str]
Sections = dict[str, Section]

_ALIGNMENT = 64
_MOST_BYTES = 1 << 47


def save(path: Path, made: Artifact, sections: Sections | None = None) -> None:
    """Write an artifact to a file; `sections`: those of the file that it was loaded from, if it was.

    Atomic: the old file is there until the new one is whole. ValueError for a target without threads or of an
    architecture whose code is exported only; OSError if the file cannot be written.
    """
    if sections is None:
        image = saved_code.code_of(made)
        sections = {"code": Section.raw(image.code), "data": Section.raw(image.data)}
        for function in made.functions:
            for stage, text in function.stages.items():
                sections[_text_name(function.name, stage)] = Section.packed(text.encode())
        needs = cpu_features.needed(saved_code.code_target(made.target))
        about = artifact_data.encoded(made, needs, image)
    else:
        data = _about(sections)
        about = artifact_data.encoded(made, data.needs, _image(data, sections), data.calling)
    saved_file.write(path, {
        **sections,
        "about": Section.packed(plain_data.written(about)),
        "numbers": Section.raw(*_numbers_written(made)),
    })  # fmt: skip


def load(path: Path, *, recompile: bool = False) -> Compiled | CompiledStep:
    """See `kaun.compiled.load`."""
    try:
        return _loaded(saved_file.read(path), recompile)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"kn.load: {os.fspath(path)}: {error}") from error


def described(path: Path) -> tuple[ArtifactData, dict[str, Program]]:
    """What a file says of itself, with the programs of its functions, whatever machine its code is for.

    Errors are those of `load`.
    """
    try:
        sections = saved_file.read(path)
        data = _about(sections)
        machine = execution.vector_target(data.target)
        programs = {}
        for function in data.functions:
            text = _section(sections, _text_name(function.name, "scheduled")).content().decode()
            programs[function.name] = stored_programs.parsed(text, machine)
        return data, programs
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error


def _loaded(sections: Sections, recompile: bool) -> Compiled | CompiledStep:
    data = _about(sections)
    problem = _problem(data)
    if problem is not None and not recompile:
        raise ValueError(
            f"{problem}; load it with recompile=True to compile the graphs in the file for this machine"
        )
    image = _image(data, sections)
    saved_code.check_code(image, [function.name for function in data.functions])
    initial, constants = _numbers_read(data, sections)
    natives: dict[str, Native] = {}
    code = LoadedCode(image)
    for function, numbers in zip(data.functions, constants, strict=True):
        storages = [Storage.of(array) for array in numbers]
        native = _LoadedNative(function, storages, sections, code, data.target)
        natives[function.name] = native if problem is None else native.recompiled()
    from kaun import rebuilt

    target = data.target if problem is None else targets.host()
    return rebuilt.rebuilt(data, natives, target, initial, sections if problem is None else None)


def _about(sections: Sections) -> ArtifactData:
    return artifact_data.decoded(Plain.parsed(_section(sections, "about").content(), "about"))


def _section(sections: Sections, name: str) -> Section:
    if name not in sections:
        raise ValueError(f"there is no section {name!r}")
    return sections[name]


def _raw(sections: Sections, name: str) -> Section:
    """A section that is stored as it is: a small file does not ask for much memory by it."""
    section = _section(sections, name)
    if section.length != section.stored_length:
        raise ValueError(f"the section {name!r} is packed, which it never is")
    return section


def _image(data: ArtifactData, sections: Sections) -> FlatImage:
    code, rest = (_raw(sections, name).content() for name in ("code", "data"))
    return FlatImage(code, rest, data.rebases, data.imports, dict(data.symbols))


def _problem(data: ArtifactData) -> str | None:
    """Why the code in a file cannot run here."""
    if data.calling != artifact_data.CALLING:
        made = data.versions.get("kaun", "of which nothing is known")
        return f"another version of Kaun, {made}, wrote the file, whose code is called in another way"
    architecture = data.target.architecture
    wrong = cpu_features.wrong_machine(architecture, data.target.system)
    if wrong is not None:
        return f"the machine code cannot run here: {wrong}"
    lacking = cpu_features.missing(architecture, data.needs)
    if lacking:
        return f"this processor lacks {', '.join(lacking)}, which the machine code may use"
    return None


# --- numbers ---------------------------------------------------------------------------------------------------------


def _numbers_written(made: Artifact) -> Iterator[bytes | memoryview]:
    arrays = [*(made.initial or ()), *(array for function in made.functions for array in function.constants)]
    for array in arrays:
        yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        yield bytes(-array.nbytes % _ALIGNMENT)


def _numbers_read(
    data: ArtifactData, sections: Sections
) -> tuple[tuple[Numbers, ...] | None, list[tuple[Numbers, ...]]]:
    """The initial state, and the constants of each function."""
    content = np.frombuffer(_raw(sections, "numbers").stored[0], np.uint8)
    constants = [function.inputs[len(function.inputs) - function.constants :] for function in data.functions]
    groups = [data.state if data.has_initial else (), *constants]
    expected = sum(leaf.nbytes + -leaf.nbytes % _ALIGNMENT for group in groups for leaf in group)
    if expected != content.size:
        raise ValueError(f"there are {content.size} bytes of numbers, expected {expected}")
    found, offset = [], 0
    for group in groups:
        arrays = []
        for leaf in group:
            arrays.append(content[offset : offset + leaf.nbytes].view(leaf.dtype.numpy).reshape(leaf.shape))
            offset += leaf.nbytes + -leaf.nbytes % _ALIGNMENT
        found.append(tuple(arrays))
    return found[0] if data.has_initial else None, found[1:]


# --- functions -------------------------------------------------------------------------------------------------------


def _text_name(function: str, stage: str) -> str:
    return f"text.{function}.{stage}"


class _Texts(Mapping[str, str]):
    """The texts of a function's stages in a file, unpacked when they are looked at."""

    def __init__(self, function: str, sections: Sections):
        prefix = _text_name(function, "")
        self._sections = {name.removeprefix(prefix): s for name, s in sections.items() if name.startswith(prefix)}

    def __getitem__(self, name: str) -> str:
        if name not in self._sections:
            raise KeyError(f"compiled.stages: got {name!r}, expected one of {', '.join(self)}")
        return self._sections[name].content().decode()

    def __iter__(self) -> Iterator[str]:
        return iter(self._sections)

    def __len__(self) -> int:
        return len(self._sections)

    def __repr__(self) -> str:
        return f"<stages {', '.join(self)}>"


class _LoadedNative(Native):
    """A function of a file."""

    def __init__(
        self, data: FunctionData, constants: list[Storage], sections: Sections, code: LoadedCode, target: Target
    ):
        super().__init__(data.name, data.inputs, data.outputs, constants)
        self._code, self._target = code, target
        program = self._program(_Texts(data.name, sections))
        details = Details(data.kernels, Memory.of(program, data.lower_bound))
        self._function = artifact.Function(
            name=data.name,
            program=program,
            inputs=data.inputs,
            outputs=data.outputs,
            constants=tuple(storage.array for storage in constants),
            stages=_Texts(data.name, sections),
            describe=lambda: details,
        )

    def _program(self, texts: _Texts) -> Program:
        for name in ("differentiated", "scheduled"):
            if name not in texts:
                raise ValueError(f"there is no text of the stage {name!r} of {self.name!r}")
        program = stored_programs.parsed(texts["scheduled"], execution.vector_target(self._target))
        arrays = {"input": program.inputs, "output": program.outputs}
        results = [arrays[place.kind][place.position] for place in program.results]
        if list(program.inputs) != _arrays(self.inputs) or results != _arrays(self.outputs):
            raise ValueError(f"the memory plan of {self.name!r} is not that of its signature")
        if max(program.arena_bytes, program.scratch_bytes, *(a.nbytes for a in program.outputs), 0) > _MOST_BYTES:
            raise ValueError(f"the memory plan of {self.name!r} asks for more memory than there is")
        verify_program(program)
        return program

    @cached_property
    def graph(self) -> Graph:
        graph = parse_graph(self._function.stages["differentiated"])
        found = [Array(node.dtype, node.shape) for node in (*graph.inputs, *graph.outputs)]
        if found != _arrays((*self.inputs, *self.outputs)):
            raise ValueError(f"the graph of {self.name!r} is not that of its signature")
        return graph

    @cached_property
    def compiled(self) -> CompiledProgram:
        return CompiledProgram(Executable.of_code(self._function.program, self._code.entry(self.name)))

    @property
    def function(self) -> artifact.Function:
        return self._function

    def recompiled(self) -> TracedNative:
        """The function, to be compiled for this machine."""
        return TracedNative(self.name, self.graph, self.inputs, self.outputs, self.constants, targets.host())


def _arrays(leaves: tuple[Leaf, ...]) -> list[Array]:
    return [Array(leaf.dtype, leaf.shape) for leaf in leaves]
