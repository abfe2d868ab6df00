"""The stateless functions agree with PyTorch's, in value and gradient, and say what they do not take."""

from __future__ import annotations

import numpy as np
import pytest
from reference_values import case, cases, check, close

from kaun import fn, nx
from kaun.gradients import grad, gradcheck


@pytest.mark.parametrize("name", cases("activation/"))
def test_activations_agree_with_pytorch(name):
    values = case(name)
    function = getattr(fn, name.rpartition("/")[2], None)
    if name.endswith("gelu_tanh"):
        function = lambda x: fn.gelu(x, approximate="tanh")  # noqa: E731
    # The gradient of softmax is a difference of nearly equal numbers.
    check(name, function, tuple(key for key in values if key in ("x", "alpha")), 1e-4 if "softmax" in name else 2e-5)


# The slopes far to the left and far to the right.
TAILS = {
    "relu": (0, 1), "elu": (0, 1), "softplus": (0, 1), "sigmoid": (0, 0), "silu": (0, 1), "gelu": (0, 1),
    "log_sigmoid": (1, 0), "mish": (0, 1), "celu": (0, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", list(TAILS))
def test_activations_keep_nan_and_have_finite_gradients_far_out(name):
    function = getattr(fn, name)
    assert np.isnan(function(nx.asarray(np.float32("nan"))).numpy())
    far = nx.asarray(np.asarray([-1e4, -200, 200, 1e4], np.float32))
    slopes = grad(lambda x: nx.sum(function(x)))(far).numpy()
    np.testing.assert_allclose(slopes, np.repeat(TAILS[name], 2), atol=1e-6)


def test_the_gradient_at_the_kink_is_the_documented_one():
    def slope(function):
        return float(grad(lambda x: function(x))(nx.asarray(np.float32(0.0))))

    assert slope(fn.relu) == 0.0 and slope(fn.relu6) == 0.0
    assert slope(fn.leaky_relu) == 1.0 and slope(fn.softplus) == 0.5 and slope(fn.sigmoid) == 0.25


@pytest.mark.parametrize("name", cases("conv2d/"))
def test_conv2d_agrees_with_pytorch(name):
    values = case(name)
    stride, dilation, padding = (tuple(map(int, values[key])) for key in ("stride", "dilation", "padding"))
    groups = int(values["groups"])

    def convolve(x, weight, bias):
        return fn.conv2d(x, weight, bias, stride=stride, dilation=dilation, padding=padding, groups=groups)

    check(name, convolve, ("x", "weight", "bias"))


def test_conv1d_agrees_with_pytorch():
    check("conv1d/0", lambda x, w, b: fn.conv1d(x, w, b, stride=2, dilation=2, padding=3), ("x", "weight", "bias"))
    check("conv1d/causal", lambda x, w, b: fn.conv1d(x, w, b, dilation=2, padding="causal"), ("x", "weight", "bias"))


@pytest.mark.parametrize("extent, stride, kernel, dilation", [(7, 2, 3, 1), (8, 2, 3, 1), (8, 3, 2, 2), (5, 1, 4, 1)])
def test_same_padding_gives_ceil_places_and_puts_the_odd_zero_last(extent, stride, kernel, dilation):
    x, weight = np.arange(1, extent + 1, dtype=np.float32), np.ones((1, 1, kernel), np.float32)
    y = fn.conv1d(
        nx.asarray(x[None, None]), nx.asarray(weight), stride=stride, dilation=dilation, padding="same"
    ).numpy()[0, 0]
    places = -(-extent // stride)
    total = max(0, (places - 1) * stride + (kernel - 1) * dilation + 1 - extent)
    padded = np.pad(x, (total // 2, total - total // 2))
    expected = [padded[i * stride : i * stride + (kernel - 1) * dilation + 1 : dilation].sum() for i in range(places)]
    np.testing.assert_allclose(y, expected)


@pytest.mark.parametrize("name", cases("max_pool2d/") + cases("avg_pool2d/"))
def test_pools_agree_with_pytorch(name):
    values = case(name)
    size, stride, padding = (tuple(map(int, values[key])) for key in ("kernel_size", "stride", "padding"))
    options = {"kernel_size": size, "stride": stride, "padding": padding, "ceil_mode": bool(values["ceil"])}
    if name.startswith("max"):
        check(name, lambda x: fn.max_pool2d(x, **options), ("x",))
    else:
        check(name, lambda x: fn.avg_pool2d(x, **options, count_include_pad=name.endswith("True")), ("x",))


def test_pools_of_signals_agree_with_pytorch():
    check("max_pool1d/0", lambda x: fn.max_pool1d(x, kernel_size=3, stride=2, padding=1), ("x",))
    check("avg_pool1d/0", lambda x: fn.avg_pool1d(x, kernel_size=3, stride=2, padding=1), ("x",))


@pytest.mark.parametrize("size", [(2, 2), (4, 3)])
def test_max_pool_keeps_nan_and_sends_the_gradient_to_the_first_maximum(size):
    x = np.zeros((1, 1, *size), np.float32)
    gradient = grad(lambda x: nx.sum(fn.max_pool2d(x, kernel_size=size)))(nx.asarray(x)).numpy()
    expected = np.zeros_like(x)
    expected[0, 0, 0, 0] = 1
    np.testing.assert_array_equal(gradient, expected)
    for position in ((0, 0), (1, 1), (size[0] - 1, size[1] - 1)):
        broken = x.copy()
        broken[0, 0][position] = np.nan
        assert np.isnan(fn.max_pool2d(nx.asarray(broken), kernel_size=size).numpy()).all()


def test_normalizations_agree_with_pytorch():
    check("layer_norm/0", lambda x, gamma, beta: fn.layer_norm(x, gamma=gamma, beta=beta), ("x", "gamma", "beta"))
    check("rms_norm/0", lambda x, scale: fn.rms_norm(x, scale=scale), ("x", "scale"))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_batch_norm_agrees_with_pytorch_on_data_far_from_zero(number):
    # The data has mean 50 and deviation 2: float32 inputs leave five digits of the deviation.
    check(
        f"batch_norm/{number}", lambda x, scale, bias: fn.batch_norm(x, scale=scale, bias=bias), ("x", "scale", "bias"),
        rtol=1e-4,
    )  # fmt: skip


def test_batch_norm_with_given_statistics_agrees_with_pytorch():
    def normalize(x, scale, bias, mean, variance):
        return fn.batch_norm(x, scale=scale, bias=bias, mean=mean, variance=variance)

    check("batch_norm/running", normalize, ("x", "scale", "bias", "mean", "variance"))


def test_batch_statistics_do_not_cancel():
    x = (np.random.default_rng(0).normal(size=(64, 3)) * 0.01 + 1000).astype(np.float32)
    mean, variance = fn.batch_statistics(nx.asarray(x))
    np.testing.assert_allclose(mean.numpy(), x.astype(np.float64).mean(0), rtol=1e-6)
    np.testing.assert_allclose(variance.numpy(), x.astype(np.float64).var(0), rtol=1e-4)


def test_norms_and_pools_pass_gradcheck():
    random = np.random.default_rng(1)
    gradcheck(lambda x: fn.batch_norm(x, scale=nx.ones((2,)), bias=nx.zeros((2,))), random.normal(size=(5, 2)))
    gradcheck(lambda x: fn.layer_norm(x), random.normal(size=(3, 4)))
    gradcheck(lambda x: fn.max_pool2d(x, kernel_size=3, stride=2), random.normal(size=(1, 1, 5, 5)))


def test_narrow_floats_are_normalized_in_float32():
    x = (np.arange(512, dtype=np.float32) % 7 + 100).reshape(2, 256)
    narrow = nx.astype(nx.asarray(x), nx.bfloat16)
    y = fn.layer_norm(narrow)
    assert y.dtype is nx.bfloat16
    wide = fn.layer_norm(nx.astype(narrow, nx.float32)).numpy()
    np.testing.assert_allclose(nx.astype(y, nx.float32).numpy(), wide, rtol=2**-8, atol=1e-6)


def test_dropout_keeps_the_mean_and_zeroes_the_given_fraction():
    with nx.rng.run(seed=3):
        y = fn.dropout(nx.ones((100_000,)), rate=0.25).numpy()
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    assert abs((y == 0).mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / y.size)
    assert fn.dropout(nx.ones((3,)), rate=0.0).numpy().tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="scope"):
        fn.dropout(nx.ones((3,)), rate=0.5)


def test_embedding_agrees_with_pytorch():
    check("embedding/0", lambda i, w: fn.embedding(i, w, scale=False), ("i", "w"))


def test_embedding_reads_rows_and_adds_their_gradients():
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    indices = np.asarray([[1, 3], [1, 0]])
    y = fn.embedding(nx.asarray(indices), nx.asarray(table), scale=False)
    np.testing.assert_array_equal(y.numpy(), table[indices])
    gradient = grad(lambda t: nx.sum(fn.embedding(nx.asarray(indices), t)))(nx.asarray(table))
    close(gradient, np.asarray([1, 2, 0, 1])[:, None] * np.full((1, 3), 3**0.5), 1e-6)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: fn.linear(nx.ones((2, 3)), nx.ones((4, 5))), r"got x float32\[2, 3\] and weight float32\[4, 5\]"),
        (lambda: fn.linear(nx.ones((2, 4)), nx.ones((4, 5)), nx.ones((4,))), r"got bias float32\[4\], expected"),
        (lambda: fn.conv2d(nx.ones((1, 3, 5, 5)), nx.ones((4, 2, 3, 3))), "fn.conv2d: .*2 input channels"),
        (lambda: fn.conv2d(nx.ones((1, 2, 5, 5)), nx.ones((4, 2, 3))), r"weight float32\[4, 2, 3\], expected 4 axes"),
        (lambda: fn.conv1d(nx.ones((1, 2, 5)), nx.ones((4, 2, 3)), nx.ones((3,))), r"bias .*, expected shape \[4\]"),
        (lambda: fn.conv2d(nx.ones((1, 2, 8, 8)), nx.ones((4, 2, 3, 3)), padding=(1, 2, 3)), "2 ints or pairs"),
        (lambda: fn.embedding(nx.asarray([1]), nx.ones((4,))), r"embedding float32\[4\], expected \(V, D\)"),
        (lambda: fn.layer_norm(nx.ones((2, 3)), axes=(0, -2)), "expected distinct axes"),
        (lambda: fn.batch_statistics(nx.ones((3,))), r"expected \(N, C\) or"),
        (
            lambda: fn.batch_norm(nx.ones((2, 3)), scale=nx.ones((3,)), bias=nx.ones((3,)), mean=nx.ones((3,))),
            "expected both or neither",
        ),
        (lambda: fn.conv2d(nx.ones((1, 2, 2, 2)), nx.ones((4, 2, 3, 3))), "smaller than the window"),
        (lambda: fn.conv2d(nx.ones((1, 2, 8, 8)), nx.ones((4, 2, 3, 3)), padding="causal"), "'same', 'valid'"),
        (lambda: fn.conv2d(nx.ones((1, 2, 8, 8)), nx.ones((4, 2, 3, 3)), stride=0), "stride=0"),
        (lambda: fn.max_pool2d(nx.ones((1, 2, 8)), kernel_size=2), r"expected \(N, C, H, W\)"),
        (lambda: fn.max_pool2d(nx.ones((1, 2, 2, 2)), kernel_size=3), "smaller than the window"),
        (lambda: fn.layer_norm(nx.ones((2, 3)), gamma=nx.ones((4,))), r"gamma of shape \[3\]"),
        (lambda: fn.batch_norm(nx.ones((2, 3)), scale=nx.ones((4,)), bias=nx.ones((3,))), r"scale of shape \[3\]"),
        (lambda: fn.batch_statistics(nx.ones((0, 3))), "at least one example"),
        (lambda: fn.dropout(nx.ones((2,)), rate=1.0), "0 <= rate < 1"),
        (lambda: fn.gelu(nx.ones((2,)), approximate="fast"), "'none' or 'tanh'"),
        (lambda: fn.glu(nx.ones((2, 3))), "even extent"),
    ],
)
def test_bad_values_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: fn.embedding(nx.ones((2,)), nx.ones((4, 5))),
        lambda: fn.linear(nx.asarray([[1, 2]]), nx.ones((2, 5))),
        lambda: fn.conv2d(nx.ones((1, 2, 8, 8), dtype=nx.float64), nx.ones((4, 2, 3, 3))),
        lambda: fn.dropout(nx.asarray([1, 2]), rate=0.5),
        lambda: fn.relu(nx.asarray([1, 2])),
        lambda: fn.layer_norm(nx.asarray([1, 2])),
        lambda: fn.conv2d(nx.ones((1, 2, 8, 8)), nx.ones((4, 2, 3, 3)), stride=1.5),
        lambda: fn.conv2d(nx.ones((1, 2, 8, 8)), nx.ones((4, 2, 3, 3)), stride=(1, 1.5)),
        lambda: fn.max_pool2d(nx.zeros((1, 1, 4, 4), dtype=nx.int32), kernel_size=2),
    ],
)
def test_bad_dtypes_are_named(call):
    with pytest.raises(TypeError, match="expected"):
        call()
