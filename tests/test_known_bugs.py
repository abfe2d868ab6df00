"""Bugs that are known and not mended yet: each test keeps the promise in its name, and says why it fails today."""

import numpy as np
import pytest

from kaun import nx
from kaun.runtime.cache import default_cache


@pytest.mark.xfail(
    reason="Python numbers are constants of the kernel, so each new one is a new program",
    raises=AssertionError,
    strict=True,
)
def test_a_loop_whose_numbers_change_compiles_once():
    x = nx.asarray(np.arange(7, dtype=np.float32))
    before = default_cache().statistics
    for step in range(1, 30):
        (x * (0.5 / step) + 1.25 * step).numpy()
    assert default_cache().statistics.compiled - before.compiled <= 4
