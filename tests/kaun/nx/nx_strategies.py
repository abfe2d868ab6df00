"""Arrays, shapes and indices for the property tests of nx."""

import numpy as np
from hypothesis import strategies as st

EXTENTS = st.sampled_from([0, 1, 1, 2, 3, 5])


def shapes(min_dims=0, max_dims=3, extents=EXTENTS):
    return st.lists(extents, min_size=min_dims, max_size=max_dims).map(tuple)


@st.composite
def broadcastable(draw, count=2):
    """`count` shapes that broadcast to one."""
    full = draw(shapes())
    result = []
    for _ in range(count):
        start = draw(st.integers(0, len(full)))
        result.append(tuple(1 if draw(st.booleans()) else n for n in full[start:]))
    return result


def array(seed, shape, dtype=np.float32, low=-3.0, high=3.0):
    """Numbers of `dtype` that vary with the seed; whole ones for integers."""
    generator = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype == np.bool_:
        return generator.integers(0, 2, shape).astype(dtype)
    if dtype.kind in "iu":
        return generator.integers(0 if dtype.kind == "u" else int(low), int(high) + 1, shape).astype(dtype)
    return generator.uniform(low, high, shape).astype(dtype)


@st.composite
def basic_index(draw, shape):
    """An index of integers, slices of any step, None and an ellipsis."""
    items = []
    count = draw(st.integers(0, len(shape)))
    for extent in shape[:count]:
        if extent and draw(st.booleans()):
            items.append(draw(st.integers(-extent, extent - 1)))
        else:
            bound = st.none() | st.integers(-extent - 2, extent + 2)
            items.append(slice(draw(bound), draw(bound), draw(st.sampled_from([None, 1, 2, 3, -1, -2]))))
    if count == len(shape) or draw(st.booleans()):
        items.insert(draw(st.integers(0, len(items))) if count == len(shape) else len(items), Ellipsis)
    for _ in range(draw(st.integers(0, 2))):
        items.insert(draw(st.integers(0, len(items))), None)
    return tuple(items)
