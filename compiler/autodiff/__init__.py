"""Differentiation as a transformation of graphs: a table of rules per mode, and the driver that applies it."""

from .vjp import NOT_DIFFERENTIABLE, RULES, gradients, rule

__all__ = ["NOT_DIFFERENTIABLE", "RULES", "gradients", "rule"]
