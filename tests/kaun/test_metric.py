"""Metrics agree with values worked out by hand, recorded from scikit-learn, and live where it is installed."""

from __future__ import annotations

import numpy as np
import pytest
from reference_values import case

from kaun import metric, nx

TRUE = np.asarray([0, 1, 2, 2, 1, 0, 2, 2])
GUESSED = np.asarray([0, 2, 2, 1, 1, 0, 0, 2])


def scores(classes, count):
    return np.random.default_rng(0).uniform(size=(len(classes), count)) + 2 * np.eye(count)[classes]


def test_accuracy_takes_scores_or_classes_and_classes_or_one_hot():
    for predictions in (GUESSED, scores(GUESSED, 3), nx.asarray(scores(GUESSED, 3))):
        assert metric.accuracy(predictions, TRUE) == 5 / 8
    assert metric.accuracy(scores(GUESSED, 3), np.eye(3)[TRUE]) == 5 / 8


def test_binary_accuracy_compares_with_the_threshold():
    assert metric.binary_accuracy(np.asarray([0.2, 0.6, 0.4, 0.9]), np.asarray([0, 1, 1, 0])) == 0.5
    assert metric.binary_accuracy(np.asarray([0.2, 0.6, 0.4, 0.9]), np.asarray([0, 1, 1, 0]), threshold=0.3) == 0.75


@pytest.mark.parametrize("number", [0, 1, 2])
def test_metrics_agree_with_scikit_learn(number):
    values = case(f"metric/{number}")
    true, guessed = values["true"], values["guessed"]
    count = int(max(true.max(), guessed.max())) + 3  # classes that never occur do not count
    for predictions in (guessed, scores(guessed, count)):
        assert metric.accuracy(predictions, true) == pytest.approx(float(values["accuracy"]), rel=1e-6)
        for name in ("precision", "recall", "f1"):
            for average in ("macro", "micro", "weighted"):
                got = getattr(metric, name)(predictions, true, average=average)
                assert got == pytest.approx(float(values[f"{name}/{average}"]), rel=1e-6), (name, average)


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
@pytest.mark.parametrize("name", ["precision", "recall", "f1"])
def test_metrics_agree_with_the_scikit_learn_that_is_installed(name, average):
    sklearn = pytest.importorskip("sklearn.metrics")
    oracle = getattr(sklearn, f"{name}_score")
    random = np.random.default_rng(1)
    for true, guessed, count in ((TRUE, GUESSED, 3), (random.integers(0, 9, 40), random.integers(0, 7, 40), 12)):
        expected = oracle(true, guessed, average=average, zero_division=0.0)
        got = getattr(metric, name)(scores(guessed, count), true, average=average)
        assert got == pytest.approx(expected, rel=1e-6)


def test_precision_recall_and_f1_by_hand():
    # Of class 0, two of three predictions are right and both occurrences found; 1: 1/2 and 1/2; 2: 2/3 and 2/4.
    assert metric.precision(GUESSED, TRUE) == pytest.approx((2 / 3 + 1 / 2 + 2 / 3) / 3)
    assert metric.recall(GUESSED, TRUE) == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert metric.f1(GUESSED, TRUE, average="micro") == pytest.approx(5 / 8)


def test_a_tracker_keeps_means_by_name():
    tracker = metric.tracker()
    for value in (1.0, nx.asarray(np.float32(2.0)), 6):
        tracker.observe("loss", value)
    tracker.observe("accuracy", 0.5)
    assert tracker.mean("loss") == 3.0 and tracker.count("loss") == 3 and tracker.count("other") == 0
    assert tracker.summary() == "accuracy 0.5000  loss 3.0000"
    with pytest.raises(KeyError, match=r"nothing observed under 'recall'"):
        tracker.mean("recall")
    tracker.reset()
    assert tracker.count("loss") == 0


def test_eval_is_the_mean_over_the_data():
    assert metric.eval(lambda x: x, [1.0, 2.0, 6.0]) == 3.0
    assert metric.eval_many(lambda x: {"a": x, "b": 2 * x}, [1.0, 3.0]) == {"a": 2.0, "b": 4.0}
    with pytest.raises(ValueError, match=r"metric.eval: got no data"):
        metric.eval(lambda x: x, [])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: metric.accuracy(np.zeros((4, 3)), np.zeros(3, int)), r"float64\[4, 3\] and targets int64\[3\]"),
        (lambda: metric.accuracy(np.zeros((0, 3)), np.zeros(0, int)), "at least one"),
        (lambda: metric.f1(GUESSED, TRUE, average="mean"), "average='mean'"),
        (lambda: metric.accuracy(np.zeros((3, 0)), np.zeros(3, int)), r"float64\[3, 0\], expected scores \(..., C\)"),
        (lambda: metric.recall(scores(TRUE, 3), TRUE + 1), r"outside \[0, 3\)"),
        (lambda: metric.binary_accuracy(np.zeros(2), np.zeros(3)), "equal shapes"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
