"""Random numbers: published bits, reproducibility, scopes, traced keys, and the distributions they promise."""

import concurrent.futures
import math
from statistics import NormalDist

import numpy as np
import pytest
from kaun.compiler.ir import substitute
from kaun.compiler.ir.meaning import threefry2x32 as vector_threefry

from kaun import execution, nx
from kaun.nx.inverse_error import from_tail

COUNT = 20_000


@pytest.mark.parametrize(
    "key, counter, words",
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_gives_the_published_words(key, counter, words):
    # Known-answer vectors of the Random123 library (kat_vectors, threefry2x32 with 20 rounds).
    assert nx.rng.threefry2x32(key, counter) == words
    as_arrays = [tuple(np.array([w], np.uint32) for w in pair) for pair in (key, counter)]
    assert tuple(int(w[0]) for w in vector_threefry(*as_arrays)) == words


def test_the_same_seed_gives_the_same_bits_for_ever():
    with nx.rng.run(seed=42):
        key = nx.rng.next_key()
        bits = nx.rng.bits((3,))
        unit = nx.rng.uniform((2,))
        whole = nx.rng.randint((4,), -5, 100)
        flags = nx.rng.bernoulli((6,), 0.5)
        order = nx.rng.permutation(6)
        normal = nx.rng.normal((2,))
    assert key.tolist() == [3732534457, 1332528664]
    assert bits.tolist() == [3028893107, 4181300570, 1423166544]
    assert unit.tolist() == [0.7265675067901611, 0.7179797887802124]
    assert whole.tolist() == [45, 68, 63, 26]
    assert flags.tolist() == [True, True, False, True, False, False]
    assert order.tolist() == [4, 1, 5, 3, 2, 0]
    np.testing.assert_allclose(normal.numpy(), [-0.05824114754796028, 0.6596338748931885], rtol=1e-6)


def test_bits_of_a_draw_are_threefry_of_the_key_and_the_draw_counter():
    key = nx.rng.key(2**40 + 7)
    words = [w for block in range(3) for w in nx.rng.threefry2x32((7, 2**8), (block, 2**32 - 1))]
    assert nx.rng.bits((5,), key=key).tolist() == words[:5]
    assert nx.rng.uniform((5,), key=key).tolist() == [(w >> 8) * 2.0**-24 for w in words[:5]]
    assert nx.rng.uniform((2,), dtype="float64", key=key).tolist() == [
        ((high << 32 | low) >> 11) * 2.0**-53 for low, high in (words[:2], words[2:4])
    ]
    assert nx.rng.randint((5,), 10, 17, key=key).tolist() == [10 + (w * 7 >> 32) for w in words[:5]]
    assert nx.rng.bernoulli((5,), 0.3, key=key).tolist() == [w < round(0.3 * 2**32) for w in words[:5]]


def test_scopes_nest_and_draws_follow_their_order():
    with nx.rng.run(seed=1):
        first = nx.rng.uniform((4,)).tolist()
        second = nx.rng.uniform((4,)).tolist()
    assert first != second
    with nx.rng.run(seed=1):
        assert nx.rng.uniform((4,)).tolist() == first
        with nx.rng.run(seed=2):
            other = nx.rng.uniform((4,)).tolist()
        assert nx.rng.uniform((4,)).tolist() == second
    assert other not in (first, second)
    assert not nx.rng.in_scope()


def test_a_traced_key_gives_the_same_bits_as_a_known_one():
    key = nx.rng.key(11)

    def draw():
        return [nx.rng.next_key(), nx.rng.uniform((3,)), nx.rng.normal((3,)), nx.rng.bernoulli((9,), 0.3)]

    with nx.rng.with_key(key):
        known = draw()
    with nx.rng.run(seed=11):
        seeded = draw()
    argument = nx.Tensor(execution.placeholder((2,), nx.uint32))
    with nx.rng.with_key(argument):
        traced = draw()
    assert all(map(nx.is_traced, traced))
    nodes = substitute([t._node for t in traced], {argument._node: key._node})
    for a, b, c in zip(known, seeded, map(nx.Tensor, nodes), strict=True):
        assert a.tolist() == b.tolist() == c.tolist()


def test_children_of_a_key_are_distinct_keys():
    key = nx.rng.key(3)
    children = [tuple(child.tolist()) for child in nx.rng.split(key, 50)]
    assert len(set(children)) == 50
    assert nx.rng.fold_in(key, 49).tolist() == list(children[49])
    with nx.rng.with_key(key):
        assert nx.rng.next_key().tolist() == list(children[0])


def test_threads_share_nothing_but_a_scope_they_are_given():
    def draw(seed):
        with nx.rng.run(seed=seed):
            return nx.rng.uniform((8,)).tolist()

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = list(pool.map(draw, [5, 6, 5, 6]))
        with nx.rng.run(seed=9):
            outside = pool.submit(nx.rng.in_scope).result()
    assert results == [draw(5), draw(6), draw(5), draw(6)]
    assert outside is False


def test_drawing_outside_of_a_scope_says_how_to_open_one():
    for name, draw in [("next_key", nx.rng.next_key), ("normal", lambda: nx.rng.normal((2,)))]:
        with pytest.raises(ValueError, match=rf"nx\.rng\.{name}: no random scope is active; .*nx\.rng\.run\(seed="):
            draw()


@pytest.mark.parametrize(
    "draw, error, message",
    [
        (lambda: nx.rng.uniform((-1,)), ValueError, r"nx\.rng\.uniform: negative extent"),
        (lambda: nx.rng.uniform((2,), dtype="int32"), TypeError, r"nx\.rng\.uniform: got dtype int32"),
        (lambda: nx.rng.bernoulli((2,), 1.5), ValueError, r"nx\.rng\.bernoulli: got probability 1.5"),
        (lambda: nx.rng.randint((2,), 5, 5), ValueError, r"nx\.rng\.randint: got the range \[5, 5\)"),
        (lambda: nx.rng.randint((2,), 0, 300, dtype="uint8"), ValueError, r"nx\.rng\.randint: .* uint8"),
        (lambda: nx.rng.normal((2,), mean=nx.zeros(3)), ValueError, r"nx\.rng\.normal: a parameter float32\[3\]"),
        (lambda: nx.rng.truncated_normal((2,), 1, 1), ValueError, r"nx\.rng\.truncated_normal: got bounds 1 and 1"),
        (lambda: nx.rng.bits((2,), key=nx.zeros(2)), TypeError, r"nx\.rng\.bits: got float32\[2\] as key"),
    ],
)
def test_bad_parameters_are_refused(draw, error, message):
    with nx.rng.run(), pytest.raises(error, match=message):
        draw()
    with pytest.raises(ValueError, match=r"nx\.rng\.run: got seed -1"), nx.rng.run(seed=-1):
        pass


def test_permutations_cannot_be_traced():
    with nx.rng.with_key(nx.Tensor(execution.placeholder((2,), nx.uint32))):
        with pytest.raises(ValueError, match=r"nx\.rng\.permutation: the key is being traced"):
            nx.rng.permutation(3)


# Distributions. Seeds are fixed, so these either always pass or show that the numbers changed.

PHI = np.vectorize(NormalDist().cdf)


def fits(values, distribution):
    """Kolmogorov and Smirnov's test at a level of 1 in 10,000: sqrt(n) times the greatest distance is below 2.23."""
    expected = distribution(np.sort(values.astype(np.float64)))
    places = np.arange(len(values) + 1) / len(values)
    distance = max((places[1:] - expected).max(), (expected - places[:-1]).max())
    return distance * math.sqrt(len(values)) < 2.23


def even(counts):
    """Pearson's test that counts come from equal probabilities, within five deviations of the statistic."""
    expected = counts.sum() / len(counts)
    freedom = len(counts) - 1
    return ((counts - expected) ** 2 / expected).sum() < freedom + 5 * math.sqrt(2 * freedom)


def test_continuous_numbers_have_the_promised_distribution():
    shape = (COUNT,)
    low, high = PHI([-2.0, 2.0])
    half = PHI(-0.5)
    with nx.rng.run(seed=2024):
        cases = [
            (nx.rng.uniform(shape), lambda v: v, 0.5, 12**-0.5),
            (nx.rng.uniform(shape, dtype="float64"), lambda v: v, 0.5, 12**-0.5),
            (nx.rng.uniform(shape, -2.0, 3.0), lambda v: (v + 2) / 5, 0.5, 5 * 12**-0.5),
            (nx.rng.normal(shape), PHI, 0, 1),
            (nx.rng.normal(shape, dtype="float64"), PHI, 0, 1),
            (nx.rng.normal(shape, 2.0, 0.5), lambda v: PHI((v - 2) / 0.5), 2, 0.5),
            (nx.rng.truncated_normal(shape), lambda v: (PHI(v) - low) / (high - low), 0, 0.87962566),
            (nx.rng.truncated_normal(shape, -0.5, math.inf), lambda v: (PHI(v) - half) / (1 - half), 0.50916, 0.69724),
        ]
    nx.realize(*(case[0] for case in cases))
    for number, (tensor, distribution, mean, deviation) in enumerate(cases):
        values = tensor.numpy().astype(np.float64)
        assert fits(values, distribution), number
        assert abs(values.mean() - mean) < 5 * deviation / math.sqrt(COUNT), number
        assert abs(values.std() / deviation - 1) < 0.03, number
    assert np.abs(cases[6][0].numpy()).max() <= 2 and cases[7][0].numpy().min() >= -0.5
    normal = cases[3][0].numpy()
    assert abs(np.corrcoef(normal[:-1], normal[1:])[0, 1]) < 0.03


def test_narrow_uniform_numbers_stay_below_one():
    with nx.rng.run(seed=1):
        for dtype, step in (("float16", 2.0**-11), ("bfloat16", 2.0**-8)):
            values = nx.rng.uniform((COUNT,), dtype=dtype).numpy().astype(np.float64)
            assert 0 <= values.min() and values.max() < 1
            np.testing.assert_array_equal(values % step, 0)
            assert abs(values.mean() + step / 2 - 0.5) < 0.02


def test_normal_tails_go_beyond_five_deviations():
    # The word of the least magnitude stands for a probability of 2**-33 (of 2**-65 in float64).
    for dtype, tail in ((nx.float32, 2.0**-33), (nx.float32, 0.5), (nx.float64, 2.0**-65)):
        size = nx.Tensor(from_tail(nx.full((), tail, dtype=dtype)._node)).item() * math.sqrt(2)
        np.testing.assert_allclose(size, -NormalDist().inv_cdf(tail), rtol=1e-6, atol=1e-7)


def test_discrete_numbers_have_the_promised_distribution():
    with nx.rng.run(seed=8):
        whole = nx.rng.randint((COUNT,), -3, 4)
        wide = nx.rng.randint((COUNT,), -(2**62), 2**62)
        small = nx.rng.randint((COUNT,), 0, 256, dtype="uint8")
        flags = nx.rng.bernoulli((COUNT,), 0.3)
        each = nx.rng.bernoulli((COUNT, 2), nx.asarray([0.1, 0.9]))
        certain = nx.rng.bernoulli((10,), 1.0), nx.rng.bernoulli((10,), 0.0)
        order = nx.rng.permutation(1000)
        places = [nx.rng.permutation(4).tolist().index(0) for _ in range(200)]
    assert even(np.bincount(whole.numpy() + 3))
    assert set(whole.tolist()) == set(range(-3, 4)) and small.dtype is nx.uint8
    assert even(np.bincount(small.numpy(), minlength=256))
    assert fits(wide.numpy() / 2.0**63 + 0.5, lambda v: v)
    assert abs(flags.numpy().mean() - 0.3) < 5 * math.sqrt(0.21 / COUNT)
    np.testing.assert_allclose(each.numpy().mean(axis=0), [0.1, 0.9], atol=0.02)
    assert all(certain[0].tolist()) and not any(certain[1].tolist())
    assert sorted(order.tolist()) == list(range(1000)) and order.tolist() != list(range(1000))
    assert even(np.bincount(places, minlength=4))
