"""Persistent native worker threads: a parallel loop forks and joins in microseconds, without Python.

The pool is emitted as LLVM IR, so users need no C compiler, and talks to the system through pthreads.
Its memory, by byte offset, hot fields on cache lines of their own:

    0     address of kaun_parallel_for: a program calls through it and needs no symbol
    8     threads, the caller included
    16    iterations of pause to spin, and then
    24    times to yield the processor before sleeping
    32    what malloc returned
    128   busy: 1 while some caller is inside a parallel loop
    256   state: | generation (32 bits) | ... | shutdown | waiting | open | active workers (16 bits) |
    384   next: the first chunk that nobody has claimed
    512   job: kernel, buffers, count, scratch, scratch stride, into how many claims to divide what is left
    640   sleepers, then the next worker's number
    768   mutex; 896 condition "there is work"; 1024 condition "all workers left"
    1152  the workers' pthread handles

One loop, seen from the caller (who is worker 0) and from a worker:

    caller                                      worker
    take `busy`, or run everything alone        spin, yield, then sleep, until state is open and its
    write job, next = 0                           generation is not the last one seen
    state = (generation + 1, open)              compare-and-swap state to state + 1, or look again
    wake sleepers                               claim and run chunks until none is left
    claim and run chunks until none is left     state = state - 1; the last one out signals a
    clear open; wait until active is 0            waiting caller
    release `busy`

Whoever runs chunks of a loop first clears the first word of its own scratch, so what a kernel leaves there from
one claim to the next was left by this loop.

A worker touches the job only between entering and leaving, and can enter only while the state is open,
so one that comes late finds the door closed and never sees a finished job's data. The caller waits only
for workers that did enter, never for one that the system has not yet woken.
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
from kaun.runtime.target import Target, host, usable_cores

__all__ = ["Pool", "num_threads", "pool", "pool_bytes", "pool_module", "provide", "set_num_threads"]

# Long enough to bridge the serial kernels between two parallel ones, short enough not to be seen in `top`.
SPIN_SECONDS = 50e-6

# After spinning, a worker looks once each time the system has let others run: about a millisecond, which bridges the
# Python between two training steps. Waking a thread that sleeps takes some 50 microseconds on a virtual machine.
YIELDS = 2000

# The default elsewhere is as low as 128 KiB (musl) or 512 KiB (macOS).
STACK_BYTES = 8 << 20

# The active count has 16 bits.
MOST_THREADS = 1024

# A claim takes a thread's share of the chunks that are left, divided by this (guided self-scheduling, Polychronopoulos
# and Kuck 1987): long runs of neighbours first, which often share data, single chunks at the end, which even them out.
SHARE_DIVISOR = 2

# Where the handles of the workers begin, an address each.
HANDLES = 1152

OPEN, WAITING, SHUTDOWN, ACTIVE_MASK = 1 << 16, 1 << 17, 1 << 18, (1 << 16) - 1

_PAUSE = {
    "x86_64": ("declare void @llvm.x86.sse2.pause()", "call void @llvm.x86.sse2.pause()"),
    # `yield` does nothing on most cores; an instruction barrier takes about as long as x86's pause.
    "aarch64": ("declare void @llvm.aarch64.isb(i32)", "call void @llvm.aarch64.isb(i32 15)"),
}


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


def pool_bytes(threads: int) -> int:
    """The size of a pool's memory."""
    return HANDLES + 8 * threads


def pool_module(architecture: str) -> str:
    """The pool as LLVM IR text; the top of this file explains it.

    Who brings memory of `pool_bytes` for it, zeroed and aligned to 64 bytes, calls

        i64 kaun_pool_start(ptr pool, i64 threads, i64 spins, i64 yields)    how many threads it has then
        void kaun_pool_stop(ptr pool)                                        nobody may be inside a loop
    """
    declare_pause, pause = _PAUSE.get(architecture, ("", ""))
    module = "\n".join((_DECLARATIONS, declare_pause, _RUN, _RUN_CHUNKS, _PARALLEL_FOR, _WORKER, _START, _CREATE))
    constants = {
        "$OPEN": OPEN,
        "$CLOSED_MASK": ~OPEN,
        "$WAITING": WAITING,
        "$SHUTDOWN": SHUTDOWN,
        "$ACTIVE": ACTIVE_MASK,
        "$STACK": STACK_BYTES,
        "$DIVISOR": SHARE_DIVISOR,
        "$PAUSE": pause,
    }
    for name, value in constants.items():
        module = module.replace(name, str(value))
    return module


# pthread types are opaque: 128 bytes hold a mutex, a condition or attributes on Linux and macOS.
_DECLARATIONS = """
%line = type [128 x i8]
%header = type { ptr, i64, i64, i64, ptr, [88 x i8] }
%job = type { ptr, ptr, i64, ptr, i64, i64, [80 x i8] }
%crew = type { i64, i64, [112 x i8] }
%word = type { i64, [120 x i8] }
;                0: header 1: busy 2: state 3: next 4: job 5: crew 6: mutex 7: work 8: left 9: handles
%pool = type { %header, %word, %word, %word, %job, %crew, %line, %line, %line, [0 x ptr] }

declare ptr @malloc(i64)
declare void @free(ptr)
declare i32 @pthread_create(ptr, ptr, ptr, ptr)
declare i32 @sched_yield()
declare i32 @pthread_join(ptr, ptr)
declare i32 @pthread_attr_init(ptr)
declare i32 @pthread_attr_destroy(ptr)
declare i32 @pthread_attr_setstacksize(ptr, i64)
declare i32 @pthread_mutex_init(ptr, ptr)
declare i32 @pthread_mutex_destroy(ptr)
declare i32 @pthread_mutex_lock(ptr)
declare i32 @pthread_mutex_unlock(ptr)
declare i32 @pthread_cond_init(ptr, ptr)
declare i32 @pthread_cond_destroy(ptr)
declare i32 @pthread_cond_wait(ptr, ptr)
declare i32 @pthread_cond_signal(ptr)
declare i32 @pthread_cond_broadcast(ptr)
declare i64 @llvm.smin.i64(i64, i64)
declare i64 @llvm.smax.i64(i64, i64)

@kaun_pool_functions = constant [5 x ptr] [ptr @create, ptr @kaun_parallel_for, ptr @destroy, ptr @spin, ptr @run]

define internal void @spin(i64 %iterations) nounwind {
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  $PAUSE
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %iterations
  br i1 %more, label %loop, label %done
done:
  ret void
}
"""

_RUN = """
; Call the entry of a program with what a record holds, and write into the record that it came back.
define internal void @run(ptr %record) nounwind {
entry:
  %kernels.p = getelementptr ptr, ptr %record, i64 1
  %pool.p = getelementptr ptr, ptr %record, i64 2
  %workspace.p = getelementptr ptr, ptr %record, i64 3
  %done.p = getelementptr i64, ptr %record, i64 4
  %arguments = getelementptr ptr, ptr %record, i64 5
  %function = load ptr, ptr %record, align 8
  %kernels = load ptr, ptr %kernels.p, align 8
  %pool = load ptr, ptr %pool.p, align 8
  %workspace = load ptr, ptr %workspace.p, align 8
  call void %function(ptr %arguments, ptr %kernels, ptr %pool, ptr %workspace)
  store i64 1, ptr %done.p, align 8
  ret void
}
"""

_RUN_CHUNKS = """
; Claim and run chunks of the current job until none is left.
define internal void @run_chunks(ptr %pool, i64 %worker) nounwind {
entry:
  %next.p = getelementptr %pool, ptr %pool, i64 0, i32 3
  %kernel.p = getelementptr %pool, ptr %pool, i64 0, i32 4, i32 0
  %buffers.p = getelementptr %pool, ptr %pool, i64 0, i32 4, i32 1
  %count.p = getelementptr %pool, ptr %pool, i64 0, i32 4, i32 2
  %scratch.p = getelementptr %pool, ptr %pool, i64 0, i32 4, i32 3
  %stride.p = getelementptr %pool, ptr %pool, i64 0, i32 4, i32 4
  %parts.p = getelementptr %pool, ptr %pool, i64 0, i32 4, i32 5
  %kernel = load ptr, ptr %kernel.p, align 8
  %buffers = load ptr, ptr %buffers.p, align 8
  %count = load i64, ptr %count.p, align 8
  %base = load ptr, ptr %scratch.p, align 8
  %stride = load i64, ptr %stride.p, align 8
  %parts = load i64, ptr %parts.p, align 8
  %offset = mul i64 %worker, %stride
  %scratch = getelementptr i8, ptr %base, i64 %offset
  %own = icmp sge i64 %stride, 8
  br i1 %own, label %clear, label %claim
clear:
  store i64 0, ptr %scratch, align 8
  br label %claim
claim:
  %first = load atomic i64, ptr %next.p monotonic, align 8
  br label %try
try:
  %begin = phi i64 [ %first, %claim ], [ %other, %take ]
  %some = icmp slt i64 %begin, %count
  br i1 %some, label %take, label %done
take:
  %left = sub i64 %count, %begin
  %part = sdiv i64 %left, %parts
  %grain = call i64 @llvm.smax.i64(i64 %part, i64 1)
  %end = add i64 %begin, %grain
  %exchange = cmpxchg ptr %next.p, i64 %begin, i64 %end monotonic monotonic, align 8
  %other = extractvalue { i64, i1 } %exchange, 0
  %ours = extractvalue { i64, i1 } %exchange, 1
  br i1 %ours, label %run, label %try
run:
  call void %kernel(ptr %buffers, i64 %begin, i64 %end, ptr %scratch)
  br label %claim
done:
  ret void
}
"""

_PARALLEL_FOR = """
define void @kaun_parallel_for(ptr %pool, ptr %kernel, ptr %buffers, i64 %count, ptr %scratch, i64 %stride) nounwind {
entry:
  %threads.p = getelementptr %pool, ptr %pool, i64 0, i32 0, i32 1
  %spin.p = getelementptr %pool, ptr %pool, i64 0, i32 0, i32 2
  %busy.p = getelementptr %pool, ptr %pool, i64 0, i32 1
  %state.p = getelementptr %pool, ptr %pool, i64 0, i32 2
  %next.p = getelementptr %pool, ptr %pool, i64 0, i32 3
  %sleepers.p = getelementptr %pool, ptr %pool, i64 0, i32 5, i32 0
  %mutex = getelementptr %pool, ptr %pool, i64 0, i32 6
  %work = getelementptr %pool, ptr %pool, i64 0, i32 7
  %left = getelementptr %pool, ptr %pool, i64 0, i32 8
  %threads = load i64, ptr %threads.p, align 8
  %others = sub i64 %threads, 1
  %spins = load i64, ptr %spin.p, align 8
  %nothing = icmp slt i64 %count, 1
  br i1 %nothing, label %return, label %size
size:
  %one = icmp eq i64 %count, 1
  %lonely = icmp slt i64 %threads, 2
  %small = or i1 %one, %lonely
  br i1 %small, label %alone, label %enter
enter:
  %busy = atomicrmw xchg ptr %busy.p, i64 1 acquire, align 8
  %taken = icmp ne i64 %busy, 0
  br i1 %taken, label %alone, label %publish
alone:
  %own = icmp sge i64 %stride, 8
  br i1 %own, label %clear, label %whole
clear:
  store i64 0, ptr %scratch, align 8
  br label %whole
whole:
  call void %kernel(ptr %buffers, i64 0, i64 %count, ptr %scratch)
  br label %return
return:
  ret void

publish:
  %parts = mul i64 %threads, $DIVISOR
  %kernel.p = getelementptr %pool, ptr %pool, i64 0, i32 4, i32 0
  %buffers.p = getelementptr %pool, ptr %pool, i64 0, i32 4, i32 1
  %count.p = getelementptr %pool, ptr %pool, i64 0, i32 4, i32 2
  %scratch.p = getelementptr %pool, ptr %pool, i64 0, i32 4, i32 3
  %stride.p = getelementptr %pool, ptr %pool, i64 0, i32 4, i32 4
  %parts.p = getelementptr %pool, ptr %pool, i64 0, i32 4, i32 5
  store ptr %kernel, ptr %kernel.p, align 8
  store ptr %buffers, ptr %buffers.p, align 8
  store i64 %count, ptr %count.p, align 8
  store ptr %scratch, ptr %scratch.p, align 8
  store i64 %stride, ptr %stride.p, align 8
  store i64 %parts, ptr %parts.p, align 8
  store atomic i64 0, ptr %next.p monotonic, align 8
  %before = load atomic i64, ptr %state.p monotonic, align 8
  %old.generation = lshr i64 %before, 32
  %generation = add i64 %old.generation, 1
  %shifted = shl i64 %generation, 32
  %opened = or i64 %shifted, $OPEN
  ; Sequentially consistent, as is the worker's "count me asleep, then look at the state": one of the
  ; two sees the other, so a worker cannot fall asleep on a loop that the caller thinks it saw.
  %ignored = atomicrmw xchg ptr %state.p, i64 %opened seq_cst, align 8
  %sleepers = load atomic i64, ptr %sleepers.p seq_cst, align 8
  ; Wake no more than there are chunks for, beyond the caller's and those of workers still spinning.
  %awake = sub i64 %others, %sleepers
  %count.rest = sub i64 %count, 1
  %missing = sub i64 %count.rest, %awake
  %wanted = call i64 @llvm.smin.i64(i64 %missing, i64 %sleepers)
  %wake = icmp sgt i64 %wanted, 0
  br i1 %wake, label %pass, label %work.too
pass:
  ; A worker between its look and its wait holds the mutex; passing through it means it waits by now.
  %lock.0 = call i32 @pthread_mutex_lock(ptr %mutex)
  %unlock.0 = call i32 @pthread_mutex_unlock(ptr %mutex)
  br label %signal
signal:
  %signalled = phi i64 [ 0, %pass ], [ %signalled.next, %signal ]
  %signal.0 = call i32 @pthread_cond_signal(ptr %work)
  %signalled.next = add i64 %signalled, 1
  %signal.more = icmp slt i64 %signalled.next, %wanted
  br i1 %signal.more, label %signal, label %work.too

work.too:
  call void @run_chunks(ptr %pool, i64 0)
  %closing = atomicrmw and ptr %state.p, i64 $CLOSED_MASK acq_rel, align 8
  br label %look
look:
  %looks = phi i64 [ 0, %work.too ], [ %looks.next, %relax ]
  %now = load atomic i64, ptr %state.p acquire, align 8
  %active = and i64 %now, $ACTIVE
  %all.left = icmp eq i64 %active, 0
  br i1 %all.left, label %release, label %patience
patience:
  %patient = icmp slt i64 %looks, %spins
  br i1 %patient, label %relax, label %block
relax:
  $PAUSE
  %looks.next = add i64 %looks, 1
  br label %look
block:
  %waiting = atomicrmw or ptr %state.p, i64 $WAITING seq_cst, align 8
  %lock.1 = call i32 @pthread_mutex_lock(ptr %mutex)
  br label %still
still:
  %then = load atomic i64, ptr %state.p acquire, align 8
  %then.active = and i64 %then, $ACTIVE
  %then.left = icmp eq i64 %then.active, 0
  br i1 %then.left, label %unblock, label %wait
wait:
  %wait.0 = call i32 @pthread_cond_wait(ptr %left, ptr %mutex)
  br label %still
unblock:
  %unlock.1 = call i32 @pthread_mutex_unlock(ptr %mutex)
  br label %release
release:
  store atomic i64 0, ptr %busy.p release, align 8
  ret void
}
"""

_WORKER = """
; Whether the state offers something to a worker that last entered generation %last: work, or the end.
define internal i1 @calls(i64 %state, i64 %last) nounwind alwaysinline {
  %ending.bit = and i64 %state, $SHUTDOWN
  %ending = icmp ne i64 %ending.bit, 0
  %open.bit = and i64 %state, $OPEN
  %open = icmp ne i64 %open.bit, 0
  %generation = lshr i64 %state, 32
  %new = icmp ne i64 %generation, %last
  %work = and i1 %open, %new
  %any = or i1 %ending, %work
  ret i1 %any
}

define internal ptr @worker(ptr %pool) nounwind {
entry:
  %spin.p = getelementptr %pool, ptr %pool, i64 0, i32 0, i32 2
  %state.p = getelementptr %pool, ptr %pool, i64 0, i32 2
  %sleepers.p = getelementptr %pool, ptr %pool, i64 0, i32 5, i32 0
  %yield.p = getelementptr %pool, ptr %pool, i64 0, i32 0, i32 3
  %number.p = getelementptr %pool, ptr %pool, i64 0, i32 5, i32 1
  %mutex = getelementptr %pool, ptr %pool, i64 0, i32 6
  %work = getelementptr %pool, ptr %pool, i64 0, i32 7
  %left = getelementptr %pool, ptr %pool, i64 0, i32 8
  %number = atomicrmw add ptr %number.p, i64 1 monotonic, align 8
  %spins = load i64, ptr %spin.p, align 8
  %yields = load i64, ptr %yield.p, align 8
  %looks.most = add i64 %spins, %yields
  br label %idle
idle:
  %last = phi i64 [ 0, %entry ], [ %last, %awake ], [ %last, %enter ], [ %generation, %leave ], [ %generation, %tell ]
  br label %look
look:
  %looks = phi i64 [ 0, %idle ], [ %looks.next, %again ]
  %state = load atomic i64, ptr %state.p acquire, align 8
  %called = call i1 @calls(i64 %state, i64 %last)
  br i1 %called, label %answer, label %patience
patience:
  %patient = icmp slt i64 %looks, %looks.most
  br i1 %patient, label %stay, label %sleep
stay:
  %spinning = icmp slt i64 %looks, %spins
  br i1 %spinning, label %relax, label %give.way
relax:
  $PAUSE
  br label %again
give.way:
  %yielded = call i32 @sched_yield()
  br label %again
again:
  %looks.next = add i64 %looks, 1
  br label %look

sleep:
  %lock.0 = call i32 @pthread_mutex_lock(ptr %mutex)
  %counted = atomicrmw add ptr %sleepers.p, i64 1 seq_cst, align 8
  br label %check
check:
  %seen = load atomic i64, ptr %state.p seq_cst, align 8
  %wake = call i1 @calls(i64 %seen, i64 %last)
  br i1 %wake, label %awake, label %wait
wait:
  %wait.0 = call i32 @pthread_cond_wait(ptr %work, ptr %mutex)
  br label %check
awake:
  %discounted = atomicrmw sub ptr %sleepers.p, i64 1 seq_cst, align 8
  %unlock.0 = call i32 @pthread_mutex_unlock(ptr %mutex)
  br label %idle

answer:
  %ending.bit = and i64 %state, $SHUTDOWN
  %ending = icmp ne i64 %ending.bit, 0
  br i1 %ending, label %end, label %enter
end:
  ret ptr null
enter:
  %entered = add i64 %state, 1
  %generation = lshr i64 %state, 32
  %exchange = cmpxchg ptr %state.p, i64 %state, i64 %entered acq_rel monotonic, align 8
  %inside = extractvalue { i64, i1 } %exchange, 1
  br i1 %inside, label %run, label %idle
run:
  call void @run_chunks(ptr %pool, i64 %number)
  br label %leave
leave:
  %leaving = atomicrmw sub ptr %state.p, i64 1 seq_cst, align 8
  %rest = and i64 %leaving, $ACTIVE
  %final = icmp eq i64 %rest, 1
  %waiting.bit = and i64 %leaving, $WAITING
  %waiting = icmp ne i64 %waiting.bit, 0
  %must.tell = and i1 %final, %waiting
  br i1 %must.tell, label %tell, label %idle
tell:
  %lock.1 = call i32 @pthread_mutex_lock(ptr %mutex)
  %signal.0 = call i32 @pthread_cond_signal(ptr %left)
  %unlock.1 = call i32 @pthread_mutex_unlock(ptr %mutex)
  br label %idle
}
"""

_START = """
; Make a pool in zeroed memory and start its workers: how many threads it then has, the caller included.
define i64 @kaun_pool_start(ptr %pool, i64 %threads, i64 %spins, i64 %yields) nounwind {
entry:
  %attributes = alloca %line, align 16
  %threads.p = getelementptr %pool, ptr %pool, i64 0, i32 0, i32 1
  %spin.p = getelementptr %pool, ptr %pool, i64 0, i32 0, i32 2
  %yield.p = getelementptr %pool, ptr %pool, i64 0, i32 0, i32 3
  %number.p = getelementptr %pool, ptr %pool, i64 0, i32 5, i32 1
  %mutex = getelementptr %pool, ptr %pool, i64 0, i32 6
  %work = getelementptr %pool, ptr %pool, i64 0, i32 7
  %left = getelementptr %pool, ptr %pool, i64 0, i32 8
  store ptr @kaun_parallel_for, ptr %pool, align 8
  store i64 %spins, ptr %spin.p, align 8
  store i64 %yields, ptr %yield.p, align 8
  store i64 1, ptr %number.p, align 8
  %r0 = call i32 @pthread_mutex_init(ptr %mutex, ptr null)
  %r1 = call i32 @pthread_cond_init(ptr %work, ptr null)
  %r2 = call i32 @pthread_cond_init(ptr %left, ptr null)
  %r3 = call i32 @pthread_attr_init(ptr %attributes)
  %r4 = call i32 @pthread_attr_setstacksize(ptr %attributes, i64 $STACK)
  br label %more
more:
  %index = phi i64 [ 1, %entry ], [ %index.next, %started ]
  %missing = icmp slt i64 %index, %threads
  br i1 %missing, label %start, label %done
start:
  %handle = getelementptr %pool, ptr %pool, i64 0, i32 9, i64 %index
  %status = call i32 @pthread_create(ptr %handle, ptr %attributes, ptr @worker, ptr %pool)
  %ok = icmp eq i32 %status, 0
  br i1 %ok, label %started, label %done
started:
  %index.next = add i64 %index, 1
  br label %more
done:
  ; Fewer workers than asked for are still a pool.
  store i64 %index, ptr %threads.p, align 8
  %r5 = call i32 @pthread_attr_destroy(ptr %attributes)
  ret i64 %index
}

; End the workers. Nobody may be inside a loop.
define void @kaun_pool_stop(ptr %pool) nounwind {
entry:
  %threads.p = getelementptr %pool, ptr %pool, i64 0, i32 0, i32 1
  %state.p = getelementptr %pool, ptr %pool, i64 0, i32 2
  %mutex = getelementptr %pool, ptr %pool, i64 0, i32 6
  %work = getelementptr %pool, ptr %pool, i64 0, i32 7
  %left = getelementptr %pool, ptr %pool, i64 0, i32 8
  %threads = load i64, ptr %threads.p, align 8
  %ended = atomicrmw or ptr %state.p, i64 $SHUTDOWN seq_cst, align 8
  %r0 = call i32 @pthread_mutex_lock(ptr %mutex)
  %r1 = call i32 @pthread_mutex_unlock(ptr %mutex)
  %r2 = call i32 @pthread_cond_broadcast(ptr %work)
  br label %more
more:
  %index = phi i64 [ 1, %entry ], [ %index.next, %join ]
  %some = icmp slt i64 %index, %threads
  br i1 %some, label %join, label %done
join:
  %handle.p = getelementptr %pool, ptr %pool, i64 0, i32 9, i64 %index
  %handle = load ptr, ptr %handle.p, align 8
  %r3 = call i32 @pthread_join(ptr %handle, ptr null)
  %index.next = add i64 %index, 1
  br label %more
done:
  %r4 = call i32 @pthread_mutex_destroy(ptr %mutex)
  %r5 = call i32 @pthread_cond_destroy(ptr %work)
  %r6 = call i32 @pthread_cond_destroy(ptr %left)
  ret void
}
"""

_CREATE = """
define internal ptr @create(i64 %threads, i64 %spins, i64 %yields) nounwind {
entry:
  %handles.size = mul i64 %threads, 8
  %fixed = ptrtoint ptr getelementptr (%pool, ptr null, i64 1) to i64
  %size = add i64 %fixed, %handles.size
  %padded = add i64 %size, 128
  %memory = call ptr @malloc(i64 %padded)
  %failed = icmp eq ptr %memory, null
  br i1 %failed, label %refuse, label %prepare
refuse:
  ret ptr null
prepare:
  %integer = ptrtoint ptr %memory to i64
  %beyond = add i64 %integer, 127
  %aligned = and i64 %beyond, -128
  %pool = inttoptr i64 %aligned to ptr
  call void @llvm.memset.p0.i64(ptr align 128 %pool, i8 0, i64 %size, i1 false)
  %memory.p = getelementptr %pool, ptr %pool, i64 0, i32 0, i32 4
  store ptr %memory, ptr %memory.p, align 8
  %started = call i64 @kaun_pool_start(ptr %pool, i64 %threads, i64 %spins, i64 %yields)
  ret ptr %pool
}

define internal void @destroy(ptr %pool) nounwind {
  call void @kaun_pool_stop(ptr %pool)
  %memory.p = getelementptr %pool, ptr %pool, i64 0, i32 0, i32 4
  %memory = load ptr, ptr %memory.p, align 8
  call void @free(ptr %memory)
  ret void
}
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
"""
