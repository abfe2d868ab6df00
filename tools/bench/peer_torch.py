"""The larger training steps and the single operations in PyTorch. Imported by `peers.py`, next to which it lies."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

Arrays = Mapping[str, Any]
_MOMENTUM = 0.01


def model(arrays: Arrays) -> tuple[list[Any], Callable[[Any, Any], Any]]:
    """(parameters, mean loss of a batch) of the model of these arrays."""
    import torch

    settings = json.loads(str(arrays["settings"]))
    values = {name[2:]: array for name, array in arrays.items() if name.startswith("w.")}
    if settings["model"] == "gpt":
        # One product for queries, keys and values, as PyTorch's own attention does it.
        for block in range(settings["blocks"]):
            for end in ("", ".bias") if settings["gpt2"] else ("",):
                parts = [torch.from_numpy(values.pop(f"{block}.{name}{end}")) for name in "qkv"]
                values[f"{block}.qkv{end}"] = torch.cat(parts, -1).numpy()
    # Linear layers keep the transposed matrix.
    p = {name: torch.nn.Parameter(torch.from_numpy(_transposed(name, array).copy())) for name, array in values.items()}
    forward = {"gpt": _gpt, "resnet": _resnet, "classifier": _classifier}[settings["model"]](settings, p)

    def objective(x: Any, y: Any) -> Any:
        logits = forward(x)
        return torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), y.reshape(-1))

    return list(p.values()), objective


def _transposed(name: str, array: Any) -> Any:
    return array.T if array.ndim == 2 and not name.endswith("embedding") else array


def _gpt(settings: Mapping[str, Any], p: Mapping[str, Any]) -> Callable[[Any], Any]:
    from torch.nn import functional

    heads = settings["heads"]

    def attend(block: int, x: Any) -> Any:
        batch, tokens, width = x.shape
        q, k, v = (
            part.view(batch, tokens, heads, width // heads).transpose(1, 2)
            for part in linear(f"{block}.qkv", x).split(width, dim=2)
        )
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return linear(f"{block}.out", y.transpose(1, 2).reshape(batch, tokens, width))

    def linear(name: str, x: Any) -> Any:
        return functional.linear(x, p[name], p.get(f"{name}.bias"))

    def norm(name: str, x: Any) -> Any:
        return functional.layer_norm(x, x.shape[-1:], p[f"{name}.gain"], p[f"{name}.bias"])

    def forward(x: Any) -> Any:
        h = functional.embedding(x, p["tokens.embedding"]) + p["positions.embedding"]
        for block in range(settings["blocks"]):
            h = h + attend(block, norm(f"{block}.norm1", h))
            up = functional.linear(norm(f"{block}.norm2", h), p[f"{block}.up.weight"], p[f"{block}.up.bias"])
            up = functional.gelu(up, approximate="tanh" if settings["gpt2"] else "none")
            h = h + functional.linear(up, p[f"{block}.down.weight"], p[f"{block}.down.bias"])
        return functional.linear(norm("norm", h), p["tokens.embedding" if settings["gpt2"] else "head"])

    return forward


def _resnet(settings: Mapping[str, Any], p: Mapping[str, Any]) -> Callable[[Any], Any]:
    import torch
    from torch.nn import functional

    names = [name.removesuffix(".gain") for name in p if name.endswith(".gain")]
    means = {name: torch.zeros_like(p[f"{name}.gain"]).detach() for name in names}
    variances = {name: torch.ones_like(p[f"{name}.gain"]).detach() for name in names}

    def normed(name: str, x: Any, stride: int, padding: int = 1) -> Any:
        y = functional.conv2d(x, p[f"{name}.weight"], stride=stride, padding=padding)
        gain, bias = p[f"{name}.gain"], p[f"{name}.bias"]
        return functional.batch_norm(y, means[name], variances[name], gain, bias, True, _MOMENTUM)

    def forward(x: Any) -> Any:
        h = functional.relu(normed("stem", x, 1))
        for stage in range(settings["stages"]):
            for block in range(settings["blocks"]):
                name, halving = f"{stage}.{block}", bool(stage and not block)
                y = functional.relu(normed(f"{name}.first", h, 1 + halving))
                y = normed(f"{name}.second", y, 1)
                h = functional.relu(y + (normed(f"{name}.projection", h, 2, 0) if halving else h))
        return functional.linear(h.mean((2, 3)), p["head.weight"], p["head.bias"])

    return forward


def _classifier(settings: Mapping[str, Any], p: Mapping[str, Any]) -> Callable[[Any], Any]:
    from torch.nn import functional

    def forward(x: Any) -> Any:
        bag = functional.embedding_bag(x, p["tokens.embedding"], mode="mean")
        hidden = functional.relu(functional.linear(bag, p["hidden.weight"], p["hidden.bias"]))
        return functional.linear(hidden, p["head.weight"], p["head.bias"])

    return forward


def operation(arrays: Arrays, compiled: bool) -> tuple[Callable[..., Any], list[Any]]:
    """(function from cotangent and inputs to a list of results, those arguments)."""
    import torch
    from torch.nn import functional

    functions: dict[str, Callable[..., Any]] = {
        "layer_norm": lambda x, gain, bias: functional.layer_norm(x, x.shape[-1:], gain, bias),
        "rms_norm": lambda x, gain: functional.rms_norm(x, x.shape[-1:], gain, 1e-6),
        "softmax": lambda x: functional.softmax(x, -1),
        "gelu": functional.gelu,
        "batch_norm": lambda x, gain, bias: functional.batch_norm(x, None, None, gain, bias, True),
        "attention": functional.scaled_dot_product_attention,
        "causal_attention": lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, is_causal=True),
        "conv1d": lambda x, weight, bias: functional.conv1d(x, weight, bias, padding=1),
        "conv2d": lambda x, weight, bias: functional.conv2d(x, weight, bias, padding=1),
        "max_pool": lambda x: functional.max_pool2d(x, 2),
        "avg_pool": lambda x: functional.avg_pool2d(x, 2),
        "linear": functional.linear,
        "linear_gelu": lambda x, weight, bias: functional.gelu(functional.linear(x, weight, bias)),
        "embedding": lambda table, indices: functional.embedding(indices, table),
        "cross_entropy": functional.cross_entropy,
    }
    settings = json.loads(str(arrays["settings"]))
    function, count = functions[settings["operation"]], settings["differentiated"]
    function = torch.compile(function) if compiled else function
    inputs = [torch.from_numpy(arrays[f"i{i}"].copy()) for i in range(sum(name.startswith("i") for name in arrays))]
    inputs = [x.long() if x.dtype is torch.int32 else x for x in inputs]
    transposed = settings["operation"].startswith("linear")
    if transposed:
        inputs[1] = inputs[1].T.contiguous()
    for x in inputs[:count]:
        x.requires_grad_()

    def forward(cotangent: Any, *inputs: Any) -> list[Any]:
        return [function(*inputs)]

    def both(cotangent: Any, *inputs: Any) -> list[Any]:
        result = function(*inputs)
        gradients = list(torch.autograd.grad(result, inputs[:count], cotangent))
        if transposed:
            gradients[1] = gradients[1].T
        return [result, *gradients]

    return both if count else forward, [torch.from_numpy(arrays["c"].copy()), *inputs]
