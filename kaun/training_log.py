"""A log of training as TensorBoard's event files: what each step gave, what was compiled, how long kernels take.

Written by tensorboardX, record by record, so a run that ends anywhere leaves what it had. Scalars by the number of the
state's step:

    loss, learning_rate, gradient_norm         of each step
    steps_per_second                           over the steps since the last time, about once a second
    compiler/kernels_compiled, .../seconds     in all, when something was compiled
    cache/memory_hits, cache/disk_hits         in all, with these
    kernels/seconds                            of the tenth step and then of every thousandth
    kernels, a table as text                   of these steps: every kernel's time, layers and lines

A folder that cannot be written to any more is said once, as a warning, and training goes on.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kaun.execution import CompiledGraph
from kaun.profiling import markdown_table, tracer_of
from kaun.runtime.cache import CacheStatistics, default_cache
from kaun.runtime.trace import Tracer

# Steps whose kernels are timed: when caches and the processor's clock have settled, and now and then.
_FIRST_TIMED, _TIMED_EVERY = 10, 1000
# Between two looks at the clock that are written.
_SECONDS = 1.0


class TrainingLog:
    """The log of one call of `fit`, in a new file of a folder, which is made if it is not there.

    start: how many steps were made before. ValueError, naming the extra to install, if tensorboardX is missing; OSError
    if the folder cannot be made or written to.
    """

    def __init__(self, folder: str | os.PathLike[str], start: int):
        try:
            from tensorboardX import summary
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event
            from tensorboardX.proto.summary_pb2 import Summary
        except ImportError as error:
            raise ValueError(
                "train.fit: log_dir needs tensorboardX; install it with pip install 'kaun[log]'"
            ) from error
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        self._text, self._summary, self._event = summary.text, Summary, Event
        self._writer: Any = EventsWriter(str(path / "events"), f".{os.getpid()}.{time.time_ns()}")
        self._step = start
        self._statistics = CacheStatistics()
        self._timed: tuple[CompiledGraph, Tracer] | None = None
        self._running = False
        self._last = (time.perf_counter(), start)

    def runner(self, compiled: CompiledGraph) -> Tracer | None:
        """What is to run the next step so that its kernels are timed; None for the program's own way."""
        number = self._step + 1
        self._running = number == _FIRST_TIMED or number % _TIMED_EVERY == 0
        if not self._running:
            return None
        if self._timed is None or self._timed[0] is not compiled:
            self._timed = compiled, tracer_of(compiled)
        return self._timed[1]

    def step(self, loss: float, notes: Mapping[str, float]) -> None:
        """One more step was made."""
        self._step += 1
        for name, value in {"loss": loss, **notes}.items():
            self._scalar(name, value)
        statistics = default_cache().statistics
        if statistics != self._statistics:
            self._statistics = statistics
            self._scalar("compiler/kernels_compiled", statistics.compiled)
            self._scalar("compiler/seconds", statistics.compile_seconds)
            self._scalar("cache/memory_hits", statistics.memory_hits)
            self._scalar("cache/disk_hits", statistics.disk_hits)
        if self._running and self._timed is not None:
            compiled, tracer = self._timed
            seconds, table = markdown_table(compiled.compilation, tracer.noted())
            self._scalar("kernels/seconds", seconds)
            self._write(self._text("kernels", table))
        now, (before, number) = time.perf_counter(), self._last
        if now - before >= _SECONDS:
            self._scalar("steps_per_second", (self._step - number) / (now - before))
            self._last = now, self._step
            self._do(lambda writer: writer.flush())

    def close(self) -> None:
        """Write what is left."""
        self._do(lambda writer: writer.close())
        self._writer = None

    def _scalar(self, name: str, value: float) -> None:
        self._write(self._summary(value=[self._summary.Value(tag=name, simple_value=value)]))

    def _write(self, summary: Any) -> None:
        event = self._event(wall_time=time.time(), step=self._step, summary=summary)
        self._do(lambda writer: writer.write_event(event))

    def _do(self, what: Callable[[Any], object]) -> None:
        if self._writer is None:
            return
        try:
            what(self._writer)
        except OSError as error:
            self._writer = None
            warnings.warn(f"train.fit: the log ends here, it cannot be written: {error}", stacklevel=2)
