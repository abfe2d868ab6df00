"""Runs a program in NumPy, its arena included: what the text of a program means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .ir.meaning import Array
from .program import Bundle, Chain, Place, Program
from .schedule.loop_ir import Buffer
from .schedule.parse import parse_kernel
from .schedule.run import run_kernel


def run_program(
    program: Program,
    arguments: Sequence[Array],
    order: Callable[[Bundle], Sequence[Chain]] = lambda bundle: bundle,
    *,
    in_place: bool = False,
) -> list[Array]:
    """The results for these arguments. `order` gives the order in which the chains of a launch run: any will do.

    in_place: whether outputs are written over the inputs that they may be written over.
    """
    inputs = [np.array(argument, order="C") for argument in arguments]
    outputs = [np.empty(array.shape, array.dtype.numpy) for array in program.outputs]
    for given, output in program.aliases if in_place else ():
        outputs[output] = inputs[given]
    # Not zeros, so that reading what was not written shows.
    arena = np.full(program.arena_bytes, 0xA5, np.uint8)
    kernels = [parse_kernel(module.text) for module in program.kernels]

    def view(place: Place, buffer: Buffer) -> np.ndarray[Any, Any]:
        if place.kind == "arena":
            end = place.position + buffer.size * buffer.dtype.itemsize
            return arena[place.position : end].view(buffer.dtype.numpy)
        return (inputs if place.kind == "input" else outputs)[place.position]

    for bundle in program.bundles:
        for chain in order(bundle):
            for call in chain.calls:
                kernel = kernels[call.kernel]
                run_kernel(kernel, [view(p, b) for p, b in zip(call.places, kernel.buffers, strict=True)])
    return [(inputs if place.kind == "input" else outputs)[place.position] for place in program.results]
