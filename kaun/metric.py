"""Metrics: how good predictions are, computed by the compiler like everything else, and running means of numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kaun import nx
from kaun.compiler.ir.dtypes import float32, int32
from kaun.nx import Tensor


class Tracker:
    """Running means of named numbers, such as losses and accuracies over an epoch. Mutable."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def observe(self, name: str, value: Any) -> None:
        """Add a number (or a tensor with one element) under `name`."""
        self._sums[name] = self._sums.get(name, 0.0) + float(value)
        self._counts[name] = self._counts.get(name, 0) + 1

    def mean(self, name: str) -> float:
        """The mean of what was observed under `name`. KeyError if nothing was."""
        return self._sums[self._known(name)] / self._counts[name]

    def count(self, name: str) -> int:
        """How often something was observed under `name`; 0 for a name never seen."""
        return self._counts.get(name, 0)

    def reset(self) -> None:
        """Forget everything."""
        self._sums.clear()
        self._counts.clear()

    def summary(self) -> str:
        """All means in one line, in the order of the names: "accuracy 0.9700  loss 0.1234"."""
        return "  ".join(f"{name} {self.mean(name):.4f}" for name in sorted(self._sums))

    def __repr__(self) -> str:
        return f"Tracker({self.summary()})"

    def _known(self, name: str) -> str:
        if name not in self._sums:
            raise KeyError(f"metric.tracker: nothing observed under {name!r}; the names are {sorted(self._sums)}")
        return name


def tracker() -> Tracker:
    """A new tracker, with nothing observed."""
    return Tracker()


def eval(f: Callable[[Any], Any], data: Iterable[Any]) -> float:
    """The mean of the number `f(element)` over the elements of `data`. ValueError if there are none."""
    return eval_many(lambda element: {"value": f(element)}, data)["value"]


def eval_many(f: Callable[[Any], Mapping[str, Any]], data: Iterable[Any]) -> dict[str, float]:
    """The mean of each of the named numbers `f(element)` over the elements of `data`. ValueError if there are none."""
    means = Tracker()
    names: dict[str, None] = {}
    for element in data:
        for name, value in f(element).items():
            means.observe(name, value)
            names[name] = None
    if not names:
        raise ValueError("metric.eval: got no data, expected at least one element")
    return {name: means.mean(name) for name in names}


# --- classification --------------------------------------------------------------------------------------------------


def _classes(function: str, predictions: Any, targets: Any) -> tuple[Tensor, Tensor, int]:
    """(predicted classes, true classes, number of columns or 0), both flat integers."""
    predicted, true = nx.asarray(predictions), nx.asarray(targets)
    columns = 0
    if predicted.dtype.is_float:
        if predicted.ndim == 0 or predicted.shape[-1] == 0:
            raise ValueError(f"metric.{function}: got predictions {_type(predicted)}, expected scores (..., C)")
        columns = predicted.shape[-1]
        if true.shape == predicted.shape:
            true = nx.argmax(true, axis=-1)
        predicted = nx.argmax(predicted, axis=-1)
    if predicted.shape != true.shape or true.dtype.is_float:
        raise ValueError(
            f"metric.{function}: got predictions {_type(nx.asarray(predictions))} and targets "
            f"{_type(nx.asarray(targets))}, expected scores (..., C) or classes (...), and classes (...) or one-hot"
        )
    if true.size == 0:
        raise ValueError(f"metric.{function}: got no predictions, expected at least one")
    return nx.reshape(nx.astype(predicted, int32), (-1,)), nx.reshape(nx.astype(true, int32), (-1,)), columns


def _type(tensor: Tensor) -> str:
    return f"{tensor.dtype}{list(tensor.shape)}"


def accuracy(predictions: Any, targets: Any) -> float:
    """The fraction of predictions that are right.

    predictions: scores (..., C), of which the largest counts, or integer classes (...). targets: integer classes (...)
    or one-hot rows (..., C). ValueError for other shapes and for no predictions at all.
    """
    predicted, true, _ = _classes("accuracy", predictions, targets)
    return float(nx.mean(nx.astype(predicted == true, float32)))


def binary_accuracy(predictions: Any, targets: Any, *, threshold: float = 0.5) -> float:
    """The fraction of predictions on the right side of `threshold`: (prediction > threshold) == (target > 0.5).

    predictions (probabilities) and targets (0 or 1) of one shape, else ValueError.
    """
    predicted, true = nx.asarray(predictions), nx.asarray(targets)
    if predicted.shape != true.shape or predicted.size == 0:
        raise ValueError(
            f"metric.binary_accuracy: got predictions {_type(predicted)} and targets {_type(true)}, expected equal "
            "shapes that are not empty"
        )
    positive = nx.astype(true, float32) > 0.5
    return float(nx.mean(nx.astype((predicted > threshold) == positive, float32)))


def _counts(function: str, predictions: Any, targets: Any) -> tuple[list[float], list[float], list[float]]:
    """For each class: predictions that are right, all predictions of it, all occurrences of it."""
    predicted, true, columns = _classes(function, predictions, targets)
    largest = int(nx.max(nx.maximum(predicted, true)))
    if int(nx.min(nx.minimum(predicted, true))) < 0 or (columns and largest >= columns):
        raise ValueError(f"metric.{function}: got classes outside [0, {columns or largest + 1})")
    classes = nx.arange(columns or largest + 1, dtype=int32)
    guessed = nx.expand_dims(predicted, axis=-1) == classes
    actual = nx.expand_dims(true, axis=-1) == classes
    tables = [nx.sum(nx.astype(table, int32), axis=0) for table in (guessed & actual, guessed, actual)]
    nx.realize(*tables)
    right, predicted_counts, occurrences = ([float(n) for n in table.tolist()] for table in tables)
    return right, predicted_counts, occurrences


def _averaged(function: str, average: str, values: list[float], weights: list[float], pooled: float) -> float:
    """One number from one per class. Classes that occur neither in the predictions nor in the targets do not count."""
    if average == "micro":
        return pooled
    if average == "macro":
        return sum(values) / len(values)
    if average == "weighted":
        return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)
    raise ValueError(f"metric.{function}: got average={average!r}, expected 'macro', 'micro' or 'weighted'")


def _ratio(a: float, b: float) -> float:
    return a / b if b else 0.0


def _score(function: str, predictions: Any, targets: Any, average: str, score: Callable[..., float]) -> float:
    right, guessed, actual = _counts(function, predictions, targets)
    rows = [row for row in zip(right, guessed, actual, strict=True) if row[1] or row[2]]
    pooled = score(sum(right), sum(guessed), sum(actual))
    return _averaged(function, average, [score(*row) for row in rows], [row[2] for row in rows], pooled)


def precision(predictions: Any, targets: Any, *, average: str = "macro") -> float:
    """Of the predictions of a class, the fraction that is right (0 if there are none), averaged over the classes.

    `average` is "macro" (over classes), "weighted" (by how often each occurs) or "micro" (all counts pooled). Takes
    what `accuracy` takes. Only classes that occur in the predictions or the targets count.
    """
    return _score("precision", predictions, targets, average, lambda right, guessed, actual: _ratio(right, guessed))


def recall(predictions: Any, targets: Any, *, average: str = "macro") -> float:
    """Of the occurrences of a class, the fraction that is predicted, averaged as in `precision`."""
    return _score("recall", predictions, targets, average, lambda right, guessed, actual: _ratio(right, actual))


def f1(predictions: Any, targets: Any, *, average: str = "macro") -> float:
    """The harmonic mean of the two, 2 * right / (predictions + occurrences), averaged as in `precision`."""
    return _score(
        "f1", predictions, targets, average, lambda right, guessed, actual: _ratio(2 * right, guessed + actual)
    )
