"""Bugs that are known and not mended yet: each test keeps the promise in its name, and says why it fails today."""

import numpy as np
import pytest

from kaun import nx


@pytest.mark.xfail(
    reason="an axis joined from many parts is one index expression as deep as there are parts, which recurses",
    raises=RecursionError,
    strict=True,
)
@pytest.mark.parametrize("join", ["concat", "stack"])
def test_many_arrays_can_be_joined(join):
    parts = [np.full(5, i, np.float32) for i in range(500)]
    joined = getattr(nx, join)([nx.asarray(part) for part in parts])
    expected = np.concatenate(parts) if join == "concat" else np.stack(parts)
    np.testing.assert_array_equal(joined.numpy(), expected)
