"""Attention holds no scores: memory grows with the length, hidden keys cost nothing, and masks do what they say."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from kaun.compiler.codegen.kernels import saved_multiply_adds
from kaun.compiler.ir import dtypes
from kaun.compiler.schedule.dead_places import live_places
from kaun.compiler.schedule.expand import Illegal
from kaun.compiler.schedule.loop_ir import ChainKernel
from kaun.runtime import target as targets
from schedule_examples import trace

from kaun import attention, fn, layer, nx, value_and_grad
from kaun.context import Context
from kaun.execution import vector_target

RANDOM = np.random.default_rng(0)


def arrays(*shapes):
    return [RANDOM.normal(size=shape).astype(np.float32) for shape in shapes]


def with_gradients(attend):
    """Attention, and the gradients of its product with `g`."""

    def function(q, k, v, g):
        total, gradients = value_and_grad(lambda *qkv: nx.sum(attend(*qkv) * g), argnums=(0, 1, 2))(q, k, v)
        return total, *gradients

    return function


def compiled(attend, q=(2, 3, 40, 8), kv=None):
    """The compilation of attention with its gradients. Nothing is run."""
    return trace(with_gradients(attend), *arrays(q, kv or q, kv or q, q)).compilation


def chains_of(compilation):
    return [k.kernel for k in compilation.kernels if isinstance(k.kernel, ChainKernel)]


def dropped(q, k, v):
    with nx.rng.with_key(nx.rng.key(3)):
        return fn.dot_product_attention(q, k, v, dropout=0.25, is_causal=True)


ATTENTIONS = {
    "plain": fn.dot_product_attention,
    "causal": lambda q, k, v: fn.dot_product_attention(q, k, v, is_causal=True),
    "padded": lambda q, k, v: fn.dot_product_attention(q, k, v, mask=(v[:, :1, :, 0] > -1.0)[:, :, None, :]),
    "biased": lambda q, k, v: fn.dot_product_attention(q, k, v, mask=nx.arange(k.shape[-2]) * -0.1),
    "dropped": dropped,
}


@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("heads", [(8, 8), (8, 2)], ids=["heads", "grouped heads"])
def test_memory_is_linear_in_the_length_forward_and_backward(name, heads):
    def needed(length):
        shapes = [(1, count, length, 16) for count in heads]
        program = compiled(ATTENTIONS[name], *shapes).program
        return program.arena_bytes + program.scratch_bytes

    assert needed(8192) <= 1.2 * 4 * needed(2048)
    assert needed(8192) < 8192 * 8192


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_forward_is_one_kernel(name):
    (kernel,) = trace(ATTENTIONS[name], *arrays(*[(2, 3, 40, 8)] * 3)).compilation.kernels
    assert isinstance(kernel.kernel, ChainKernel)


def test_causal_attention_computes_only_what_is_seen_and_no_other_does():
    for name in ATTENTIONS:
        kernels = chains_of(compiled(ATTENTIONS[name]))
        causal = name in ("causal", "dropped")
        assert kernels and all(len(kernel.live) == causal for kernel in kernels), name


def test_grouped_heads_skip_what_their_own_rows_do_not_see():
    (kernel,) = chains_of(trace(ATTENTIONS["causal"], *arrays((2, 4, 70, 8), *[(2, 2, 70, 8)] * 2)).compilation)
    assert len(kernel.live) == 1
    q, k, v = arrays((2, 4, 70, 8), (2, 2, 70, 8), (2, 2, 70, 8))
    y = ATTENTIONS["causal"](*map(nx.asarray, (q, k, v))).numpy()
    repeated = [np.repeat(a, 2, axis=1) for a in (k, v)]
    np.testing.assert_allclose(y, reference(q, *repeated, np.tri(70, dtype=bool)), rtol=1e-4, atol=1e-5)


def test_what_is_skipped_counts_neither_as_work_nor_against_the_limit():
    (kernel,) = chains_of(trace(ATTENTIONS["causal"], *arrays(*[(2, 3, 40, 8)] * 3)).compilation)
    assert live_places(kernel) == np.tri(40).sum()
    assert saved_multiply_adds(kernel, vector_target(targets.host())) == 6 * (40 * 40 - np.tri(40).sum()) * (8 + 8)
    (grouped,) = chains_of(trace(ATTENTIONS["causal"], *arrays((2, 4, 70, 8), *[(2, 2, 70, 8)] * 2)).compilation)
    assert live_places(grouped) == 2 * np.tri(70).sum()
    (whole,) = chains_of(trace(ATTENTIONS["plain"], *arrays(*[(2, 3, 40, 8)] * 3)).compilation)
    assert live_places(whole) == 40 * 40 and saved_multiply_adds(whole, vector_target(targets.host())) == 0


def test_a_sliding_window_and_padding_known_beforehand_are_skipped_too():
    def windowed(q, k, v):
        rows, columns = nx.arange(q.shape[-2])[:, None], nx.arange(k.shape[-2])[None, :]
        scores = q @ nx.swapaxes(k, -1, -2)
        hidden = nx.full_like(scores, float(np.finfo(np.float32).min) / 2)
        return nx.softmax(nx.where(rows < columns + 20, scores, hidden), axis=-1) @ v

    q, k, v = arrays(*[(2, 90, 8)] * 3)
    (kernel,) = chains_of(trace(windowed, q, k, v).compilation)
    seen = np.arange(90)[:, None] < np.arange(90) + 20
    assert len(kernel.live) == 1 and live_places(kernel) == seen.sum()
    right = reference(q * np.sqrt(8), k, v, seen)
    np.testing.assert_allclose(windowed(*map(nx.asarray, (q, k, v))).numpy(), right, rtol=1e-4, atol=1e-5)


def test_nothing_is_skipped_where_a_row_may_see_nothing_or_the_mask_is_a_mild_number():
    def masked(number, most):
        def function(q, k, v):
            scores = q @ nx.swapaxes(k, -1, -2)
            seen = nx.arange(40)[None, :] < nx.arange(40)[:, None] + most
            return nx.softmax(nx.where(seen, scores, nx.full_like(scores, number)), axis=-1) @ v

        return function

    lowest = float(np.finfo(np.float32).min)
    for number, most, skipped in ((lowest / 2, 1, 1), (lowest / 2, 0, 0), (-30.0, 1, 0)):
        (kernel,) = chains_of(trace(masked(number, most), *arrays(*[(2, 40, 8)] * 3)).compilation)
        assert len(kernel.live) == skipped


def test_masks_one_after_the_other_weigh_what_the_first_one_hid():
    """Queries whose visible keys are all padding see the constant itself, which is no less than what is hidden."""
    q, k, v = arrays(*[(2, 4, 128, 16)] * 3)
    seen = np.arange(128) >= 3
    lowest = float(np.finfo(np.float32).min) / 2

    def attend(q, k, v):
        scores = q @ nx.swapaxes(k, -1, -2)
        scores = nx.where(nx.asarray(seen), scores, nx.full_like(scores, lowest))
        past = nx.arange(128)[None, :] <= nx.arange(128)[:, None]
        return nx.softmax(nx.where(past, scores, nx.full_like(scores, lowest)), axis=-1) @ v

    graph = trace(attend, q, k, v)
    assert not any(kernel.live for kernel in chains_of(graph.compilation))
    y = attend(*map(nx.asarray, (q, k, v))).numpy()
    # The first query sees padding alone: all keys weigh the same.
    np.testing.assert_allclose(y[:, :, 0], v.mean(axis=2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("low", [-np.inf, float(np.finfo(np.float32).min)])
def test_a_float_mask_with_a_causal_one_gives_every_row_what_it_gives_alone(low):
    """Queries that see no key give 0, wherever they lie in a block of rows, and so do their gradients."""
    q, k, v = arrays(*[(1, 2, 192, 16)] * 3)
    mask = np.zeros((1, 1, 1, 192), np.float32)
    mask[..., :100] = low

    def attend(q, k, v):
        return fn.dot_product_attention(q, k, v, mask=nx.asarray(mask), is_causal=True)

    y = attend(*map(nx.asarray, (q, k, v))).numpy()
    _, gradient = value_and_grad(lambda q: nx.sum(attend(q, nx.asarray(k), nx.asarray(v))))(nx.asarray(q))
    assert np.isfinite(y).all() and np.isfinite(gradient.numpy()).all()
    right = reference(q[:, :, 100:], k[:, :, 100:], v[:, :, 100:], np.tri(92, dtype=bool))
    np.testing.assert_allclose(y[:, :, 100:], right, rtol=1e-4, atol=1e-5)
    if low == -np.inf:
        assert not y[:, :, :100].any()


def test_hidden_keys_cannot_do_harm_even_if_they_are_not_numbers():
    q, k, v = arrays(*[(1, 2, 200, 16)] * 3)
    spoilt = [a.copy() for a in (k, v)]
    for a in spoilt:
        a[:, :, 150:] = np.nan
    attend = ATTENTIONS["causal"]
    # Whole tiles and blocks of rows are computed: what lies in them beside the diagonal is seen by the arithmetic.
    right = attend(*map(nx.asarray, (q, k, v))).numpy()
    seen = attend(*map(nx.asarray, (q, *spoilt))).numpy()
    np.testing.assert_array_equal(seen[:, :, :100], right[:, :, :100])
    assert np.isnan(seen[:, :, 150:]).all()


def reference(q, k, v, seen, bias=0.0):
    """Softmax attention in float64."""
    q, k, v = (a.astype(np.float64) for a in (q, k, v))
    scores = np.where(seen, q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1]) + bias, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


@pytest.mark.parametrize("rows, columns", [(1, 70), (70, 1), (129, 129), (200, 65), (65, 200)])
def test_rows_and_columns_of_any_length_agree_with_float64(rows, columns):
    q, k, v = arrays((2, rows, 8), (2, columns, 8), (2, columns, 24))
    past = np.arange(columns) <= np.arange(rows)[:, None]
    for causal, seen in ((False, np.ones((rows, columns), bool)), (True, past)):
        y = fn.dot_product_attention(*map(nx.asarray, (q, k, v)), is_causal=causal).numpy()
        np.testing.assert_allclose(y, reference(q, k, v, seen), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype, tolerance", [(dtypes.float64, 1e-12), (dtypes.bfloat16, 3e-2), (dtypes.float16, 4e-3)])
def test_other_types_are_computed_as_wide_as_they_promise(dtype, tolerance):
    q, k, v = arrays(*[(2, 2, 50, 8)] * 3)
    narrow = [nx.astype(nx.asarray(a), dtype) for a in (q, k, v)]
    y = fn.dot_product_attention(*narrow, is_causal=True)
    exact = reference(*(nx.astype(a, dtypes.float64).numpy() for a in narrow), np.tri(50, dtype=bool))
    assert y.dtype is dtype
    np.testing.assert_allclose(nx.astype(y, dtypes.float64).numpy(), exact, rtol=tolerance, atol=tolerance)


def test_dropped_weights_are_the_same_in_the_backward_pass():
    """With v the identity the result is the weights, and the gradient of their sum by v counts those that are kept."""
    q, k = arrays((1, 24, 8), (1, 24, 8))
    v = nx.asarray(np.eye(24, dtype=np.float32)[None])

    def attend(v):
        with nx.rng.with_key(nx.rng.key(7)):
            return fn.dot_product_attention(nx.asarray(q), nx.asarray(k), v, dropout=0.5)

    weights = attend(v).numpy()
    _, gradient = value_and_grad(lambda v: nx.sum(attend(v)))(v)
    assert 0.3 < (weights == 0).mean() < 0.7
    np.testing.assert_allclose(gradient.numpy()[0, :, 0], weights[0].sum(0), rtol=1e-5)


def test_a_transformer_layer_with_everything_is_made_of_chains():
    model = attention.multi_head_attention(
        embed_dim=32, num_heads=4, num_kv_heads=2, dropout=0.1, is_causal=True, rope=True
    )
    with nx.rng.run(seed=0):
        weights = layer.init(model)
    mask = np.ones((4, 30), bool)

    def step(params, x, mask):
        def objective(params, x):
            with nx.rng.with_key(nx.rng.key(5)):
                ctx = Context(attention_mask=mask)
                y, _ = layer.apply(model, weights.with_params(params), x, training=True, ctx=ctx)
            return nx.sum(y * y)

        return value_and_grad(objective, argnums=(0, 1))(params, x)

    compilation = trace(step, weights.params, *arrays((4, 30, 32)), mask).compilation
    assert len(chains_of(compilation)) >= 2
    largest = max(life.nbytes for life in compilation.lifetimes.values())
    assert largest < 4 * 4 * 30 * 30 * 4


def test_kernels_that_were_tried_and_refused_leave_nothing_behind() -> None:
    """An exception that is kept holds all that was there when it was raised: the state of a step, for one."""
    gc.collect()
    gc.disable()
    try:
        compilation = trace(with_gradients(ATTENTIONS["causal"]), *arrays(*[(2, 3, 40, 8)] * 4)).compilation
        assert compilation.kernels
        assert not [each for each in gc.get_objects() if isinstance(each, Illegal)]
    finally:
        gc.enable()
