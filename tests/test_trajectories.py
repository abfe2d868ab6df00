"""50 steps of training agree with an independent NumPy implementation of the same mathematics, written here.

The NumPy side works in float64 with gradients derived by hand; nothing of it comes from the library.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest

from kaun import layer, loss, nx, optim, ptree, train

STEPS = 50
CLASSES = 5


# --- the mathematics, by hand ----------------------------------------------------------------------------------------


def softmax_cross_entropy(logits, classes):
    """(loss, gradient by the logits)."""
    shifted = logits - logits.max(1, keepdims=True)
    p = np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)
    rows = np.arange(len(classes))
    gradient = p.copy()
    gradient[rows, classes] -= 1
    return -np.log(p[rows, classes]).mean(), gradient / len(classes)


class Linear:
    def __init__(self, params):
        self.params = params

    def forward(self, x):
        self.x = x
        return x @ self.params["weight"] + self.params["bias"]

    def backward(self, g):
        self.grads = {"weight": self.x.T @ g, "bias": g.sum(0)}
        return g @ self.params["weight"].T


class Convolution:
    """Stride s, zero padding (low, high) on both spatial axes."""

    def __init__(self, params, stride, low, high):
        self.params, self.stride, self.low, self.high = params, stride, low, high

    def patches(self):
        kh, kw = self.params["weight"].shape[2:]
        height, width = self.padded.shape[2:]
        for i, y in enumerate(range(0, height - kh + 1, self.stride)):
            for j, x in enumerate(range(0, width - kw + 1, self.stride)):
                yield i, j, (slice(None), slice(None), slice(y, y + kh), slice(x, x + kw))

    def forward(self, x):
        around = (self.low, self.high)
        self.padded = np.pad(x, ((0, 0), (0, 0), around, around))
        places = list(self.patches())
        rows, columns = places[-1][0] + 1, places[-1][1] + 1
        y = np.zeros((len(x), len(self.params["weight"]), rows, columns))
        for i, j, where in places:
            y[:, :, i, j] = np.einsum("nckl,ockl->no", self.padded[where], self.params["weight"])
        return y + self.params["bias"][:, None, None]

    def backward(self, g):
        weight = np.zeros_like(self.params["weight"])
        back = np.zeros_like(self.padded)
        for i, j, where in self.patches():
            weight += np.einsum("no,nckl->ockl", g[:, :, i, j], self.padded[where])
            back[where] += np.einsum("no,ockl->nckl", g[:, :, i, j], self.params["weight"])
        self.grads = {"weight": weight, "bias": g.sum((0, 2, 3))}
        return back[:, :, self.low : back.shape[2] - self.high, self.low : back.shape[3] - self.high]


class BatchNorm:
    def __init__(self, params, momentum, eps=1e-5):
        self.params, self.momentum, self.eps = params, momentum, eps
        self.mean, self.var = np.zeros_like(params["scale"]), np.ones_like(params["scale"])

    def forward(self, x):
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
        self.mean = self.momentum * self.mean + (1 - self.momentum) * mean
        self.var = self.momentum * self.var + (1 - self.momentum) * var
        self.inverse = 1 / np.sqrt(var + self.eps)
        self.normal = (x - mean[:, None, None]) * self.inverse[:, None, None]
        return self.normal * self.params["scale"][:, None, None] + self.params["bias"][:, None, None]

    def backward(self, g):
        self.grads = {"scale": (g * self.normal).sum((0, 2, 3)), "bias": g.sum((0, 2, 3))}
        g = g * self.params["scale"][:, None, None]
        mean = g.mean((0, 2, 3), keepdims=True)
        along = (g * self.normal).mean((0, 2, 3), keepdims=True)
        return (g - mean - self.normal * along) * self.inverse[:, None, None]


class Relu:
    params: ClassVar[dict] = {}
    grads: ClassVar[dict] = {}

    def forward(self, x):
        self.on = x > 0
        return x * self.on

    def backward(self, g):
        return g * self.on


class MaxPool2:
    params: ClassVar[dict] = {}
    grads: ClassVar[dict] = {}

    def forward(self, x):
        n, c, h, w = x.shape
        blocks = x.reshape(n, c, h // 2, 2, w // 2, 2).transpose(0, 1, 2, 4, 3, 5).reshape(n, c, h // 2, w // 2, 4)
        self.first, self.shape = blocks.argmax(-1), x.shape
        return blocks.max(-1)

    def backward(self, g):
        n, c, h, w = self.shape
        blocks = np.zeros((*g.shape, 4))
        np.put_along_axis(blocks, self.first[..., None], g[..., None], -1)
        return blocks.reshape(n, c, h // 2, w // 2, 2, 2).transpose(0, 1, 2, 4, 3, 5).reshape(n, c, h, w)


class Flatten:
    params: ClassVar[dict] = {}
    grads: ClassVar[dict] = {}

    def forward(self, x):
        self.shape = x.shape
        return x.reshape(len(x), -1)

    def backward(self, g):
        return g.reshape(self.shape)


class AdamW:
    def __init__(self, lr, b1=0.9, b2=0.999, eps=1e-8, decay=0.01):
        self.lr, self.b1, self.b2, self.eps, self.decay, self.t, self.moments = lr, b1, b2, eps, decay, 0, {}

    def update(self, key, p, g):
        m, v = self.moments.get(key, (0.0, 0.0))
        m, v = self.b1 * m + (1 - self.b1) * g, self.b2 * v + (1 - self.b2) * g * g
        self.moments[key] = m, v
        direction = (m / (1 - self.b1**self.t)) / (np.sqrt(v / (1 - self.b2**self.t)) + self.eps)
        return p - self.lr * (direction + self.decay * p)


class Momentum:
    def __init__(self, lr, momentum):
        self.lr, self.momentum, self.t, self.velocity = lr, momentum, 0, {}

    def update(self, key, p, g):
        v = self.velocity[key] = self.momentum * self.velocity.get(key, 0.0) + g
        return p - self.lr * v


def numpy_trajectory(layers, optimizer, batches):
    losses = []
    for x, classes in batches:
        x = x.astype(np.float64)
        for one in layers:
            x = one.forward(x)
        value, g = softmax_cross_entropy(x, classes)
        losses.append(value)
        for one in reversed(layers):
            g = one.backward(g)
        optimizer.t += 1
        for position, one in enumerate(layers):
            one.params = {
                name: optimizer.update((position, name), p, one.grads[name]) for name, p in one.params.items()
            }
    return losses


# --- the comparison --------------------------------------------------------------------------------------------------


def batches_of(shape, seed=0):
    random = np.random.default_rng(seed)
    for _ in range(STEPS):
        classes = random.integers(0, CLASSES, shape[0])
        x = random.normal(size=shape) + 0.5 * classes.reshape(-1, *(1,) * (len(shape) - 1))
        yield x.astype(np.float32), classes


def compiled_trajectory(model, optimizer, batches):
    """(losses, initial parameters, last state)."""
    trainer = train.make(model=model, optimizer=optimizer)
    with nx.rng.run(seed=1):
        st = train.init(trainer)
    start = ptree.map(lambda leaf: leaf.numpy().astype(np.float64), st.vars.params)
    losses = []
    st = train.fit(
        trainer, st, batches, loss=loss.cross_entropy_sparse, report=lambda step, loss, state: losses.append(loss)
    )
    return losses, start, st


def assert_agrees(losses, expected_losses, params, layers):
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-4)
    assert losses[-1] < losses[0]
    for position, one in enumerate(layers):
        for name, expected in one.params.items():
            got = params[position][name].numpy()
            # Relative to the size of the parameter as a whole, since single entries may pass through zero; and not to
            # that of a bias before a batch norm, whose gradient is zero.
            scale = max(np.abs(expected).max(), 1e-2)
            assert np.abs(got - expected).max() <= 1e-4 * scale, f"{position}.{name}"


@pytest.mark.parametrize("width", [32, 37])
def test_an_mlp_with_adamw_follows_the_numpy_trajectory(width):
    model = layer.sequential([
        layer.linear(in_features=20, out_features=width), layer.relu(),
        layer.linear(in_features=width, out_features=CLASSES),
    ])  # fmt: skip
    batches = list(batches_of((16, 20)))
    losses, start, st = compiled_trajectory(model, optim.adamw(lr=3e-3), batches)
    layers = [Linear(dict(start[0])), Relu(), Linear(dict(start[2]))]
    expected = numpy_trajectory(layers, AdamW(3e-3), batches)
    assert_agrees(losses, expected, st.vars.params, layers)


def test_a_cnn_with_batch_norm_and_momentum_follows_the_numpy_trajectory():
    model = layer.sequential([
        layer.conv2d(in_channels=2, out_channels=4), layer.batch_norm(num_features=4, momentum=0.9), layer.relu(),
        layer.max_pool2d(kernel_size=2),
        layer.conv2d(in_channels=4, out_channels=6, stride=2, padding="valid"), layer.relu(), layer.flatten(),
        layer.linear(in_features=6, out_features=CLASSES),
    ])  # fmt: skip
    batches = list(batches_of((8, 2, 8, 8)))
    losses, start, st = compiled_trajectory(model, optim.sgd(lr=0.02, momentum=0.9), batches)
    norm = BatchNorm(dict(start[1]), momentum=0.9)
    layers = [
        Convolution(dict(start[0]), 1, 1, 1), norm, Relu(), MaxPool2(), Convolution(dict(start[4]), 2, 0, 0), Relu(),
        Flatten(), Linear(dict(start[7])),
    ]  # fmt: skip
    expected = numpy_trajectory(layers, Momentum(0.02, 0.9), batches)
    assert_agrees(losses, expected, st.vars.params, layers)
    np.testing.assert_allclose(st.vars.state[1]["running_mean"].numpy(), norm.mean, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(st.vars.state[1]["running_var"].numpy(), norm.var, rtol=1e-4)
