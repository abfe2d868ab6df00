"""The larger training steps and the single operations, in Kaun."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kaun.compiler.ir import source

import kaun as kn
from kaun import fn, nx
from kaun.nx import Tensor

Parameters = Mapping[str, Any]
_MOMENTUM = 0.99

# --- models: (settings, parameters, running statistics, x) -> (logits, running statistics) --------------------------


def _gpt(settings: Mapping[str, Any], p: Parameters, state: Parameters, x: Tensor) -> tuple[Tensor, Parameters]:
    with source.layer("embed"):
        h = fn.embedding(x, p["tokens.embedding"], scale=False) + p["positions.embedding"]
    for block in range(settings["blocks"]):
        with source.layer(f"{block}.attend"):
            normed = fn.layer_norm(h, gamma=p[f"{block}.norm1.gain"], beta=p[f"{block}.norm1.bias"])
            h = h + _attend(block, normed, p, heads=settings["heads"])
        with source.layer(f"{block}.feed"):
            normed = fn.layer_norm(h, gamma=p[f"{block}.norm2.gain"], beta=p[f"{block}.norm2.bias"])
            up = fn.linear(normed, p[f"{block}.up.weight"], p[f"{block}.up.bias"])
            up = fn.gelu(up, approximate="tanh" if settings["gpt2"] else "none")
            h = h + fn.linear(up, p[f"{block}.down.weight"], p[f"{block}.down.bias"])
    with source.layer("head"):
        head = nx.permute_dims(p["tokens.embedding"], (1, 0)) if settings["gpt2"] else p["head"]
        return fn.layer_norm(h, gamma=p["norm.gain"], beta=p["norm.bias"]) @ head, state


def _attend(block: int, x: Tensor, p: Parameters, *, heads: int) -> Tensor:
    batch, tokens, width = x.shape

    def linear(name: str, x: Tensor) -> Tensor:
        return fn.linear(x, p[f"{block}.{name}"], p.get(f"{block}.{name}.bias"))

    def split(name: str) -> Tensor:
        return nx.permute_dims(nx.reshape(linear(name, x), (batch, tokens, heads, width // heads)), (0, 2, 1, 3))

    y = fn.dot_product_attention(split("q"), split("k"), split("v"), is_causal=True)
    return linear("out", nx.reshape(nx.permute_dims(y, (0, 2, 1, 3)), (batch, tokens, width)))


def _resnet(settings: Mapping[str, Any], p: Parameters, state: Parameters, x: Tensor) -> tuple[Tensor, Parameters]:
    after: dict[str, Tensor] = {}

    def normed(name: str, x: Tensor, stride: int, padding: int = 1) -> Tensor:
        with source.layer(name):
            y = fn.conv2d(x, p[f"{name}.weight"], stride=stride, padding=padding)
            mean, variance = fn.batch_statistics(y)
            for statistic, value in (("mean", mean), ("variance", variance)):
                path = f"{name}.{statistic}"
                after[path] = _MOMENTUM * state[path] + (1 - _MOMENTUM) * nx.stop_gradient(value)
            return fn.batch_norm(y, scale=p[f"{name}.gain"], bias=p[f"{name}.bias"], mean=mean, variance=variance)

    h = nx.relu(normed("stem", x, 1))
    for stage in range(settings["stages"]):
        for block in range(settings["blocks"]):
            name, halving = f"{stage}.{block}", bool(stage and not block)
            y = nx.relu(normed(f"{name}.first", h, 1 + halving))
            y = normed(f"{name}.second", y, 1)
            h = nx.relu(y + (normed(f"{name}.projection", h, 2, 0) if halving else h))
    with source.layer("head"):
        return fn.linear(nx.mean(h, axis=(2, 3)), p["head.weight"], p["head.bias"]), after


def _classifier(settings: Mapping[str, Any], p: Parameters, state: Parameters, x: Tensor) -> tuple[Tensor, Parameters]:
    with source.layer("bag"):
        bag = nx.mean(fn.embedding(x, p["tokens.embedding"], scale=False), axis=1)
    with source.layer("hidden"):
        hidden = nx.relu(fn.linear(bag, p["hidden.weight"], p["hidden.bias"]))
    with source.layer("head"):
        return fn.linear(hidden, p["head.weight"], p["head.bias"]), state


MODELS: dict[str, Callable[..., tuple[Tensor, Parameters]]] = {
    "gpt": _gpt,
    "resnet": _resnet,
    "classifier": _classifier,
}


def _keyed(parameters: Parameters) -> kn.ptree.Dict:
    """A tree of the parameters: its keys cannot hold dots."""
    return kn.ptree.Dict({name.replace(".", "/"): tensor for name, tensor in parameters.items()})


def _named(tree: Parameters) -> Parameters:
    return {key.replace("/", "."): tensor for key, tensor in tree.items()}


def variables(settings: Mapping[str, Any], parameters: Mapping[str, Any]) -> kn.layer.Vars:
    """The model's variables: copies of these parameters, and statistics that start anew."""
    params = {name: nx.asarray(array, copy=True) for name, array in parameters.items()}
    state: dict[str, Tensor] = {}
    if settings["model"] == "resnet":
        for name, gain in params.items():
            if name.endswith(".gain"):
                path = name.removesuffix(".gain")
                state |= {f"{path}.mean": nx.zeros(gain.shape), f"{path}.variance": nx.ones(gain.shape)}
    return kn.layer.Vars(_keyed(params), _keyed(state), kn.float32)


def model(settings: Mapping[str, Any]) -> kn.layer.Layer:
    """A layer that computes the model from its `variables`."""
    forward = MODELS[settings["model"]]

    def init(*, dtype: Any) -> kn.layer.Vars:
        raise ValueError("kaun_problems.model: its parameters come from the problem's arrays; see `variables`")

    def apply(params: Any, state: Any, x: Any, /, *, dtype: Any, training: bool, ctx: Any) -> tuple[Tensor, Any]:
        logits, after = forward(settings, _named(params), _named(state), x)
        return logits, _keyed(after)

    return kn.layer.Layer(init, apply)


# --- operations ------------------------------------------------------------------------------------------------------

OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "layer_norm": lambda x, gain, bias: fn.layer_norm(x, gamma=gain, beta=bias),
    "rms_norm": lambda x, gain: fn.rms_norm(x, scale=gain),
    "softmax": fn.softmax,
    "gelu": fn.gelu,
    "batch_norm": lambda x, gain, bias: fn.batch_norm(x, scale=gain, bias=bias),
    "attention": fn.dot_product_attention,
    "causal_attention": lambda q, k, v: fn.dot_product_attention(q, k, v, is_causal=True),
    "conv1d": lambda x, weight, bias: fn.conv1d(x, weight, bias, padding="same"),
    "conv2d": lambda x, weight, bias: fn.conv2d(x, weight, bias, padding="same"),
    "max_pool": lambda x: fn.max_pool2d(x, kernel_size=2),
    "avg_pool": lambda x: fn.avg_pool2d(x, kernel_size=2),
    "linear": fn.linear,
    "linear_gelu": lambda x, weight, bias: fn.gelu(fn.linear(x, weight, bias)),
    "embedding": lambda table, indices: fn.embedding(indices, table, scale=False),
    "cross_entropy": kn.loss.cross_entropy_sparse,
}


def operation(settings: Mapping[str, Any]) -> Callable[..., Any]:
    """`(cotangent, *inputs) -> results`, compiled: the result alone, or with the gradients of the first inputs."""
    function, count = OPERATIONS[settings["operation"]], settings["differentiated"]

    def forward(cotangent: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        return (function(*inputs),)

    def both(cotangent: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        result, pullback = kn.vjp(lambda *first: function(*first, *inputs[count:]), *inputs[:count])
        return (result, *pullback(cotangent))

    return kn.jit(both if count else forward)
