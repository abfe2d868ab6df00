"""Joining many arrays works whatever their number, and gives what NumPy gives."""

import numpy as np
import pytest

from kaun import nx


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("count", [2, 4, 5, 33, 500])
def test_concat_of_many_parts_with_empty_ones_between(count, axis):
    shapes = [(i % 3, 4) if axis == 0 else (4, i % 3) for i in range(count)]
    parts = [np.full(shape, i, np.float32) for i, shape in enumerate(shapes)]
    joined = nx.concat([nx.asarray(part) for part in parts], axis=axis)
    np.testing.assert_array_equal(joined.numpy(), np.concatenate(parts, axis=axis))


def test_stack_of_many_samples_goes_on_into_other_operations():
    samples = [np.arange(17, dtype=np.float32) + i for i in range(100)]
    stacked = nx.stack([nx.asarray(sample) for sample in samples])
    centred = stacked - nx.mean(stacked, axis=0)
    expected = np.stack(samples) - np.stack(samples).mean(axis=0)
    np.testing.assert_allclose(centred.numpy(), expected, rtol=1e-5, atol=1e-4)
