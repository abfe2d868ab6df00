"""Numbers in eager expressions: new ones compile nothing, and mean what they mean as constants."""

import numpy as np
import pytest
from kaun.runtime.cache import default_cache

from kaun import nx


def compiled_since(before):
    return default_cache().statistics.compiled - before.compiled


def test_a_loop_whose_numbers_change_compiles_once():
    x = nx.asarray(np.arange(7, dtype=np.float32))
    (x + x).numpy()  # Starts the thread pool, which is compiled too.
    before = default_cache().statistics
    for step in range(1, 30):
        result = x * (0.7 / step) + 1.25 * step
        np.testing.assert_allclose(result.numpy(), np.arange(7) * (0.7 / step) + 1.25 * step, rtol=1e-6)
    assert compiled_since(before) <= 4


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.uint8])
def test_numbers_as_inputs_give_what_numbers_as_constants_give(dtype):
    values = np.arange(1, 12).astype(dtype)
    for number in (3, 5, 7, 11):
        x = nx.asarray(values)
        np.testing.assert_array_equal((x * number + number).numpy(), values * dtype(number) + dtype(number))
        np.testing.assert_array_equal(nx.where(x > number, number, x).numpy(), np.minimum(values, number))


def test_numbers_that_simplify_stay_constants():
    x = nx.asarray(np.asarray([1.5, -0.0, np.nan], np.float32))
    for number in (1.0, 0.0, 1.0):
        np.testing.assert_array_equal((x * number).numpy(), x.numpy() * np.float32(number))
