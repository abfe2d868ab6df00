"""The thread pool as a module of LLVM IR: its memory, how it starts and ends, and what drives it from outside.

The pool is emitted, so users need no C compiler, and talks to the system through pthreads. How its threads share a
loop is in `pool_loops.py`. Its memory, by byte offset, hot fields on cache lines of their own:

    0     address of kaun_parallel_for: a program calls through it and needs no symbol
    8     threads, the caller included
    16    iterations of pause to spin, and then
    24    times to yield the processor before sleeping
    32    what malloc returned
    40    the process that started it
    128   busy: 1 while some caller is inside a parallel loop
    256   state: | generation (32 bits) | ... | shutdown | waiting | open | active workers (16 bits) |
    384   next: the first chunk that nobody has claimed
    512   job: kernel, buffers, count, scratch, scratch stride, into how many claims to divide what is left
    640   sleepers, then the next worker's number
    768   mutex; 896 condition "there is work"; 1024 condition "all workers left"
    1152  the workers' pthread handles
"""

from __future__ import annotations

from kaun.runtime import pool_loops

__all__ = ["YIELDS", "pool_bytes", "pool_module"]

# After spinning, a worker looks once each time the system has let others run: about a millisecond, which bridges the
# Python between two training steps. Waking a thread that sleeps takes some 50 microseconds on a virtual machine.
YIELDS = 2000

# The default elsewhere is as low as 128 KiB (musl) or 512 KiB (macOS).
STACK_BYTES = 8 << 20

# Where the handles of the workers begin, an address each.
HANDLES = 1152

_PAUSE = {
    "x86_64": ("declare void @llvm.x86.sse2.pause()", "call void @llvm.x86.sse2.pause()"),
    # `yield` does nothing on most cores; an instruction barrier takes about as long as x86's pause.
    "aarch64": ("declare void @llvm.aarch64.isb(i32)", "call void @llvm.aarch64.isb(i32 15)"),
}


def pool_bytes(threads: int) -> int:
    """The size of a pool's memory."""
    return HANDLES + 8 * threads


def pool_module(architecture: str) -> str:
    """The module, for processors of this architecture.

    Who brings memory of `pool_bytes` for it, zeroed and aligned to 64 bytes, calls

        i64 kaun_pool_start(ptr pool, i64 threads, i64 spins, i64 yields)    how many threads it has then
        i1 kaun_pool_is_here(ptr pool)                                       whether this process started it
        void kaun_pool_stop(ptr pool)                                        nobody may be inside a loop

    A forked child has the memory of its parent's pool, and none of its threads: there the pool is not here, its loops
    may not be run, and to stop it does nothing. Zeroed memory is a pool that is not here.
    """
    declare_pause, pause = _PAUSE.get(architecture, ("", ""))
    loops = (pool_loops.CLAIMS, pool_loops.PARALLEL_FOR, pool_loops.WORKER)
    module = "\n".join((_DECLARATIONS, declare_pause, _RUN, *loops, _START, _CREATE))
    constants = {**pool_loops.constants(), "$STACK": STACK_BYTES, "$PAUSE": pause}
    for name, value in constants.items():
        module = module.replace(name, str(value))
    return module


# pthread types are opaque: 128 bytes hold a mutex, a condition or attributes on Linux and macOS.
_DECLARATIONS = """
%line = type [128 x i8]
%header = type { ptr, i64, i64, i64, ptr, i64, [80 x i8] }
%job = type { ptr, ptr, i64, ptr, i64, i64, [80 x i8] }
%crew = type { i64, i64, [112 x i8] }
%word = type { i64, [120 x i8] }
;                0: header 1: busy 2: state 3: next 4: job 5: crew 6: mutex 7: work 8: left 9: handles
%pool = type { %header, %word, %word, %word, %job, %crew, %line, %line, %line, [0 x ptr] }

declare ptr @malloc(i64)
declare void @free(ptr)
declare i32 @pthread_create(ptr, ptr, ptr, ptr)
declare i32 @sched_yield()
declare i32 @getpid()
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

_START = """
; Make a pool in zeroed memory and start its workers: how many threads it then has, the caller included.
define i64 @kaun_pool_start(ptr %pool, i64 %threads, i64 %spins, i64 %yields) nounwind {
entry:
  %attributes = alloca %line, align 16
  %threads.p = getelementptr %pool, ptr %pool, i64 0, i32 0, i32 1
  %spin.p = getelementptr %pool, ptr %pool, i64 0, i32 0, i32 2
  %yield.p = getelementptr %pool, ptr %pool, i64 0, i32 0, i32 3
  %process.p = getelementptr %pool, ptr %pool, i64 0, i32 0, i32 5
  %number.p = getelementptr %pool, ptr %pool, i64 0, i32 5, i32 1
  %mutex = getelementptr %pool, ptr %pool, i64 0, i32 6
  %work = getelementptr %pool, ptr %pool, i64 0, i32 7
  %left = getelementptr %pool, ptr %pool, i64 0, i32 8
  store ptr @kaun_parallel_for, ptr %pool, align 8
  store i64 %spins, ptr %spin.p, align 8
  store i64 %yields, ptr %yield.p, align 8
  store i64 1, ptr %number.p, align 8
  %process = call i32 @getpid()
  %process.wide = sext i32 %process to i64
  store i64 %process.wide, ptr %process.p, align 8
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

; Whether this process started the pool that the memory holds. A forked child has the memory and none of the threads.
define i1 @kaun_pool_is_here(ptr %pool) nounwind {
entry:
  %process.p = getelementptr %pool, ptr %pool, i64 0, i32 0, i32 5
  %process = load i64, ptr %process.p, align 8
  %none = icmp eq i64 %process, 0
  br i1 %none, label %elsewhere, label %compare
compare:
  %current = call i32 @getpid()
  %current.wide = sext i32 %current to i64
  %here = icmp eq i64 %process, %current.wide
  ret i1 %here
elsewhere:
  ret i1 false
}

; End the workers. Nobody may be inside a loop.
define void @kaun_pool_stop(ptr %pool) nounwind {
entry:
  %here = call i1 @kaun_pool_is_here(ptr %pool)
  br i1 %here, label %tell, label %gone
gone:
  ; Threads that are not there cannot be joined, and the locks may be in the hands of one of them for ever.
  ret void
tell:
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
  %index = phi i64 [ 1, %tell ], [ %index.next, %join ]
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
