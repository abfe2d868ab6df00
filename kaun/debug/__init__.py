"""Looks into programs while they run: their stages, their numbers, and where the two went wrong.

The environment variable KAUN_DEBUG, a list of stages such as `traced,fused,llvm`, is `stages` for a whole process.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import TextIO

from kaun import observe

__all__ = ["stages"]


def stages(*names: str, file: TextIO | None = None) -> AbstractContextManager[None]:
    """Inside the context, print these stages of every program that runs, to `file` (standard error).

    names: of "traced", "differentiated", "simplified", "fused", "scheduled", "llvm" and "assembly".

        with kn.debug.stages("fused"):
            state = kn.train.fit(trainer, state, batches, loss=kn.loss.mse)

    A program is printed before it first runs in the context, whether it is compiled then, was compiled earlier or comes
    from the cache. ValueError for a name that is no stage.
    """
    from kaun.debug.stage_printer import Printer, checked

    return observe.observing(Printer(checked("debug.stages", names), file))


def _from_environment(text: str) -> None:
    """Print the stages that KAUN_DEBUG lists, as long as the process lives."""
    from kaun.debug.stage_printer import Printer, checked

    names = [name.strip() for name in text.split(",") if name.strip()]
    observe.observers.append(Printer(checked("KAUN_DEBUG", names), None))


if os.environ.get("KAUN_DEBUG"):
    _from_environment(os.environ["KAUN_DEBUG"])
