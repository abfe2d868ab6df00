"""The live bar of `fit(progress=True)`: loss, steps, steps per second, time left."""

from __future__ import annotations

import time
from types import TracebackType

from kaun.nx import Tensor

# Looking at the loss waits for the step, and drawing takes longer than a small step: both happen at this interval.
_SECONDS_BETWEEN_LOOKS = 0.1


class Bar:
    """A progress bar over `total` steps (None: unknown), drawn while its context is open."""

    def __init__(self, total: int | None) -> None:
        from rich import progress  # here, as importing it takes longer than many a program trains

        self._progress = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[rate]}"),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(),
        )
        self._task = self._progress.add_task("loss   ...", total=total, rate="")
        self._steps = 0
        self._started = self._shown = time.perf_counter()
        self._last: Tensor | None = None

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def advance(self, loss: Tensor) -> None:
        """Count one step, whose loss is `loss`."""
        self._steps += 1
        self._last = loss
        if time.perf_counter() - self._shown >= _SECONDS_BETWEEN_LOOKS:
            self._show()

    def _show(self) -> None:
        if self._last is None:
            return
        loss = float(self._last)
        self._shown = time.perf_counter()
        rate = self._steps / max(1e-9, self._shown - self._started)
        self._progress.update(
            self._task, completed=self._steps, description=f"loss {loss:.4f}", rate=f"{rate:,.0f} steps/s"
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._show()
        finally:
            self._progress.stop()

