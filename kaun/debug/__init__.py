"""Looks into programs while they run: their stages, their numbers, and where the two went wrong.

    kn.debug.stages("fused")        print stages of every program that runs
    kn.debug.print(x, "scores")     show a value in a compiled function; `check` a condition
    kn.debug.nan(step, state, x)    the first op that made NaN or infinity
    kn.debug.compare(f, x)          the first node where compiled code and the interpreter disagree
    kn.debug.bisect(f, x)           what brought that in: a gradient rule, a pass, a stage

The environment variable KAUN_DEBUG, a list of stages such as `traced,fused,llvm`, is `stages` for a whole process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TextIO

from kaun import nx, observe, probes
from kaun.compiler.ir import dtypes, source
from kaun.probes import CheckError as CheckError

if TYPE_CHECKING:  # what looks inside is loaded when somebody looks
    from kaun.debug.examination import Examination
    from kaun.debug.not_finite import AllFinite, NotFinite

__all__ = ["CheckError", "bisect", "check", "compare", "nan", "print", "stages"]


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


def print(x: Any, label: str = "") -> Any:
    """Show the value of `x` whenever the code around runs, in compiled functions too; gives `x` back.

        scores = kn.debug.print(q @ k.mT, "scores")

    In a function given to `jit`, `compile`, `grad` or `train` the value is a further output of the program, and is
    printed to standard output after each run, in the order of the code, with `label`, type, line and layer path. A
    program without any is what it would be without this function.
    """
    tensor = nx.asarray(x)
    probes.record(probes.Probe("print", label, source.current(), tensor._node))
    return x


def check(condition: Any, message: str) -> None:
    """Raise CheckError with `message` if `condition`, a tensor of bools, does not hold everywhere.

        kn.debug.check(nx.all(probabilities >= 0), "probabilities are positive")

    In a compiled function the condition is a further output of the program, looked at after each run. A training step
    has been made then: the error tells of it, and does not undo it. TypeError for a condition that is not of bools.
    """
    tensor = nx.asarray(condition)
    if tensor.dtype is not dtypes.bool_:
        raise TypeError(f"debug.check: got a condition of {tensor.dtype}, expected bools; compare it with something")
    probes.record(probes.Probe("check", message, source.current(), tensor._node))


def nan(function: Callable[..., Any], *args: Any, **kwargs: Any) -> NotFinite | AllFinite:
    """The first op that made NaN or infinity in what `function(*args, **kwargs)` computes.

        print(kn.debug.nan(kn.train.step, trainer, state, x, loss=loss))

    Every program that the call runs also runs on the interpreter, from the same inputs, node by node. What is found
    tells the op, its inputs' ranges, the layer path and the line of the program; `save` writes a reproducer. Infinity
    that is only handed on, as from a mask, counts as made by nobody. If all is finite the result is false as a
    condition, and prints so. TypeError for the result of a call in place of a function.
    """
    from kaun.debug.examination import first_not_finite

    return first_not_finite(function, args, kwargs)


def compare(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Examination:
    """Compare what `function(*args, **kwargs)` computes with the interpreter, node by node.

        found = kn.debug.compare(step, params, x)
        assert found, found

    Every program that the call runs is looked at once: each pass, then each kernel as it was compiled, on the
    interpreter's values of what it reads, then the program as a whole, also written over its inputs. The result is true
    if all agree; otherwise its `fault` names the first node that disagrees, with layer path, line and how far off it
    is. Tolerances come from how far rounding carries on the way (`kaun/debug/rounding.py`). A `Compiled` may be given
    without arguments, and is then run on random ones.
    """
    from kaun.debug.examination import examine

    return examine(function, args, kwargs, gradients=False)


def bisect(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Examination:
    """`compare`, and before it the gradient rules: `fault.stage` and `fault.culprit` tell what brought an error in.

    The rule of each op is compared with differences of the op along a random direction, near the values that the op
    saw, in float64; then gradients of the whole forward part. A pass, a stage of the compiler or the op with a wrong
    rule is named, whichever comes first. Only rules of ops that the program computes can be looked at: of a function
    that returns gradients alone, much of the forward part is never computed, so return the value too.
    """
    from kaun.debug.examination import examine

    return examine(function, args, kwargs, gradients=True)


def _from_environment(text: str) -> None:
    """Print the stages that KAUN_DEBUG lists, as long as the process lives; a wrong list is only told of."""
    from kaun.debug.stage_printer import Printer, checked

    names = [name.strip() for name in text.split(",") if name.strip()]
    try:
        observe.observers.append(Printer(checked("KAUN_DEBUG", names), None))
    except ValueError as error:
        sys.stderr.write(f"{error}; no stage is printed\n")


if os.environ.get("KAUN_DEBUG"):
    _from_environment(os.environ["KAUN_DEBUG"])
