"""How the threads of a pool share a loop, as LLVM IR: the caller's side, a worker's side, and the claims of both.

One loop, seen from the caller (who is worker 0) and from a worker; where the words lie tells `pool_module.py`:

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

# The parts of the state beside the generation, and its lowest 16 bits: how many workers are inside.
OPEN, WAITING, SHUTDOWN, ACTIVE_MASK = 1 << 16, 1 << 17, 1 << 18, (1 << 16) - 1

# A claim takes a thread's share of the chunks that are left, divided by this (guided self-scheduling, Polychronopoulos
# and Kuck 1987): long runs of neighbours first, which often share data, single chunks at the end, which even them out.
SHARE_DIVISOR = 2


def constants() -> dict[str, int]:
    """What the text below stands for by name."""
    return {
        "$OPEN": OPEN,
        "$CLOSED_MASK": ~OPEN,
        "$WAITING": WAITING,
        "$SHUTDOWN": SHUTDOWN,
        "$ACTIVE": ACTIVE_MASK,
        "$DIVISOR": SHARE_DIVISOR,
    }


CLAIMS = """
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

PARALLEL_FOR = """
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

WORKER = """
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
