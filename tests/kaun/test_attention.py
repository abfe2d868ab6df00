"""Attention agrees with PyTorch's in value and gradient, hides what it should, and says what it does not take."""

from __future__ import annotations

import numpy as np
import pytest
from kaun.compiler.ir import topological
from reference_values import case, check, close

from kaun import attention, fn, layer, nx
from kaun.context import Context
from kaun.gradients import grad, gradcheck

RANDOM = np.random.default_rng(0)


def normal(*shape):
    return nx.asarray(RANDOM.normal(size=shape).astype(np.float32))


def test_rope_agrees_with_the_rotation_of_hugging_face():
    check("attention/rope", lambda x: fn.rope(x, theta=100.0), ("x",))


def test_rope_takes_positions_along_any_axis_but_the_last():
    x = normal(2, 5, 3, 6)
    moved = fn.rope(nx.permute_dims(x, (0, 2, 1, 3)))
    np.testing.assert_array_equal(
        nx.permute_dims(moved, (0, 2, 1, 3)).numpy(), attention.rope(x, seq_dim=1).numpy()
    )


def test_rope_makes_products_depend_on_distances_only_even_far_out():
    q, k = normal(8), normal(8)
    rotated_q, rotated_k = (fn.rope(nx.broadcast_to(x, (5000, 8))).numpy() for x in (q, k))
    near, far = rotated_q[3] @ rotated_k[1], rotated_q[4999] @ rotated_k[4997]
    assert near == pytest.approx(far, abs=1e-5)


OPTIONS = {
    "plain": {}, "scale": {"scale": 0.7}, "causal": {"is_causal": True}, "mask": {}, "bias": {},
    "grouped": {"is_causal": True},
}  # fmt: skip


@pytest.mark.parametrize("name", list(OPTIONS))
def test_dot_product_attention_agrees_with_pytorch(name):
    inputs = tuple(key for key in ("q", "k", "v", "mask") if key in case(f"attention/{name}"))

    def attend(q, k, v, mask=None):
        return fn.dot_product_attention(q, k, v, mask=mask, **OPTIONS[name])

    check(f"attention/{name}", attend, inputs, rtol=5e-5)


def test_grouped_heads_are_repeated_heads_without_repeating_them():
    q, k, v = normal(2, 6, 5, 4), normal(2, 3, 7, 4), normal(2, 3, 7, 4)
    repeated = fn.dot_product_attention(q, nx.repeat(k, 2, axis=1), nx.repeat(v, 2, axis=1))
    grouped = fn.dot_product_attention(q, k, v)
    close(grouped, repeated.numpy(), 1e-5)
    sizes = [n.size for n in topological([fn.dot_product_attention(q, k, v)._node]) if n.op.name == "broadcast"]
    assert 2 * 6 * 7 * 4 not in sizes


def test_a_query_that_sees_no_key_gives_zero_and_no_gradient_is_nan():
    q, k, v = normal(1, 2, 3, 4), normal(1, 2, 5, 4), normal(1, 2, 5, 4)
    mask = np.ones((3, 5), bool)
    mask[1] = False
    y = fn.dot_product_attention(q, k, v, mask=nx.asarray(mask)).numpy()
    assert (y[:, :, 1] == 0).all() and (y[:, :, 0] != 0).all()
    attend = lambda q, k, v: nx.sum(fn.dot_product_attention(q, k, v, mask=nx.asarray(mask)))  # noqa: E731
    gradients = [g.numpy() for g in grad(attend, argnums=(0, 1, 2))(q, k, v)]
    assert all(np.isfinite(g).all() for g in gradients) and (gradients[0][:, :, 1] == 0).all()


def test_attention_without_heads_and_its_gradient():
    random = np.random.default_rng(3)
    inputs = [random.normal(size=shape) for shape in ((3, 2), (4, 2), (4, 2))]
    assert fn.dot_product_attention(*inputs).shape == (3, 2)
    gradcheck(lambda q, k, v: fn.dot_product_attention(q, k, v, is_causal=True), *inputs)


def test_dropout_drops_weights_with_keys_from_the_scope():
    q = k = nx.zeros((1, 1, 2, 4))
    v = nx.ones((1, 1, 2, 4))
    with nx.rng.run(seed=0):
        drawn = {float(fn.dropout(nx.ones(()), rate=0.5)) for _ in range(8)}
        rows = {float(fn.dot_product_attention(q, k, v, dropout=0.5)[0, 0, 0, 0]) for _ in range(16)}
    assert drawn == {0.0, 2.0} and rows == {0.0, 1.0, 2.0}


def test_the_layer_agrees_with_pytorch():
    model = attention.multi_head_attention(
        embed_dim=16, num_heads=4, num_kv_heads=2, is_causal=True, rope=True, rope_theta=500.0
    )
    names = ("q_proj", "k_proj", "v_proj", "out_proj")
    ctx = Context(attention_mask=case("attention/layer")["mask"])

    def attend(x, *weights):
        vars = layer.Vars(dict(zip(names, weights, strict=True)), (), nx.float32)
        return layer.apply(model, vars, x, training=False, ctx=ctx)[0]

    # Scores are products of 16 normal numbers, so the softmax is steep.
    check("attention/layer", attend, ("x", *names), rtol=2e-4)


def test_the_parameters_have_the_documented_shapes_and_dropout_acts_only_in_training():
    model = attention.multi_head_attention(embed_dim=12, num_heads=4, num_kv_heads=2, dropout=0.5)
    with nx.rng.run(seed=0):
        vars = layer.init(model)
        x = normal(2, 5, 12)
        trained = [layer.apply(model, vars, x, training=True)[0].numpy() for _ in range(2)]
    assert {name: leaf.shape for name, leaf in vars.params.items()} == {
        "q_proj": (12, 12), "k_proj": (12, 6), "v_proj": (12, 6), "out_proj": (12, 12),
    }  # fmt: skip
    assert not np.array_equal(*trained)
    layer.apply(model, vars, x, training=False)[0].numpy()  # outside of any scope


def test_padding_is_not_seen():
    model = attention.multi_head_attention(embed_dim=8, num_heads=2)
    with nx.rng.run(seed=0):
        vars = layer.init(model)
    x = RANDOM.normal(size=(2, 6, 8)).astype(np.float32)
    changed = x.copy()
    changed[1, 4:] += 1
    mask = np.ones((2, 6), bool)
    mask[1, 4:] = False
    for kind in (bool, np.int32, np.uint8):
        ctx = Context(attention_mask=mask.astype(kind))
        first, second = (layer.apply(model, vars, a, training=False, ctx=ctx)[0].numpy() for a in (x, changed))
        np.testing.assert_array_equal(first[0], second[0])
        np.testing.assert_array_equal(first[1, :4], second[1, :4])
    short, _ = layer.apply(model, vars, x[1:, :4], training=False)
    np.testing.assert_allclose(short.numpy()[0], first[1, :4], rtol=1e-4, atol=1e-5)


def attend(x=(2, 3, 8), mask=None, **options):
    model = attention.multi_head_attention(**{"embed_dim": 8, "num_heads": 2, **options})
    with nx.rng.run(seed=0):
        vars = layer.init(model)
    return layer.apply(model, vars, normal(*x), training=False, ctx=Context(attention_mask=mask) if mask else None)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: fn.rope(normal(4)), ValueError, r"fn.rope: got float32\[4\], expected \(..., T, D\)"),
        (lambda: fn.rope(normal(4, 3)), ValueError, "an even D"),
        (lambda: fn.rope(normal(4, 4), seq_dim=-1), ValueError, "seq_dim=-1"),
        (lambda: fn.rope(normal(4, 4), seq_dim=2), ValueError, "seq_dim=2"),
        (lambda: fn.rope(normal(4, 4), theta=0.0), ValueError, "theta=0.0"),
        (lambda: fn.rope(nx.asarray([[1, 2]])), TypeError, "expected floats"),
        (lambda: fn.dot_product_attention(normal(2, 4), normal(3, 5), normal(3, 5)), ValueError, r"\(..., G, S, D\)"),
        (lambda: fn.dot_product_attention(normal(3, 2, 4), normal(2, 3, 4), normal(2, 3, 4)), ValueError, "multiple"),
        (
            lambda: fn.dot_product_attention(normal(2, 4), normal(3, 4), normal(3, 4), mask=nx.ones((3, 3))),
            ValueError, r"broadcasts to \[2, 3\]",
        ),
        (
            lambda: fn.dot_product_attention(normal(2, 4), normal(3, 4), normal(3, 4), mask=nx.asarray([1, 0, 1])),
            TypeError, "expected bools or floats",
        ),
        (lambda: fn.dot_product_attention(nx.ones((2, 4), dtype=nx.float64), normal(3, 4), normal(3, 4)), TypeError,
         "floats of one dtype"),
        (lambda: attend(num_heads=3), ValueError, "num_heads=3, expected a divisor of embed_dim=8"),
        (lambda: attend(num_kv_heads=3), ValueError, "num_kv_heads=3, expected a divisor of num_heads=2"),
        (lambda: attend(num_heads=8, rope=True), ValueError, "head dimension of 1"),
        (lambda: attend(dropout=1.0), ValueError, "dropout=1.0"),
        (lambda: attend(num_heads=0), ValueError, "num_heads=0, expected a positive int"),
        (lambda: attend(x=(2, 3, 7)), ValueError, r"got x float32\[2, 3, 7\], expected \(B, T, 8\)"),
        (lambda: attend(mask=[[1, 1]]), ValueError, r"mask int64\[1, 2\] in the context, expected shape \[2, 3\]"),
        (lambda: attend(mask=[[1.0] * 3] * 2), TypeError, r"mask float32\[2, 3\] in the context"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
