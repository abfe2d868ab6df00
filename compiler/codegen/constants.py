"""Integers and vectors of them that kernels take again and again: each is made, and printed, once."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from llvmlite import ir


@lru_cache(maxsize=4096)
def integer(bits: int, value: int) -> ir.Constant:
    """An integer of so many bits."""
    return ir.Constant(ir.IntType(bits), value)


def lane_order(lanes: Iterable[int]) -> ir.Constant:
    """Lanes for a shuffle to take, or numbers of lanes: a vector of 32-bit integers."""
    return _vector(32, tuple(lanes))


def lane_mask(lanes: Iterable[object]) -> ir.Constant:
    """The lanes that are on."""
    return _vector(1, tuple([1 if on else 0 for on in lanes]))


@lru_cache(maxsize=1024)
def _vector(bits: int, values: tuple[int, ...]) -> ir.Constant:
    return ir.Constant(ir.VectorType(ir.IntType(bits), len(values)), list(values))
