"""Runs programs: kernels and entry loaded, workspace and outputs allocated, one native call per run."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable, Sequence

from kaun.compiler.program import Program
from kaun.runtime import threads
from kaun.runtime.buffers import Buffer
from kaun.runtime.cache import KernelRequest, compile_kernels
from kaun.runtime.target import Target

_ENTRY = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)


class Executable:
    """A program with its machine code in memory. Safe to run from several threads at once."""

    def __init__(self, program: Program, target: Target):
        self.program = program
        requests = [KernelRequest(_symbol(m.text), m.text, _emit(m.emit, _symbol(m.text))) for m in program.kernels]
        entry = program.entry
        symbol = _symbol(entry.text)
        # The entry is a list of calls: nothing in it is worth an optimiser's time.
        requests.append(KernelRequest(symbol, entry.text, _emit(entry.emit, symbol), level=1))
        *addresses, entry_address = compile_kernels(requests, target)
        self.kernel_addresses = tuple(addresses)
        self._table = (ctypes.c_void_p * max(1, len(addresses)))(*addresses)
        self._table_address = ctypes.addressof(self._table)
        self._entry = _ENTRY(entry_address)
        self._arguments_type = ctypes.c_void_p * max(1, len(program.inputs) + len(program.outputs))
        self._output_bytes = [array.nbytes for array in program.outputs]

    def run(self, inputs: Sequence[int]) -> list[Buffer]:
        """The computed outputs, new each time, for inputs at these addresses (C order, of the program's types)."""
        outputs = [Buffer(size) for size in self._output_bytes]
        if not self.program.calls:
            return outputs
        arguments = self._arguments_type(*inputs, *(buffer.address for buffer in outputs))
        pool = threads.pool()
        # Freed when this call returns, and found again by the next: the allocator keeps it at hand.
        workspace = Buffer(self.program.arena_bytes + pool.threads * self.program.scratch_bytes)
        self._entry(ctypes.addressof(arguments), self._table_address, pool.address, workspace.address)
        return outputs


def _symbol(text: str) -> str:
    return "kaun_" + hashlib.sha256(text.encode()).hexdigest()[:24]


def _emit(emit: Callable[[str], str], name: str) -> Callable[[], str]:
    return lambda: emit(name)
