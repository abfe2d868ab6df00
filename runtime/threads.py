"""The thread pools of this process: persistent native workers that fork and join for a loop in microseconds.

What they run is compiled from `pool_module.py`; here they are started, found again, and asked for by number.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

from kaun.runtime.cache import KernelRequest, compile_kernels
from kaun.runtime.pool_module import YIELDS, pool_module
from kaun.runtime.target import Target, host, usable_cores

__all__ = ["Pool", "num_threads", "pool", "provide", "set_num_threads"]

# Long enough to bridge the serial kernels between two parallel ones, short enough not to be seen in `top`.
SPIN_SECONDS = 50e-6

# The active count has 16 bits.
MOST_THREADS = 1024


class Pool:
    """Worker threads that wait for parallel loops.

    threads: how many run a loop, the caller included; fewer than asked for if the system had no more.
    address: of the native pool; its first eight bytes hold `parallel_for_address`.
    parallel_for_address: of
        void kaun_parallel_for(ptr pool, ptr kernel, ptr buffers, i64 count, ptr scratch, i64 scratch_stride)
        which calls `void kernel(ptr buffers, i64 begin, i64 end, ptr scratch)` until the chunks
        [0, count) are done. Worker w gets `scratch + w * scratch_stride`; w < `threads`. If the stride is 8 or more,
        the first 8 bytes of a worker's scratch are zero at its first call, later what its last call left there.
    run: calls `void entry(ptr arguments, ptr kernels, ptr pool, ptr workspace)` as the record at an address says, in
        words of 8 bytes: entry, kernels, pool, workspace, what becomes 1 once the entry is back, and the arguments.

    Several Python threads may use one pool: the first gets the workers, the others run their loops
    alone, as worker 0 of their own scratch. A kernel must not itself start a parallel loop.
    """

    __slots__ = ("_functions", "address", "parallel_for_address", "run", "threads")

    def __init__(self, threads: int, target: Target | None = None) -> None:
        if not 1 <= threads <= MOST_THREADS:
            raise ValueError(f"threads.Pool: got {threads} threads, expected 1 to {MOST_THREADS}")
        self._functions = _Functions(_table(target))
        # Threads that outnumber cores take time from each other by spinning.
        spin = self._functions.iterations(SPIN_SECONDS) if threads <= usable_cores() else 0
        with _signals_blocked():
            address = self._functions.create(threads, spin, YIELDS if spin else 0)
        if not address:
            raise MemoryError(f"threads.Pool: the system refused memory for a pool of {threads} threads")
        self.address: int = address
        self.threads: int = ctypes.c_int64.from_address(address + 8).value
        self.parallel_for_address: int = self._functions.parallel_for_address
        self.run: Callable[[int], None] = self._functions.run

    def parallel_for(self, kernel: int, buffers: int, count: int, scratch: int = 0, scratch_stride: int = 0) -> None:
        """Run the chunks [0, count) of the kernel at address `kernel`; the other arguments as above."""
        self._functions.parallel_for(self.address, kernel, buffers, count, scratch, scratch_stride)

    def close(self) -> None:
        """End the workers and free the pool. Nobody may be inside a loop, or use the address again."""
        address, self.address = self.address, 0
        if address:
            self._functions.destroy(address)


def pool() -> Pool:
    """The pool with `num_threads()` threads, started when first asked for.

    Ask again for every program call rather than keep its address: after `set_num_threads` it is another
    pool, and in a forked child the parent's threads do not exist.
    """
    current = _state.current
    return _start() if current is None else current


def num_threads() -> int:
    """How many threads parallel loops use.

    Default: the environment variable KAUN_NUM_THREADS, else the number of physical cores this process
    may use. Raises ValueError when the variable is not a positive number.
    """
    if _state.wanted is None:
        text = os.environ.get("KAUN_NUM_THREADS", "").strip()
        if text and not (text.isdecimal() and 1 <= int(text) <= MOST_THREADS):
            raise ValueError(f"threads.num_threads: KAUN_NUM_THREADS is {text!r}, expected 1 to {MOST_THREADS}")
        _state.wanted = int(text) if text else min(usable_cores(), MOST_THREADS)
    return _state.wanted


def set_num_threads(count: int) -> None:
    """Use `count` threads from the next program call on. Results do not depend on it, not in one bit.

    Raises TypeError when `count` is not an integer, ValueError when it is not in 1..1024.
    """
    if isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(f"threads.set_num_threads: got {count!r}, expected an integer")
    if not 1 <= count <= MOST_THREADS:
        raise ValueError(f"threads.set_num_threads: got {count}, expected 1 to {MOST_THREADS}")
    with _state.lock:
        _state.wanted = count
        # The old pool sleeps on, ready for when its size is wanted again: a call may still be inside it.
        _state.current = _state.pools.get(count)


class _State:
    """The process's pools. Workers are never joined at exit: asleep, they end with the process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.wanted: int | None = None
        self.current: Pool | None = None
        self.pools: dict[int, Pool] = {}
        self.table: int | None = None

    def after_fork(self) -> None:
        """In a forked child: forget the parent's pools, whose threads and locks mean nothing here."""
        self.lock = threading.Lock()
        self.current = None
        self.pools = {}


_state = _State()
os.register_at_fork(after_in_child=_state.after_fork)


def _start() -> Pool:
    with _state.lock:
        count = num_threads()
        if count not in _state.pools:
            _state.pools[count] = Pool(count)
        _state.current = _state.pools[count]
        return _state.current


def provide(table: int) -> None:
    """Take the functions of pools that are started from now on from this table, `kaun_pool_functions` of code that was
    compiled elsewhere: for processes without LLVM, and to be quicker in others.
    """
    _state.table = table


def _table(target: Target | None) -> int:
    """The address of the native functions, compiled for a target; None: for this machine, or what was provided."""
    if target is None and _state.table is not None:
        return _state.table
    target = host() if target is None else target
    text = pool_module(target.architecture)
    (table,) = compile_kernels([KernelRequest("kaun_pool_functions", text, lambda: text)], target)
    return table


class _Functions:
    """The pool's native functions, callable from Python; the interpreter lock is released meanwhile."""

    def __init__(self, table: int) -> None:
        create, parallel_for, destroy, spin, run = (ctypes.c_uint64 * 5).from_address(table)
        size, pointer = ctypes.c_int64, ctypes.c_void_p
        self.parallel_for_address = int(parallel_for)
        self.create = ctypes.CFUNCTYPE(pointer, size, size, size)(create)
        self.destroy = ctypes.CFUNCTYPE(None, pointer)(destroy)
        self.spin = ctypes.CFUNCTYPE(None, size)(spin)
        self.run = ctypes.CFUNCTYPE(None, pointer)(run)
        self.parallel_for = ctypes.CFUNCTYPE(None, pointer, pointer, pointer, size, pointer, size)(parallel_for)

    def iterations(self, seconds: float) -> int:
        """How many iterations of pause take this long; between processors the instruction differs tenfold."""
        trial, best = 1000, float("inf")
        for _ in range(5):
            start = time.perf_counter()
            self.spin(trial)
            best = min(best, time.perf_counter() - start)
        return max(1, int(trial * seconds / best))


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Threads started meanwhile take no signals, so that Ctrl-C interrupts Python and not a worker.

    Faults stay unblocked: they strike the thread that caused them, and a handler may want to report it.
    """
    faults = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - faults)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
