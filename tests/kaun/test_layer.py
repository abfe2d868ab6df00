"""Layers make the parameters the documentation lists, compute what `fn` computes, and name themselves in errors."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from kaun.compiler.ir import topological

import kaun as kn
from kaun import fn, init, layer, nx, ptree
from kaun.context import Context


def made(model, dtype=nx.float32, seed=0):
    with nx.rng.run(seed=seed):
        return layer.init(model, dtype=dtype)


def shapes(tree):
    return {path: tuple(leaf.shape) for path, leaf in ptree.flatten_with_paths(tree)}


@pytest.mark.parametrize(
    "model, params, state",
    [
        (layer.linear(in_features=3, out_features=2), {"weight": (3, 2), "bias": (2,)}, {}),
        (layer.conv1d(in_channels=3, out_channels=2), {"weight": (2, 3, 3), "bias": (2,)}, {}),
        (
            layer.conv2d(in_channels=4, out_channels=6, kernel_size=(3, 1), groups=2),
            {"weight": (6, 2, 3, 1), "bias": (6,)},
            {},
        ),
        (layer.layer_norm(dim=5), {"gamma": (5,), "beta": (5,)}, {}),
        (layer.rms_norm(dim=5), {"scale": (5,)}, {}),
        (
            layer.batch_norm(num_features=4),
            {"scale": (4,), "bias": (4,)},
            {"running_mean": (4,), "running_var": (4,)},
        ),
        (layer.embedding(vocab_size=7, embed_dim=2), {"embedding": (7, 2)}, {}),
        (
            layer.sequential([layer.linear(in_features=3, out_features=2), layer.relu(), layer.layer_norm(dim=2)]),
            {"0.weight": (3, 2), "0.bias": (2,), "2.gamma": (2,), "2.beta": (2,)},
            {},
        ),
        (
            layer.compose(layer.embedding(vocab_size=7, embed_dim=2), layer.batch_norm(num_features=2)),
            {"left.embedding": (7, 2), "right.scale": (2,), "right.bias": (2,)},
            {"right.running_mean": (2,), "right.running_var": (2,)},
        ),
        (layer.residual(layer.linear(in_features=3, out_features=3)), {"weight": (3, 3), "bias": (3,)}, {}),
    ],
)
def test_parameters_have_the_documented_paths_and_shapes(model, params, state):
    vars = made(model)
    assert shapes(vars.params) == params
    assert shapes(vars.state) == state
    assert vars.dtype is nx.float32


def test_parameters_have_the_dtype_asked_for_and_running_statistics_at_least_float32():
    vars = made(layer.batch_norm(num_features=4), dtype=nx.bfloat16)
    assert {leaf.dtype for leaf in ptree.leaves(vars.params)} == {nx.bfloat16}
    assert {leaf.dtype for leaf in ptree.leaves(vars.state)} == {nx.float32}
    with pytest.raises(TypeError, match=r"layer.init: got dtype int32"):
        layer.init(layer.relu(), dtype=nx.int32)


def test_the_same_seed_gives_the_same_parameters_and_another_seed_others():
    model = layer.sequential([layer.linear(in_features=3, out_features=4), layer.linear(in_features=4, out_features=4)])
    first, again, other = made(model), made(model), made(model, seed=1)
    np.testing.assert_array_equal(first.params[0]["weight"].numpy(), again.params[0]["weight"].numpy())
    assert not np.array_equal(first.params[0]["weight"].numpy(), other.params[0]["weight"].numpy())


def test_apply_leaves_its_arguments_alone_and_returns_new_state():
    vars = made(layer.batch_norm(num_features=3, momentum=0.9))
    x = np.random.default_rng(0).normal(2.0, 3.0, (16, 3)).astype(np.float32)
    y, after = layer.apply(layer.batch_norm(num_features=3, momentum=0.9), vars, x, training=True)
    np.testing.assert_allclose(y.numpy().mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(y.numpy().std(0), 1, atol=1e-4)
    np.testing.assert_allclose(after.state["running_mean"].numpy(), 0.1 * x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(after.state["running_var"].numpy(), 0.9 + 0.1 * x.var(0), rtol=1e-5)
    assert after.params["scale"] is vars.params["scale"]
    np.testing.assert_array_equal(vars.state["running_mean"].numpy(), 0)
    model = layer.batch_norm(num_features=3)
    evaluated, same = layer.apply(model, after, x, training=False)
    expected = (x - after.state["running_mean"].numpy()) / np.sqrt(after.state["running_var"].numpy() + 1e-5)
    np.testing.assert_allclose(evaluated.numpy(), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(same.state["running_mean"].numpy(), after.state["running_mean"].numpy())


@pytest.mark.parametrize("shape, axes", [((6, 3), (0,)), ((6, 3, 4), (0, 2)), ((2, 3, 4, 5), (0, 2, 3))])
def test_batch_norm_takes_its_statistics_over_all_axes_but_the_features(shape, axes):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    model = layer.batch_norm(num_features=3, momentum=0.0)
    _, after = layer.apply(model, made(model), x, training=True)
    np.testing.assert_allclose(after.state["running_mean"].numpy(), x.mean(axes), atol=1e-6)
    np.testing.assert_allclose(after.state["running_var"].numpy(), x.var(axes), rtol=1e-5)


def test_dropout_acts_only_when_training_and_draws_anew_each_time():
    model = layer.dropout(rate=0.5)
    vars, x = made(model), np.ones((4, 50), np.float32)
    np.testing.assert_array_equal(layer.apply(model, vars, x, training=False)[0].numpy(), x)
    with nx.rng.run(seed=0):
        first, second = (layer.apply(model, vars, x, training=True)[0].numpy() for _ in range(2))
    assert set(np.unique(first)) == {0.0, 2.0} and not np.array_equal(first, second)
    with pytest.raises(ValueError, match=r"scope"):
        layer.apply(model, vars, x, training=True)


@pytest.mark.parametrize(
    "model, function",
    [
        (layer.relu(), fn.relu),
        (layer.gelu(), fn.gelu),
        (layer.gelu(approximate="tanh"), lambda x: fn.gelu(x, approximate="tanh")),
        (layer.silu(), fn.silu),
        (layer.tanh(), fn.tanh),
        (layer.sigmoid(), fn.sigmoid),
        (layer.softmax(), fn.softmax),
        (layer.leaky_relu(negative_slope=0.2), lambda x: fn.leaky_relu(x, negative_slope=0.2)),
        (layer.elu(), fn.elu),
        (layer.flatten(), lambda x: nx.reshape(x, (2, 16))),
        (layer.max_pool2d(kernel_size=2), lambda x: fn.max_pool2d(x, kernel_size=2)),
        (layer.avg_pool2d(kernel_size=(2, 1)), lambda x: fn.avg_pool2d(x, kernel_size=(2, 1))),
        (layer.sequential([]), lambda x: x),
    ],
)
def test_layers_without_parameters_are_their_functions(model, function):
    x = np.random.default_rng(0).normal(size=(2, 1, 4, 4)).astype(np.float32)
    vars = made(model)
    assert ptree.leaves(vars.params) == [] and ptree.leaves(vars.state) == []
    y, _ = layer.apply(model, vars, x, training=True)
    np.testing.assert_array_equal(y.numpy(), function(nx.asarray(x)).numpy())


def test_composites_compute_what_their_parts_compute():
    model = layer.compose(
        layer.embedding(vocab_size=5, embed_dim=3, scale=False),
        layer.residual(layer.sequential([layer.linear(in_features=3, out_features=3), layer.tanh()])),
    )
    vars = made(model)
    table, dense = vars.params["left"]["embedding"].numpy(), vars.params["right"][0]
    indices = np.asarray([[0, 4, 2], [1, 1, 3]])
    rows = table[indices]
    expected = rows + np.tanh(rows @ dense["weight"].numpy() + dense["bias"].numpy())
    y, _ = layer.apply(model, vars, indices, training=False)
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_indices_must_be_integers():
    model = deep(layer.embedding(vocab_size=4, embed_dim=2))
    with pytest.raises(TypeError, match=r"layer.embedding: got x float32\[2\], expected integers \(in layer right.1"):
        layer.apply(model, made(model), np.ones(2), training=False)


@pytest.mark.parametrize("padding, places", [("same", 5), ("valid", 3), ("causal", 5)])
def test_conv1d_and_rms_norm_are_their_functions(padding, places):
    x = np.random.default_rng(0).normal(size=(2, 3, 9)).astype(np.float32)
    model = layer.conv1d(in_channels=3, out_channels=4, kernel_size=3, stride=2, dilation=2, padding=padding)
    vars = made(model)
    y, _ = layer.apply(model, vars, x, training=False)
    assert y.shape == (2, 4, places)
    expected = fn.conv1d(nx.asarray(x), vars.params["weight"], stride=2, dilation=2, padding=padding)
    np.testing.assert_allclose(y.numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)
    norm = layer.rms_norm(dim=9)
    normed, _ = layer.apply(norm, made(norm), x, training=False)
    np.testing.assert_allclose(normed.numpy(), x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6), rtol=1e-5)


def test_floats_are_converted_to_the_dtype_of_the_variables():
    model = layer.linear(in_features=3, out_features=2)
    y, _ = layer.apply(model, made(model), np.ones((1, 3)), training=False)
    assert y.dtype is nx.float32
    y, _ = layer.apply(model, made(model, dtype=nx.bfloat16), [[1.0, 2.0, 3.0]], training=False)
    assert y.dtype is nx.bfloat16


def test_a_layer_of_your_own_is_two_functions_and_sees_the_context():
    def apply(params, state, x, *, dtype, training, ctx):
        return x * params["scale"] + ctx["offset"], state

    own = layer.Layer(lambda *, dtype: layer.Vars({"scale": nx.full((1,), 3.0, dtype=dtype)}, (), dtype), apply)
    model = layer.sequential([own, layer.relu()])
    ctx = Context(offset=np.float32(1)).set("offset", np.float32(-2))
    y, _ = layer.apply(model, made(model), np.asarray([[1.0, 0.0]]), training=False, ctx=ctx)
    np.testing.assert_array_equal(y.numpy(), [[1, 0]])
    assert len(ctx) == 1 and repr(ctx) == "Context(offset=float32[])"
    with pytest.raises(TypeError, match=r"context.Context: got the name '', expected a string that is not empty"):
        ctx.set("", 1.0)
    with pytest.raises(KeyError, match=r"no tensor named 'offset'; the names are \['mask'\]"):
        layer.apply(model, made(model), np.ones((1, 2)), training=False, ctx=Context(mask=np.float32(0)))


def test_nodes_carry_the_path_of_the_layer_that_made_them():
    model = layer.compose(layer.relu(), layer.sequential([layer.relu(), layer.linear(in_features=3, out_features=2)]))
    y, _ = layer.apply(model, made(model), np.ones((4, 3), np.float32) * 7, training=False)
    paths = {node.source.path for node in topological([y._node]) if node.op.name == "dot_general"}
    assert paths == {"right.1"}


def deep(inner):
    return layer.compose(layer.relu(), layer.sequential([layer.relu(), inner]))


@pytest.mark.parametrize(
    "inner, x, message",
    [
        (layer.linear(in_features=3, out_features=2), (4, 5), r"layer.linear: got x float32\[4, 5\], expected .*3\)"),
        (layer.conv2d(in_channels=3, out_channels=2), (4, 1, 5, 5), r"fn.conv2d: got x \[4, 1, 5, 5\] and weight"),
        (layer.batch_norm(num_features=3), (4, 5), "layer.batch_norm: got x .* expected extent 3 in axis 1"),
        (layer.layer_norm(dim=3), (4, 5), "layer.layer_norm: got x .* expected extent 3 in axis -1"),
        (layer.residual(layer.linear(in_features=5, out_features=2)), (4, 5), "layer.residual: got float32"),
        (layer.max_pool2d(kernel_size=2), (4, 5), "fn.max_pool2d: got x"),
        (layer.rms_norm(dim=3), (4, 5), "layer.rms_norm: got x .* expected extent 3 in axis -1"),
        (layer.batch_norm(num_features=3), (3,), "layer.batch_norm: got x .* expected 2, 3 or 4 axes"),
        (layer.flatten(), (), "layer.flatten: got x .* expected a batch axis"),
        (layer.conv1d(in_channels=3, out_channels=2), (4, 2, 5), r"fn.conv1d: got x \[4, 2, 5\] and weight"),
    ],
)
def test_shapes_that_do_not_fit_are_errors_that_name_shapes_and_path(inner, x, message):
    model = deep(inner)
    with pytest.raises(ValueError, match=message) as caught:
        layer.apply(model, made(model), np.ones(x, np.float32), training=False)
    assert "(in layer right.1" in str(caught.value)


def test_parameters_that_do_not_fit_are_errors_that_name_the_path():
    model = deep(layer.linear(in_features=3, out_features=2))
    vars, x = made(model), np.ones((1, 3))
    wrong = vars.with_params({"left": (), "right": [(), {"weight": nx.ones((2, 3)), "bias": nx.ones((2,))}]})
    with pytest.raises(ValueError, match=r"got `right.1.weight` of shape \[2, 3\], expected \[3, 2\]"):
        layer.apply(model, wrong, x, training=False)
    missing = vars.with_params({"left": (), "right": [(), {"weight": nx.ones((3, 2))}]})
    with pytest.raises(ValueError, match=r"no entry `right.1.bias`"):
        layer.apply(model, missing, x, training=False)
    short = vars.with_params({"left": (), "right": [()]})
    with pytest.raises(ValueError, match=r"layer.sequential: got parameters a tuple of 1, expected a tuple of 2"):
        layer.apply(model, short, x, training=False)
    with pytest.raises(ValueError, match=r"layer.compose: got parameters a tuple of 0"):
        layer.apply(model, vars.with_params(()), x, training=False)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: layer.linear(in_features=0, out_features=1), "in_features=0"),
        (lambda: layer.linear(in_features=1, out_features=2.5), "out_features=2.5"),
        (lambda: layer.conv2d(in_channels=3, out_channels=4, groups=2), "layer.conv2d: got groups=2"),
        (lambda: layer.conv2d(in_channels=3, out_channels=4, kernel_size=(3, 3, 3)), "kernel_size="),
        (lambda: layer.dropout(rate=1.0), "layer.dropout: got rate=1.0"),
        (lambda: layer.batch_norm(num_features=3, momentum=2), "momentum=2"),
        (lambda: layer.gelu(approximate="erf"), "approximate='erf'"),
    ],
)
def test_bad_arguments_are_errors_when_the_layer_is_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_constructor_in_place_of_a_layer_is_an_error():
    with pytest.raises(TypeError, match=r"got function at position 1, expected a Layer"):
        layer.sequential([layer.relu(), layer.relu])


def test_initialisers_of_a_layer_can_be_chosen():
    model = layer.linear(in_features=3, out_features=2, weight_init=init.ones, bias_init=init.constant(0.5))
    y, _ = layer.apply(model, made(model), np.ones((1, 3)), training=False)
    np.testing.assert_array_equal(y.numpy(), [[3.5, 3.5]])


# --- where nodes come from -------------------------------------------------------------------------------------------


def forward_lines(model, shape):
    """The source lines of what a model computes, by layer path."""
    with nx.rng.run(seed=0):
        variables = layer.init(model)
    compiled = kn.compile(
        lambda params, x: layer.apply(model, variables.with_params(params), x, training=False)[0],
        variables.params, kn.spec(shape),
    )  # fmt: skip
    nodes = compiled.functions["call"].graph.nodes
    return {(node.source.path, node.source.line) for node in nodes if node.inputs and node.source.file == __file__}


def line_here():
    return sys._getframe(1).f_lineno


def test_what_a_layer_of_the_library_computes_comes_from_the_line_that_made_it():
    first = line_here() + 2
    model = layer.sequential([
        layer.linear(in_features=3, out_features=4),
        layer.residual(layer.sequential([
            layer.tanh(),
            layer.layer_norm(dim=4),
        ])),
    ])  # fmt: skip
    found = forward_lines(model, (2, 3))
    assert {("0", first), ("1.0", first + 2), ("1.1", first + 3)} <= found
    assert ("1", first + 1) in found  # the sum of the residual


def test_what_one_s_own_layer_computes_comes_from_its_own_lines():
    def apply(params, state, x, *, dtype, training, ctx):
        return nx.exp(x), state  # this line

    own = layer.Layer(lambda *, dtype: layer.Vars((), (), dtype), apply)
    inside = line_here() - 3
    assert ("1", inside) in forward_lines(layer.sequential([layer.relu(), own]), (2,))


def test_the_line_of_a_layer_ends_with_it():
    inner = layer.tanh()
    made = line_here() - 1

    def apply(params, state, x, *, dtype, training, ctx):
        y, _ = layer.apply(inner, layer.Vars((), (), dtype), x, training=training)
        return nx.exp(y), state

    after = line_here() - 2
    own = layer.Layer(lambda *, dtype: layer.Vars((), (), dtype), apply)
    assert {("0", made), ("0", after)} <= forward_lines(layer.sequential([own]), (2,))
