"""The larger training steps and the single operations in JAX. Imported by `peers.py`, next to which it lies."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Arrays = Mapping[str, Any]
_MOMENTUM = 0.99


def model(arrays: Arrays) -> tuple[Any, Any, Callable[..., Any], Any]:
    """(parameters, running statistics, `(parameters, statistics, x, y) -> (loss, statistics)`, x) as JAX likes them."""
    import jax
    import jax.numpy as jnp

    settings = json.loads(str(arrays["settings"]))
    p = {name[2:]: np.asarray(array) for name, array in arrays.items() if name.startswith("w.")}
    x, state = arrays["x"], {}
    if settings["model"] == "gpt":
        for block in range(settings["blocks"]):
            for end in ("", ".bias") if settings["gpt2"] else ("",):
                parts = [p.pop(f"{block}.{name}{end}") for name in "qkv"]
                p[f"{block}.qkv{end}"] = np.concatenate(parts, -1)
    if settings["model"] == "resnet":
        # Channels last, as JAX's own libraries lay them out.
        x = np.ascontiguousarray(x.transpose(0, 1, 3, 4, 2))
        p = {n: np.ascontiguousarray(w.transpose(2, 3, 1, 0)) if w.ndim == 4 else w for n, w in p.items()}
        norms = [name.removesuffix(".gain") for name in p if name.endswith(".gain")]
        state = {f"{name}.mean": np.zeros_like(p[f"{name}.gain"]) for name in norms}
        state |= {f"{name}.variance": np.ones_like(p[f"{name}.gain"]) for name in norms}
    forward = {"gpt": _gpt, "resnet": _resnet, "classifier": _classifier}[settings["model"]]

    def objective(p: Any, state: Any, x: Any, y: Any) -> Any:
        logits, state = forward(settings, p, state, x)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), y[..., None], axis=-1)
        return -jnp.mean(chosen), state

    return p, state, objective, x


def _layer_norm(x: Any, gain: Any, bias: Any) -> Any:
    import jax
    import jax.numpy as jnp

    mean = jnp.mean(x, -1, keepdims=True)
    variance = jnp.mean(jnp.square(x - mean), -1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * gain + bias


def _attention(q: Any, k: Any, v: Any, causal: bool = False) -> Any:
    import jax
    import jax.numpy as jnp

    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k) * q.shape[-1] ** -0.5
    if causal:
        scores = jnp.where(jnp.tri(scores.shape[-1], dtype=bool), scores, -jnp.inf)
    return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(scores), v)


def _gpt(settings: Mapping[str, Any], p: Any, state: Any, x: Any) -> Any:
    import jax
    import jax.numpy as jnp

    def attend(block: int, x: Any) -> Any:
        batch, tokens, width = x.shape
        q, k, v = (
            part.reshape(batch, tokens, settings["heads"], -1).transpose(0, 2, 1, 3)
            for part in jnp.split(linear(f"{block}.qkv", x), 3, axis=-1)
        )
        return linear(f"{block}.out", _attention(q, k, v, True).transpose(0, 2, 1, 3).reshape(batch, tokens, width))

    def linear(name: str, x: Any) -> Any:
        return x @ p[name] + p[f"{name}.bias"] if settings["gpt2"] else x @ p[name]

    def norm(name: str, x: Any) -> Any:
        return _layer_norm(x, p[f"{name}.gain"], p[f"{name}.bias"])

    h = p["tokens.embedding"][x] + p["positions.embedding"]
    for block in range(settings["blocks"]):
        h = h + attend(block, norm(f"{block}.norm1", h))
        up = norm(f"{block}.norm2", h) @ p[f"{block}.up.weight"] + p[f"{block}.up.bias"]
        h = h + jax.nn.gelu(up, approximate=settings["gpt2"]) @ p[f"{block}.down.weight"] + p[f"{block}.down.bias"]
    return norm("norm", h) @ (p["tokens.embedding"].T if settings["gpt2"] else p["head"]), state


def _resnet(settings: Mapping[str, Any], p: Any, state: Any, x: Any) -> Any:
    import jax
    import jax.numpy as jnp

    after = {}

    def normed(name: str, x: Any, stride: int, padding: int = 1) -> Any:
        layout = ("NHWC", "HWIO", "NHWC")
        pads = ((padding, padding),) * 2
        y = jax.lax.conv_general_dilated(x, p[f"{name}.weight"], (stride, stride), pads, dimension_numbers=layout)
        mean = jnp.mean(y, (0, 1, 2))
        variance = jnp.mean(jnp.square(y - mean), (0, 1, 2))
        for statistic, value in (("mean", mean), ("variance", variance)):
            path = f"{name}.{statistic}"
            after[path] = _MOMENTUM * state[path] + (1 - _MOMENTUM) * jax.lax.stop_gradient(value)
        return (y - mean) * (jax.lax.rsqrt(variance + 1e-5) * p[f"{name}.gain"]) + p[f"{name}.bias"]

    h = jax.nn.relu(normed("stem", x, 1))
    for stage in range(settings["stages"]):
        for block in range(settings["blocks"]):
            name, halving = f"{stage}.{block}", bool(stage and not block)
            y = jax.nn.relu(normed(f"{name}.first", h, 1 + halving))
            y = normed(f"{name}.second", y, 1)
            h = jax.nn.relu(y + (normed(f"{name}.projection", h, 2, 0) if halving else h))
    return jnp.mean(h, (1, 2)) @ p["head.weight"] + p["head.bias"], after


def _classifier(settings: Mapping[str, Any], p: Any, state: Any, x: Any) -> Any:
    import jax
    import jax.numpy as jnp

    bag = jnp.mean(p["tokens.embedding"][x], 1)
    hidden = jax.nn.relu(bag @ p["hidden.weight"] + p["hidden.bias"])
    return hidden @ p["head.weight"] + p["head.bias"], state


def operation(arrays: Arrays) -> tuple[Callable[..., Any], list[Any]]:
    """(compiled function from cotangent and inputs to a list of results, those arguments)."""
    import jax
    import jax.numpy as jnp

    lax: Any = jax.lax

    def rms_norm(x: Any, gain: Any) -> Any:
        return x * lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-6) * gain

    def batch_norm(x: Any, gain: Any, bias: Any) -> Any:
        mean = jnp.mean(x, (0, 2, 3), keepdims=True)
        variance = jnp.mean(jnp.square(x - mean), (0, 2, 3), keepdims=True)
        return (x - mean) * lax.rsqrt(variance + 1e-5) * gain[:, None, None] + bias[:, None, None]

    def conv1d(x: Any, weight: Any, bias: Any) -> Any:
        return lax.conv_general_dilated(x, weight, (1,), "SAME") + bias[:, None]

    def conv2d(x: Any, weight: Any, bias: Any) -> Any:
        return lax.conv_general_dilated(x, weight, (1, 1), "SAME") + bias[:, None, None]

    def cross_entropy(logits: Any, y: Any) -> Any:
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=-1))

    window: Any = ((1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    functions: dict[str, Callable[..., Any]] = {
        "layer_norm": _layer_norm,
        "rms_norm": rms_norm,
        "softmax": jax.nn.softmax,
        "gelu": lambda x: jax.nn.gelu(x, approximate=False),
        "batch_norm": batch_norm,
        "attention": _attention,
        "causal_attention": lambda q, k, v: _attention(q, k, v, True),
        "conv1d": conv1d,
        "conv2d": conv2d,
        "max_pool": lambda x: lax.reduce_window(x, -jnp.inf, lax.max, *window),
        "avg_pool": lambda x: lax.reduce_window(x, 0.0, lax.add, *window) / 4,
        "linear": lambda x, weight, bias: x @ weight + bias,
        "linear_gelu": lambda x, weight, bias: jax.nn.gelu(x @ weight + bias, approximate=False),
        "embedding": lambda table, indices: table[indices],
        "cross_entropy": cross_entropy,
    }
    settings = json.loads(str(arrays["settings"]))
    function, count = functions[settings["operation"]], settings["differentiated"]

    def forward(cotangent: Any, *inputs: Any) -> list[Any]:
        return [function(*inputs)]

    def both(cotangent: Any, *inputs: Any) -> list[Any]:
        result, pullback = jax.vjp(lambda *first: function(*first, *inputs[count:]), *inputs[:count])
        return [result, *pullback(cotangent)]

    count_of_inputs = sum(name.startswith("i") for name in arrays)
    arguments = [jax.device_put(arrays[name]) for name in ("c", *(f"i{i}" for i in range(count_of_inputs)))]
    return jax.jit(both if count else forward), arguments
