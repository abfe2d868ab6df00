"""The recorded values of other libraries, and the comparison of a function and its gradients with them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kaun import nx
from kaun.gradients import vjp

Array = np.ndarray[Any, np.dtype[Any]]


@functools.cache
def recorded() -> dict[str, Array]:
    with np.load(Path(__file__).resolve().parent / "reference" / "values.npz") as file:
        return dict(file)


def case(name: str) -> dict[str, Array]:
    """The arrays recorded under `name`."""
    prefix = name + "/"
    return {key[len(prefix) :]: value for key, value in recorded().items() if key.startswith(prefix)}


def cases(prefix: str) -> list[str]:
    """The names of the cases that start with `prefix`."""
    return sorted({key.rpartition("/")[0] for key in recorded() if key.startswith(prefix)})


def check(name: str, function: Callable[..., nx.Tensor], inputs: tuple[str, ...], rtol: float = 2e-5) -> None:
    """Compare `function(*inputs)` and its vector-Jacobian product with those recorded under `name`."""
    values = case(name)
    arguments = [nx.asarray(values[key]) for key in inputs]
    differentiated = [position for position, key in enumerate(inputs) if f"d_{key}" in values]

    def of_differentiated(*some: nx.Tensor) -> nx.Tensor:
        every = list(arguments)
        for position, tensor in zip(differentiated, some, strict=True):
            every[position] = tensor
        return function(*every)

    y, pullback = vjp(of_differentiated, *(arguments[position] for position in differentiated))
    gradients = pullback(nx.asarray(values["g"]))
    nx.realize(y, *gradients)
    assert y.dtype is nx.float32
    close(y, values["y"], rtol)
    for position, gradient in zip(differentiated, gradients, strict=True):
        close(gradient, values[f"d_{inputs[position]}"], rtol)


def close(actual: nx.Tensor, expected: Array, rtol: float) -> None:
    """Equal to a relative tolerance, with an absolute one of the same fraction of the typical size."""
    scale = float(np.abs(expected[np.isfinite(expected)]).mean()) if expected.size else 0.0
    np.testing.assert_allclose(actual.numpy(), expected, rtol=rtol, atol=rtol * max(scale, 1e-30))
