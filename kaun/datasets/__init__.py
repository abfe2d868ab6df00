"""Data sets: real data to train on, as tensors, already split into a training and a test set."""

from kaun.datasets.uci_digits import Digits, digits

__all__ = ["Digits", "digits"]
