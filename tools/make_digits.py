"""Makes `kaun/datasets/digits.npz` from scikit-learn's copy of the digits: `python -m kaun.tools.make_digits OUT`.

The images are written in the order of the split: the first 1,437 are for training, the last 360 for testing. Of the
images sorted by class every fifth or so is a test image, which gives each class its share; then both sets are shuffled,
with a fixed seed. The file keeps the order, so the split never depends on a random number generator again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

TEST_COUNT = 360


def split(labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """Indices of all images, training first, such that every class has its share of the last `TEST_COUNT`."""
    generator = np.random.default_rng(seed)
    # Sorting by class and taking evenly spaced places gives each class its share to within one image.
    by_class = np.argsort(labels, kind="stable")
    chosen = np.floor((np.arange(TEST_COUNT) + 0.5) * len(labels) / TEST_COUNT).astype(int)
    is_test = np.zeros(len(labels), bool)
    is_test[chosen] = True
    train, test = by_class[~is_test], by_class[is_test]
    return np.concatenate([generator.permutation(train), generator.permutation(test)])


def main() -> None:
    """Write the file named on the command line."""
    from sklearn.datasets import load_digits

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="the .npz file to write")
    out = parser.parse_args().out
    digits = load_digits()
    images, labels = digits.images.astype(np.uint8), digits.target.astype(np.uint8)
    order = split(labels)
    np.savez_compressed(out, images=images[order], labels=labels[order])
    print(f"{out}: {len(order)} images, {len(order) - TEST_COUNT} for training, {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
