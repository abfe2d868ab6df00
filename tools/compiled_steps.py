"""Finds the compiled step inside a trainer, for the tools that look into it."""

from __future__ import annotations

from kaun import train
from kaun.tracing import Specialisation


def compiled_step(trainer: train.Trainer) -> Specialisation:
    """The trainer's most recently compiled training step. ValueError if it has made none."""
    for key, function in reversed(trainer._compiled.items()):
        if isinstance(key, tuple) and key[0] == "step" and function._specialisations:
            return next(reversed(function._specialisations.values()))
    raise ValueError("compiled_steps.compiled_step: the trainer has compiled no training step yet")
