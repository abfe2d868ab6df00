"""Optimizers: chains of gradient transformations, their schedules, and how to apply them."""

from . import schedule
from .apply import apply_updates, init, step, update
from .optimizers import adam, adamw, sgd
from .transformation import (
    Transformation,
    add_decayed_weights,
    chain,
    clip_by_global_norm,
    clip_by_norm,
    clip_by_value,
    global_norm,
    scale,
    scale_by_adam,
    scale_by_learning_rate,
    scale_by_schedule,
    trace,
)

__all__ = [
    "Transformation", "adam", "adamw", "add_decayed_weights", "apply_updates", "chain", "clip_by_global_norm",
    "clip_by_norm", "clip_by_value", "global_norm", "init", "scale", "scale_by_adam", "scale_by_learning_rate",
    "scale_by_schedule", "schedule", "sgd", "step", "trace", "update",
]  # fmt: skip
