"""Every chunk runs exactly once, whatever the threads do, and nothing hangs."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

import llvmlite.binding as llvm
import numpy as np
import pytest
from kaun.runtime import threads
from kaun.runtime.cache import KernelRequest, compile_kernels
from kaun.runtime.pool_module import pool_module
from kaun.runtime.target import host
from promises import exit_code_in_child, fresh_process

# Adds one to the 64-bit count of each chunk in buffer 0, not atomically: two threads at one chunk would show.
COUNT = """
define void @count(ptr %buffers, i64 %begin, i64 %end, ptr %scratch) {
entry:
  %counts = load ptr, ptr %buffers, align 8
  br label %loop
loop:
  %i = phi i64 [ %begin, %entry ], [ %next, %loop ]
  %p = getelementptr i64, ptr %counts, i64 %i
  %v = load i64, ptr %p, align 8
  %w = add i64 %v, 1
  store i64 %w, ptr %p, align 8
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %end
  br i1 %more, label %loop, label %done
done:
  ret void
}
"""

# As COUNT, and adds the number of chunks to the second word of the worker's own scratch, slowly: read, pause, write.
# Two workers with one scratch would lose some. The first word counts the worker's calls, the third its first calls.
TALLY = COUNT.replace("@count", "@tally").replace(
    "done:",
    """done:
  %chunks = sub i64 %end, %begin
  %calls = load i64, ptr %scratch, align 8
  %calls.next = add i64 %calls, 1
  store i64 %calls.next, ptr %scratch, align 8
  %first = icmp eq i64 %calls, 0
  %one = zext i1 %first to i64
  %firsts.p = getelementptr i64, ptr %scratch, i64 2
  %firsts = load i64, ptr %firsts.p, align 8
  %firsts.next = add i64 %firsts, %one
  store i64 %firsts.next, ptr %firsts.p, align 8
  %tally = getelementptr i64, ptr %scratch, i64 1
  %before = load volatile i64, ptr %tally, align 8
  br label %dawdle
dawdle:
  %k = phi i64 [ 0, %done ], [ %k.next, %dawdle ]
  %ignored = load volatile i64, ptr %tally, align 8
  %k.next = add i64 %k, 1
  %again = icmp slt i64 %k.next, 50
  br i1 %again, label %dawdle, label %write
write:
  %after = add i64 %before, %chunks
  store volatile i64 %after, ptr %tally, align 8""",
)

# Each chunk waits until all chunks have begun, so it returns only if that many threads run at once.
MEET = """
define void @meet(ptr %buffers, i64 %begin, i64 %end, ptr %scratch) {
entry:
  %arrived = load ptr, ptr %buffers, align 8
  %target.p = getelementptr i64, ptr %arrived, i64 1
  %target = load i64, ptr %target.p, align 8
  %chunks = sub i64 %end, %begin
  %before = atomicrmw add ptr %arrived, i64 %chunks seq_cst, align 8
  br label %wait
wait:
  %now = load atomic i64, ptr %arrived seq_cst, align 8
  %all = icmp sge i64 %now, %target
  br i1 %all, label %done, label %wait
done:
  ret void
}
"""

# Writes the number of chunks of each claim where it begins.
CLAIMS = """
define void @claims(ptr %buffers, i64 %begin, i64 %end, ptr %scratch) {
  %sizes = load ptr, ptr %buffers, align 8
  %size.p = getelementptr i64, ptr %sizes, i64 %begin
  %size = sub i64 %end, %begin
  store i64 %size, ptr %size.p, align 8
  ret void
}
"""

# Calls the pool `repeats` times from native code, as a program does: through the address the pool begins with.
DRIVE = """
define void @drive(ptr %pool, ptr %kernel, ptr %buffers, i64 %count, ptr %scratch, i64 %stride, i64 %repeats) {
entry:
  %parallel_for = load ptr, ptr %pool, align 8
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  call void %parallel_for(ptr %pool, ptr %kernel, ptr %buffers, i64 %count, ptr %scratch, i64 %stride)
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %repeats
  br i1 %more, label %loop, label %done
done:
  ret void
}
"""


def address_of(name: str, text: str) -> int:
    return compile_kernels([KernelRequest(name, text, lambda: text)], host())[0]


class Job:
    """A kernel over counts, with a line of scratch per worker; run it, then look."""

    def __init__(self, chunks: int, name: str = "tally", text: str = TALLY) -> None:
        self.kernel = address_of(name, text)
        self.counts = np.zeros(chunks, np.int64)
        self.scratch = np.zeros((threads.MOST_THREADS, 16), np.int64)
        self.buffers = (ctypes.c_void_p * 1)(self.counts.ctypes.data)

    def run(self, pool: threads.Pool, repeats: int = 1) -> None:
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        drive = ctypes.CFUNCTYPE(None, pointer, pointer, pointer, size, pointer, size, size)(address_of("drive", DRIVE))
        buffers = ctypes.addressof(self.buffers)
        drive(pool.address, self.kernel, buffers, self.counts.size, self.scratch.ctypes.data, 128, repeats)

    def check(self, repeats: int, workers: int) -> None:
        np.testing.assert_array_equal(self.counts, repeats)
        assert self.scratch[:, 1].sum() == repeats * self.counts.size
        assert not self.scratch[workers:].any() and not self.scratch[:, 3:].any()


@pytest.fixture(params=[1, 2, 3, 4], ids=lambda count: f"{count} threads")
def pool(request):
    made = threads.Pool(request.param)
    yield made
    made.close()


@pytest.fixture
def restored():
    """The settings of the process as before, afterwards."""
    before = threads._state.wanted
    yield
    threads._state.wanted, threads._state.current = before, None


def test_the_pool_begins_with_the_address_of_parallel_for(pool) -> None:
    assert ctypes.c_uint64.from_address(pool.address).value == pool.parallel_for_address
    assert pool.address % 128 == 0


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64", "riscv64"])
def test_the_pool_is_valid_for_other_architectures(architecture: str) -> None:
    llvm.parse_assembly(pool_module(architecture), llvm.create_context()).verify()


@pytest.mark.parametrize("chunks", [1, 2, 3, 7, 64, 1000])
def test_every_chunk_runs_exactly_once(pool, chunks: int) -> None:
    job = Job(chunks)
    job.run(pool)
    job.check(1, pool.threads)


@pytest.mark.parametrize("chunks", [2, 9, 72, 500])
def test_claims_are_long_runs_of_neighbours_first_and_single_chunks_at_the_end(pool, chunks: int) -> None:
    job = Job(chunks, "claims", CLAIMS)
    job.run(pool)
    sizes = job.counts[job.counts > 0]
    assert sizes.sum() == chunks
    if pool.threads > 1:
        assert (np.diff(sizes) <= 0).all() and sizes[-1] == 1
        assert sizes[0] == max(1, chunks // (2 * pool.threads))
    else:
        assert sizes.size == 1


@pytest.mark.parametrize("chunks", [0, -1])
def test_no_chunks_run_nothing(pool, chunks: int) -> None:
    job = Job(4)
    pool.parallel_for(job.kernel, ctypes.addressof(job.buffers), chunks, job.scratch.ctypes.data, 128)
    assert not job.counts.any() and not job.scratch.any()


def test_many_tiny_jobs_in_a_row(pool) -> None:
    for chunks in (2, 5, 33):
        job = Job(chunks, "count", COUNT)
        job.run(pool, 3000)
        np.testing.assert_array_equal(job.counts, 3000)


def test_many_small_jobs_with_private_scratch(pool) -> None:
    job = Job(40)
    job.run(pool, 1500)
    job.check(1500, pool.threads)


def test_scratch_begins_with_zero_once_for_each_worker_and_loop(pool) -> None:
    job = Job(40)
    job.scratch[: pool.threads, 0] = -7  # what an earlier kernel left
    job.run(pool)
    took_part = job.scratch[:, 1] > 0
    assert took_part.any()
    np.testing.assert_array_equal(job.scratch[:, 2], took_part)  # as many first calls as loops, here one
    assert (job.scratch[took_part, 0] > 0).all()


def test_workers_wake_from_sleep(pool) -> None:
    job = Job(16)
    for _ in range(20):
        time.sleep(0.001)
        job.run(pool)
    job.check(20, pool.threads)


@pytest.mark.parametrize("asleep", [False, True])
def test_all_threads_take_part(pool, asleep: bool) -> None:
    kernel = address_of("meet", MEET)
    for _ in range(20):
        arrived = np.array([0, pool.threads], np.int64)
        buffers = (ctypes.c_void_p * 1)(arrived.ctypes.data)
        if asleep:
            time.sleep(0.002)
        pool.parallel_for(kernel, ctypes.addressof(buffers), pool.threads)
        assert arrived[0] == pool.threads


def test_idle_workers_use_no_processor_time() -> None:
    made = threads.Pool(2)
    Job(8).run(made)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.15  # a spinning worker would take 0.3
    made.close()


def test_python_threads_share_a_pool(pool) -> None:
    jobs = [Job(24) for _ in range(3)]
    repeats = 800
    callers = [threading.Thread(target=job.run, args=(pool, repeats), daemon=True) for job in jobs]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
        assert not caller.is_alive()
    for job in jobs:
        job.check(repeats, pool.threads)


def test_pools_start_and_end_many_times() -> None:
    for count in (2, 4, 3) * 10:
        made = threads.Pool(count)
        job = Job(9)
        job.run(made, 3)
        made.close()
        made.close()
        job.check(3, count)


def test_ctrl_c_is_not_delivered_to_workers() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    made = threads.Pool(2)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    if sys.platform == "linux":
        deadline = time.monotonic() + 30  # a thread begins with everything blocked, until it has its mask
        while not (found := [task for task in os.listdir("/proc/self/task") if _blocks_interrupt(task)]):
            assert time.monotonic() < deadline
        assert os.getpid() not in map(int, found)
    made.close()


def _blocks_interrupt(task: str) -> bool:
    status = dict(line.split(":", 1) for line in open(f"/proc/self/task/{task}/status").read().splitlines())
    blocked = int(status["SigBlk"], 16)
    # Interrupt blocked but faults not: what the pool asks for, and nobody else in a test run.
    return bool(blocked >> (signal.SIGINT - 1) & 1) and not blocked >> (signal.SIGSEGV - 1) & 1


def test_set_num_threads_changes_the_pool_and_keeps_old_ones(restored) -> None:
    threads.set_num_threads(2)
    two = threads.pool()
    assert two.threads == threads.num_threads() == 2 and threads.pool() is two
    threads.set_num_threads(3)
    three = threads.pool()
    assert three.threads == 3
    job = Job(10)
    job.run(two)  # a program that still holds the old one
    job.run(three)
    job.check(2, 3)
    threads.set_num_threads(2)
    assert threads.pool() is two


@pytest.mark.parametrize("count", [0, -1, 1025])
def test_thread_counts_outside_the_range_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"got {count}"):
        threads.set_num_threads(count)
    with pytest.raises(ValueError, match=f"got {count}"):
        threads.Pool(count)


@pytest.mark.parametrize("count", [1.0, "2", True, None])
def test_thread_counts_that_are_no_integers_are_refused(count: object) -> None:
    with pytest.raises(TypeError, match="expected an integer"):
        threads.set_num_threads(count)  # type: ignore[arg-type]


def test_environment_sets_the_default(restored, monkeypatch) -> None:
    threads._state.wanted = None
    monkeypatch.setenv("KAUN_NUM_THREADS", "3")
    assert threads.num_threads() == 3
    threads._state.wanted = None
    monkeypatch.setenv("KAUN_NUM_THREADS", "many")
    with pytest.raises(ValueError, match="KAUN_NUM_THREADS is 'many'"):
        threads.num_threads()


def test_importing_starts_no_thread() -> None:
    script = (
        "import os, kaun.runtime.threads as t\n"
        "def count(): return len(os.listdir('/proc/self/task'))\n"
        "before = count(); t.num_threads(); assert count() == before\n"
        "t.set_num_threads(3); assert count() == before\n"
        "t.pool(); assert count() == before + 2"
    )
    if sys.platform != "linux":
        pytest.skip("counts threads in /proc")
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_makes_its_own_pool(restored) -> None:
    threads.set_num_threads(3)
    parents = threads.pool()
    job = Job(30)
    job.run(parents, 10)

    def child() -> None:
        assert threads.num_threads() == 3 and threads.pool() is not parents
        mine = Job(30)
        mine.run(threads.pool(), 200)
        mine.check(200, 3)

    assert [exit_code_in_child(child) for _ in range(3)] == [0, 0, 0]
    job.run(threads.pool(), 10)
    job.check(20, 3)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_fork_while_another_thread_is_inside_a_loop(restored) -> None:
    threads.set_num_threads(2)
    job, stop = Job(50), threading.Event()
    rounds = [0]

    def keep_running() -> None:
        while not stop.is_set():
            job.run(threads.pool(), 50)
            rounds[0] += 50

    def child() -> None:
        mine = Job(30)
        mine.run(threads.pool(), 50)
        mine.check(50, 2)

    thread = threading.Thread(target=keep_running, daemon=True)
    thread.start()
    codes = [exit_code_in_child(child) for _ in range(5)]
    stop.set()
    thread.join(30)
    assert codes == [0] * 5
    job.check(rounds[0], 2)


EXITS = {
    "asleep": "time.sleep(0.01)",
    "spinning": "pass",
    "inside a loop on a daemon thread": (
        "threading.Thread(target=lambda: job.run(threads.pool(), 10**9), daemon=True).start(); time.sleep(0.05)"
    ),
    "with an exception": "sys.exit(0)",
}


@pytest.mark.parametrize("when", EXITS)
def test_the_interpreter_exits_without_waiting_for_workers(when: str) -> None:
    script = f"""
import threading, time
sys.path.append({os.path.dirname(__file__)!r})
from test_threads import Job
from kaun.runtime import threads as pools
pools.set_num_threads(3)
job = Job(64)
job.run(pools.pool(), 5)
{EXITS[when].replace("threads.pool", "pools.pool")}
"""
    for _ in range(3):
        done = fresh_process(script, seconds=60)
        assert done.returncode == 0, done.stderr
