"""Optimizers: chains of gradient transformations, their schedules, and how to apply them."""

from . import schedule
from .adafactor import scale_by_adafactor
from .apply import apply_updates, init, step, update
from .control import accumulate_gradients, add_noise, apply_if_finite, centralize, scale_by_trust_ratio
from .moments import (
    scale_by_adagrad,
    scale_by_adam,
    scale_by_adan,
    scale_by_lion,
    scale_by_radam,
    scale_by_rms,
    trace,
)
from .optimizers import adafactor, adagrad, adam, adamw, adan, lamb, lars, lion, radam, rmsprop, sgd
from .transformation import (
    Transformation,
    add_decayed_weights,
    chain,
    clip_by_global_norm,
    clip_by_norm,
    clip_by_value,
    global_norm,
    scale,
    scale_by_learning_rate,
    scale_by_schedule,
)

__all__ = [
    "Transformation", "accumulate_gradients", "adafactor", "adagrad", "adam", "adamw", "adan", "add_decayed_weights",
    "add_noise", "apply_if_finite", "apply_updates", "centralize", "chain", "clip_by_global_norm", "clip_by_norm",
    "clip_by_value", "global_norm", "init", "lamb", "lars", "lion", "radam", "rmsprop", "scale", "scale_by_adafactor",
    "scale_by_adagrad", "scale_by_adam", "scale_by_adan", "scale_by_learning_rate", "scale_by_lion", "scale_by_radam",
    "scale_by_rms", "scale_by_schedule", "scale_by_trust_ratio", "schedule", "sgd", "step", "trace", "update",
]  # fmt: skip
