"""An artifact's description as plain data, for the head of a saved file: everything but texts, numbers and code."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kaun.compiler.ir import dtypes
from kaun.plain_data import Plain
from kaun.runtime.artifact import Artifact, Function, KernelSummary, Leaf
from kaun.runtime.flat_image import FlatImage
from kaun.runtime.target import VECTOR_BITS, Target

# How entries, records and pools of threads talk to one another. A file with another number is compiled anew.
CALLING = 1

_MOST_BYTES = 1 << 47


@dataclass(frozen=True)
class FunctionData:
    """What a file says of a function beside its texts; `constants` counts its last inputs."""

    name: str
    inputs: tuple[Leaf, ...]
    outputs: tuple[Leaf, ...]
    constants: int
    kernels: tuple[KernelSummary, ...]
    lower_bound: int


@dataclass(frozen=True)
class ArtifactData:
    """What a file says of an artifact; `needs` are the processor's features that its code may use.

    rebases, imports and symbols are those of its flat image.
    """

    kind: str
    name: str
    functions: tuple[FunctionData, ...]
    target: Target
    trees: Mapping[str, Any]
    versions: Mapping[str, str]
    state: tuple[Leaf, ...]
    has_initial: bool
    calling: int
    needs: tuple[str, ...]
    rebases: tuple[tuple[int, int], ...]
    imports: tuple[tuple[int, str], ...]
    symbols: Mapping[str, int]


def encoded(artifact: Artifact, needs: tuple[str, ...], image: FlatImage, calling: int = CALLING) -> dict[str, Any]:
    """The description as lists, tables, texts and numbers."""
    return {
        "kind": artifact.kind,
        "name": artifact.name,
        "functions": [_function(function) for function in artifact.functions],
        "target": dataclasses.asdict(artifact.target),
        "trees": dict(artifact.trees),
        "versions": dict(artifact.versions),
        "state": _leaves(artifact.state),
        "has_initial": artifact.initial is not None,
        "calling": calling,
        "needs": list(needs),
        "image": {
            "rebases": [list(pair) for pair in image.rebases],
            "imports": [list(pair) for pair in image.imports],
            "symbols": dict(image.symbols),
        },
    }


def _function(function: Function) -> dict[str, Any]:
    details = function.details
    return {
        "name": function.name,
        "inputs": _leaves(function.inputs),
        "outputs": _leaves(function.outputs),
        "constants": len(function.constants),
        "kernels": [dataclasses.asdict(kernel) for kernel in details.kernels],
        "lower_bound": details.memory.lower_bound,
    }


def _leaves(leaves: tuple[Leaf, ...]) -> list[Any]:
    return [[leaf.name, leaf.dtype.name, list(leaf.shape)] for leaf in leaves]


# --- and back --------------------------------------------------------------------------------------------------------


def decoded(data: Plain) -> ArtifactData:
    """The description that `encoded` gave. ValueError for anything else."""
    image = data.at("image")
    functions = tuple(_decoded_function(item) for item in data.items("functions"))
    names = [function.name for function in functions]
    if len(set(names)) < len(names):
        raise data.at("functions").unexpected("functions of different names")
    return ArtifactData(
        kind=data.text("kind"),
        name=data.text("name"),
        functions=functions,
        target=_decoded_target(data.at("target")),
        trees={name: entry.value for name, entry in data.table("trees").items()},
        versions={name: entry.as_text() for name, entry in data.table("versions").items()},
        state=_decoded_leaves(data.at("state")),
        has_initial=data.flag("has_initial"),
        calling=data.number("calling"),
        needs=data.texts("needs"),
        rebases=tuple((one.as_number(), two.as_number()) for one, two in _pairs(image, "rebases")),
        imports=tuple((one.as_number(), two.as_text()) for one, two in _pairs(image, "imports")),
        symbols={name: entry.as_number() for name, entry in image.table("symbols").items()},
    )


def _pairs(data: Plain, key: str) -> list[list[Plain]]:
    return [item.as_items(2) for item in data.items(key)]


def _decoded_function(data: Plain) -> FunctionData:
    inputs, outputs = _decoded_leaves(data.at("inputs")), _decoded_leaves(data.at("outputs"))
    return FunctionData(
        data.text("name"), inputs, outputs, data.number("constants", high=len(inputs)),
        tuple(_decoded_kernel(item) for item in data.items("kernels")), data.number("lower_bound"),
    )  # fmt: skip


def _decoded_kernel(data: Plain) -> KernelSummary:
    numbers = (data.number(key, high=1 << 62) for key in ("flops", "bytes", "chunks", "launch"))
    return KernelSummary(data.texts("stores"), data.texts("layers"), *numbers)


def _decoded_leaves(data: Plain) -> tuple[Leaf, ...]:
    leaves = []
    for item in data.as_items():
        name, dtype, shape = item.as_items(3)
        if dtype.as_text() not in dtypes.BY_NAME:
            raise dtype.unexpected("the name of a dtype")
        extents = tuple(extent.as_number() for extent in shape.as_items())
        leaf = Leaf(name.as_text(), dtypes.BY_NAME[dtype.as_text()], extents)
        if leaf.nbytes > _MOST_BYTES:
            raise item.unexpected("a tensor that fits into memory")
        leaves.append(leaf)
    return tuple(leaves)


def _decoded_target(data: Plain) -> Target:
    if data.number("vector_bits") not in VECTOR_BITS:
        raise data.at("vector_bits").unexpected("the width of a vector")
    return Target(
        triple=data.text("triple"),
        cpu=data.text("cpu"),
        features=data.text("features"),
        vector_bits=data.number("vector_bits"),
        vector_registers=data.number("vector_registers"),
        has_fma=data.flag("has_fma"),
        has_f16c=data.flag("has_f16c"),
        l1_bytes=data.number("l1_bytes"),
        l2_bytes=data.number("l2_bytes"),
        l3_bytes=data.number("l3_bytes"),
        cores=data.number("cores"),
    )
