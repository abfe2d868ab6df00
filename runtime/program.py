"""Runs programs: kernels and entry loaded, workspace and outputs allocated, one native call per run."""

from __future__ import annotations

import ctypes
import hashlib
from array import array
from collections.abc import Callable, Sequence

from kaun.compiler.program import Program
from kaun.runtime import threads
from kaun.runtime.buffers import Buffer, give_back, size_class, take
from kaun.runtime.cache import KernelRequest, compile_kernels
from kaun.runtime.target import Target

# The word of a record that is 1 once its program has run.
DONE = 4


class Executable:
    """A program with its machine code in memory. Safe to run from several threads at once."""

    def __init__(self, program: Program, target: Target):
        self.program = program
        requests = [KernelRequest(_symbol(m.text), m.text, _emit(m.emit, _symbol(m.text))) for m in program.kernels]
        entry = program.entry
        symbol = _symbol(entry.text)
        # The entry is a list of calls, long for a deep network: nothing in it is worth an optimiser's time.
        requests.append(KernelRequest(symbol, entry.text, _emit(entry.emit, symbol), level=0))
        *addresses, entry_address = compile_kernels(requests, target)
        self.kernel_addresses = tuple(addresses)
        self._table = (ctypes.c_void_p * max(1, len(addresses)))(*addresses)
        self.table_address = ctypes.addressof(self._table)
        self._entry_address = entry_address
        self._workspaces: dict[int, int] = {}

    @classmethod
    def of_code(cls, program: Program, entry_address: int) -> Executable:
        """A program whose code is in memory already, its entry, which asks for no table of kernels, at an address."""
        made = cls.__new__(cls)
        made.program, made.kernel_addresses = program, ()
        made.table_address, made._entry_address, made._workspaces = 0, entry_address, {}
        return made

    def run(self, inputs: Sequence[int]) -> list[Buffer]:
        """The computed outputs, new each time, for inputs at these addresses (C order, of the program's types)."""
        outputs = [Buffer(output.nbytes) for output in self.program.outputs]
        self.start(self.record([*inputs, *(buffer.address for buffer in outputs)]))
        return outputs

    def record(self, arguments: Sequence[int]) -> array[int]:
        """What `start` takes, for inputs and then outputs at these addresses.

        An output may have the address of an input that the program's `aliases` pair it with, and of no other.
        """
        return array("Q", (self._entry_address, self.table_address, 0, 0, 0, *arguments))

    def start(self, record: array[int]) -> None:
        """Run the program once. `record[DONE]` is 1 from the moment on at which all outputs are written.

        Whoever is interrupted (Ctrl-C) can tell so whether the program ran: it does as a whole or not at all.
        """
        if not self.program.calls:
            record[DONE] = 1
            return
        pool = threads.pool()
        size = self._workspaces.get(pool.threads) or self._workspace(pool.threads)
        # Back on the free list when the call returns, and found again by the next.
        block = take(size)
        record[2], record[3] = pool.address, block[0]
        pool.run(record.buffer_info()[0])
        give_back(size, block)

    def _workspace(self, workers: int) -> int:
        size = self._workspaces[workers] = size_class(self.program.arena_bytes + workers * self.program.scratch_bytes)
        return size


def _symbol(text: str) -> str:
    return "kaun_" + hashlib.sha256(text.encode()).hexdigest()[:24]


def _emit(emit: Callable[[str], str], name: str) -> Callable[[], str]:
    return lambda: emit(name)
