"""Data sets: real data to train on, as tensors, already split into a training and a test set."""

from kaun.datasets.cifar import cifar10
from kaun.datasets.download import DownloadError
from kaun.datasets.idx import mnist
from kaun.datasets.labelled_images import LabelledImages
from kaun.datasets.uci_digits import Digits, digits

__all__ = ["Digits", "DownloadError", "LabelledImages", "cifar10", "digits", "mnist"]
