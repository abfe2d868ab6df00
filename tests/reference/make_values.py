"""Makes values.npz: what PyTorch, optax and scikit-learn compute, for the tests to compare with. Run with all three:

python tests/reference/make_values.py

A key is "case/name": the arrays a case was given, its result `y`, and gradients `d_name` of sum(y * g) by its inputs.
Computed in float64, from float32 inputs.
"""

from __future__ import annotations

import os

os.environ["JAX_ENABLE_X64"] = "1"

import jax
import jax.numpy as jnp
import numpy as np
import optax
import sklearn.metrics
import torch
import torch.nn.functional as F

random = np.random.default_rng(20240527)
values: dict[str, np.ndarray] = {}


def record(case: str, function, differentiate: tuple[str, ...], **inputs: np.ndarray) -> None:
    tensors = {}
    for name, value in inputs.items():
        tensor = torch.tensor(value)
        tensors[name] = tensor.double() if tensor.is_floating_point() else tensor
        values[f"{case}/{name}"] = value
    for name in differentiate:
        tensors[name].requires_grad_()
    y = function(*tensors.values())
    weight = random.normal(size=tuple(y.shape)).astype(np.float32)
    (y * torch.tensor(weight).double()).sum().backward()
    values[f"{case}/y"] = y.detach().numpy()
    values[f"{case}/g"] = weight
    for name in differentiate:
        values[f"{case}/d_{name}"] = tensors[name].grad.numpy()


def normal(*shape: int) -> np.ndarray:
    return random.normal(size=shape).astype(np.float32)


def activations() -> None:
    line = np.concatenate([np.linspace(-6, 6, 41), [-90.0, -30.0, 30.0, 90.0]]).astype(np.float32)
    line = line[(np.abs(line) > 1e-3) & (np.abs(np.abs(line) - 3) > 1e-3) & (np.abs(line - 6) > 1e-3)]
    functions = {
        "relu": F.relu, "relu6": F.relu6, "leaky_relu": F.leaky_relu, "hard_tanh": F.hardtanh,
        "hard_sigmoid": F.hardsigmoid, "elu": F.elu, "selu": F.selu, "celu": F.celu, "gelu": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "silu": F.silu, "hard_silu": F.hardswish, "mish": F.mish,
        "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)), "softsign": F.softsign,
        "squareplus": lambda x: 0.5 * (x + torch.sqrt(x * x + 4)), "log_sigmoid": F.logsigmoid,
        "sigmoid": torch.sigmoid, "tanh": torch.tanh,
    }  # fmt: skip
    for name, function in functions.items():
        record(f"activation/{name}", function, ("x",), x=line)
    record("activation/softmax", lambda x: F.softmax(x, -1), ("x",), x=normal(3, 7) * 5)
    record("activation/log_softmax", lambda x: F.log_softmax(x, -1), ("x",), x=normal(3, 7) * 5)
    record("activation/glu", F.glu, ("x",), x=normal(3, 8))
    slopes = np.asarray([0.1, 0.5, -0.2, 0.0], np.float32)
    record("activation/prelu", lambda x, alpha: F.prelu(x, alpha), ("x", "alpha"), x=normal(5, 4), alpha=slopes)


def convolutions() -> None:
    for number, (n, c, o, size, kernel, stride, dilation, padding, groups) in enumerate([
        (2, 3, 4, (7, 6), (3, 3), (1, 1), (1, 1), (0, 0), 1),
        (2, 4, 6, (9, 8), (3, 2), (2, 1), (1, 2), (2, 1), 2),
        (1, 4, 4, (5, 5), (5, 5), (3, 2), (1, 1), (2, 2), 4),
        (3, 1, 2, (6, 7), (1, 1), (1, 2), (1, 1), (0, 0), 1),
    ]):  # fmt: skip
        case = f"conv2d/{number}"
        record(
            case,
            lambda x, weight, bias, s=stride, p=padding, d=dilation, k=groups: F.conv2d(x, weight, bias, s, p, d, k),
            ("x", "weight", "bias"), x=normal(n, c, *size), weight=normal(o, c // groups, *kernel), bias=normal(o),
        )  # fmt: skip
        for name, value in (("stride", stride), ("dilation", dilation), ("padding", padding), ("groups", groups)):
            values[f"{case}/{name}"] = np.asarray(value)
    record(
        "conv1d/0", lambda x, weight, bias: F.conv1d(x, weight, bias, 2, 3, 2), ("x", "weight", "bias"),
        x=normal(2, 3, 11), weight=normal(5, 3, 3), bias=normal(5),
    )  # fmt: skip
    record(
        "conv1d/causal", lambda x, weight, bias: F.conv1d(F.pad(x, (4, 0)), weight, bias, 1, 0, 2),
        ("x", "weight", "bias"), x=normal(2, 3, 9), weight=normal(4, 3, 3), bias=normal(4),
    )  # fmt: skip


def pools() -> None:
    for number, (size, kernel, stride, padding, ceil) in enumerate([
        ((6, 8), (2, 2), (2, 2), (0, 0), False), ((7, 9), (3, 3), (2, 2), (1, 1), False),
        ((7, 6), (2, 3), (2, 2), (0, 1), True), ((9, 9), (4, 4), (3, 3), (2, 2), True),
        ((5, 5), (1, 1), (2, 2), (0, 0), False),
    ]):  # fmt: skip
        x = normal(2, 3, *size)
        record(
            f"max_pool2d/{number}",
            lambda x, k=kernel, s=stride, p=padding, c=ceil: F.max_pool2d(x, k, s, p, ceil_mode=c), ("x",), x=x,
        )  # fmt: skip
        for include in (True, False):
            record(
                f"avg_pool2d/{number}/{include}",
                lambda x, k=kernel, s=stride, p=padding, c=ceil, i=include: F.avg_pool2d(x, k, s, p, c, i), ("x",), x=x,
            )  # fmt: skip
        for kind in ("max_pool2d", *(f"avg_pool2d/{number}/{include}" for include in (True, False))):
            case = f"max_pool2d/{number}" if kind == "max_pool2d" else kind
            for name, value in (("kernel_size", kernel), ("stride", stride), ("padding", padding), ("ceil", ceil)):
                values[f"{case}/{name}"] = np.asarray(value)
    record("max_pool1d/0", lambda x: F.max_pool1d(x, 3, 2, 1), ("x",), x=normal(2, 3, 9))
    record("avg_pool1d/0", lambda x: F.avg_pool1d(x, 3, 2, 1), ("x",), x=normal(2, 3, 9))


def normalizations() -> None:
    record(
        "layer_norm/0", lambda x, gamma, beta: F.layer_norm(x, (6,), gamma, beta, 1e-5), ("x", "gamma", "beta"),
        x=normal(4, 5, 6) * 3 + 2, gamma=normal(6), beta=normal(6),
    )  # fmt: skip
    record(
        "rms_norm/0", lambda x, scale: F.rms_norm(x, (6,), scale, 1e-6), ("x", "scale"),
        x=normal(4, 6), scale=normal(6),
    )  # fmt: skip
    for number, shape in enumerate([(8, 3), (4, 3, 5), (4, 3, 5, 2)]):
        record(
            f"batch_norm/{number}", lambda x, scale, bias: F.batch_norm(x, None, None, scale, bias, True, 0.1, 1e-5),
            ("x", "scale", "bias"), x=normal(*shape) * 2 + 50, scale=normal(3), bias=normal(3),
        )  # fmt: skip
    record(
        "batch_norm/running",
        lambda x, scale, bias, mean, variance: F.batch_norm(x, mean, variance, scale, bias, False, 0.1, 1e-5),
        ("x", "scale", "bias"), x=normal(4, 3, 5), scale=normal(3), bias=normal(3), mean=normal(3),
        variance=np.exp(normal(3)),
    )  # fmt: skip


def losses() -> None:
    logits, classes = normal(6, 5) * 4, random.integers(0, 5, 6)
    spread = np.exp(normal(6, 5))
    spread /= spread.sum(-1, keepdims=True)
    record("loss/cross_entropy_sparse", lambda a, b: F.cross_entropy(a, b), ("a",), a=logits, b=classes)
    record("loss/cross_entropy", lambda a, b: F.cross_entropy(a, b), ("a",), a=logits, b=spread)
    extreme = np.asarray([-200.0, -20.0, -1.5, 0.3, 2.0, 25.0, 200.0], np.float32)
    labels = np.asarray([0.0, 1.0, 0.25, 1.0, 0.0, 1.0, 1.0], np.float32)
    record(
        "loss/binary_cross_entropy", lambda a, b: F.binary_cross_entropy_with_logits(a, b), ("a",), a=extreme, b=labels
    )
    a, b = normal(4, 3) * 2, normal(4, 3)
    record("loss/mse", lambda a, b: F.mse_loss(a, b), ("a",), a=a, b=b)
    record("loss/mae", lambda a, b: F.l1_loss(a, b), ("a",), a=a, b=b)
    record("loss/huber", lambda a, b: F.huber_loss(a, b, delta=0.7), ("a",), a=a, b=b)


def optimizers() -> None:
    """100 steps down sum((p - target)**4 + p**2): the gradient is computed by the test from its own parameters."""
    start = {"w": random.normal(size=(4, 3)), "b": random.normal(size=(3,))}
    target = {"w": random.normal(size=(4, 3)), "b": random.normal(size=(3,))}
    for name in start:
        values[f"optim/start/{name}"], values[f"optim/target/{name}"] = start[name], target[name]

    def objective(p):
        return sum(((p[k] - target[k]) ** 4 + p[k] ** 2).sum() for k in start)

    made_by_torch = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.01),
        "sgd_momentum": lambda p: torch.optim.SGD(p, lr=0.003, momentum=0.9),
        "sgd_nesterov": lambda p: torch.optim.SGD(p, lr=0.003, momentum=0.9, nesterov=True),
        "adam": lambda p: torch.optim.Adam(p, lr=0.02),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1),
    }
    for name, make in made_by_torch.items():
        parameters = {k: torch.tensor(v, requires_grad=True) for k, v in start.items()}
        targets = {k: torch.tensor(v) for k, v in target.items()}
        optimizer = make(list(parameters.values()))
        for _ in range(100):
            optimizer.zero_grad()
            sum(((parameters[k] - targets[k]) ** 4 + parameters[k] ** 2).sum() for k in start).backward()
            optimizer.step()
        for k, p in parameters.items():
            values[f"optim/{name}/{k}"] = p.detach().numpy()

    schedule = optax.cosine_decay_schedule(0.05, 80, 0.1)
    made_by_optax = {
        # optax counts steps from 0, kaun from 1.
        "adam_cosine": optax.adam(lambda count: schedule(count + 1)),
        "clip_global": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.05, momentum=0.5)),
        "clip_value": optax.chain(optax.clip(0.5), optax.sgd(0.05)),
    }
    for name, tx in made_by_optax.items():
        parameters = {k: jnp.asarray(v) for k, v in start.items()}
        state = tx.init(parameters)
        for _ in range(100):
            updates, state = tx.update(jax.grad(objective)(parameters), state, parameters)
            parameters = optax.apply_updates(parameters, updates)
        for k, p in parameters.items():
            values[f"optim/{name}/{k}"] = np.asarray(p)


def descend(tx, start, gradient, steps=100):
    """The parameters after `steps` steps of an optax transformation."""
    parameters = {k: jnp.asarray(v) for k, v in start.items()}
    state = tx.init(parameters)
    for step in range(steps):
        updates, state = tx.update(gradient(parameters, step), state, parameters)
        parameters = optax.apply_updates(parameters, updates)
    return parameters


def more_optimizers() -> None:
    """The rest of the optimizers on the same objective, each from its definition in another library."""
    start, target = ({k: values[f"optim/{kind}/{k}"] for k in ("w", "b")} for kind in ("start", "target"))

    def gradient(p, step):
        return {k: 4 * (p[k] - target[k]) ** 3 + 2 * p[k] for k in p}

    made_by_torch = {
        "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, alpha=0.9),
        "rmsprop_momentum": lambda p: torch.optim.RMSprop(p, lr=0.005, alpha=0.95, momentum=0.8),
        "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.2, eps=1e-8),
        "radam": lambda p: torch.optim.RAdam(p, lr=0.05),
    }
    for name, make in made_by_torch.items():
        parameters = {k: torch.tensor(v, requires_grad=True) for k, v in start.items()}
        optimizer = make(list(parameters.values()))
        for step in range(100):
            for k, p in parameters.items():
                p.grad = gradient({k: p.detach()}, step)[k].clone()
            optimizer.step()
        for k, p in parameters.items():
            values[f"optim/{name}/{k}"] = p.detach().numpy()

    # Its axes are the other way round: for optax the outputs of a matrix come first.
    turned = {k: v.T for k, v in start.items()}
    made_by_optax = {
        "lamb": optax.lamb(0.02, weight_decay=0.05),
        "lars": optax.lars(0.5, weight_decay=0.01, trust_coefficient=0.01, momentum=0.8, nesterov=True),
        "lion": optax.lion(0.013, weight_decay=0.1),
        "adafactor": optax.adafactor(0.1, min_dim_size_to_factor=3),
        "adafactor_full": optax.adafactor(0.1, multiply_by_parameter_scale=False, clipping_threshold=None),
        "accumulated": optax.chain(
            optax.clip_by_global_norm(5.0),
            optax.MultiSteps(
                optax.adam(lambda count: 0.1 / (count + 1)), every_k_schedule=3
            ).gradient_transformation(),
        ),
        "if_finite": optax.apply_if_finite(optax.sgd(0.01, momentum=0.9), 1000),
    }

    def broken(p, step):
        return {k: g * (jnp.nan if step % 7 == 3 else 1.0) for k, g in gradient(p, step).items()}

    def alternating(p, step):
        return {k: g * (1.5 if step % 3 else 0.5) for k, g in gradient(p, step).items()}

    gradients = {"if_finite": broken, "accumulated": alternating}
    for name, tx in made_by_optax.items():
        for k, p in descend(tx, start, gradients.get(name, gradient)).items():
            values[f"optim/{name}/{k}"] = np.asarray(p)

    def turned_gradient(p, step):
        return {k: 4 * (p[k] - target[k].T) ** 3 + 2 * p[k] for k in p}

    centralized = descend(optax.chain(optax.centralize(), optax.sgd(0.01)), turned, turned_gradient)
    for k, p in centralized.items():
        values[f"optim/centralized/{k}"] = np.asarray(p).T

    # optax's Adan looks ahead by 1 - b2 where the paper (and its authors' code) looks ahead by b2: the paper, then.
    for k, p in adan(start, gradient, lr=0.02, weight_decay=0.05).items():
        values[f"optim/adan/{k}"] = p


def adan(start, gradient, lr, weight_decay, decays=(0.98, 0.92, 0.99), eps=1e-8):
    """Algorithm 1 of arXiv:2208.06677 with decays 1 - beta, bias correction, and AdamW's weight decay."""
    p = dict(start)
    m, v, n = ({k: np.zeros_like(x) for k, x in p.items()} for _ in range(3))
    last = None
    b1, b2, b3 = decays
    for t in range(1, 101):
        g = gradient(p, t)
        for k in p:
            d = g[k] - last[k] if last else np.zeros_like(g[k])
            m[k] = b1 * m[k] + (1 - b1) * g[k]
            v[k] = b2 * v[k] + (1 - b2) * d
            n[k] = b3 * n[k] + (1 - b3) * (g[k] + b2 * d) ** 2
            direction = m[k] / (1 - b1**t) + b2 * v[k] / (1 - b2**t)
            direction = direction / (np.sqrt(n[k] / (1 - b3**t)) + eps)
            p[k] = p[k] - lr * (direction + weight_decay * p[k])
        last = g
    return p


def rotated(x: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotary position embedding as Hugging Face's LLaMA writes it; x (..., T, D)."""
    length, dim = x.shape[-2:]
    angles = torch.arange(length)[:, None].double() * theta ** (-torch.arange(0, dim, 2).double() / dim)
    cos, sin = torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()
    half = torch.cat([-x[..., dim // 2 :], x[..., : dim // 2]], -1)
    return x * cos + half * sin


def attention() -> None:
    record("attention/rope", lambda x: rotated(x, 100.0), ("x",), x=normal(2, 3, 5, 6))
    q, k, v = normal(2, 4, 5, 6), normal(2, 4, 7, 6), normal(2, 4, 7, 3)
    product = F.scaled_dot_product_attention
    record("attention/plain", product, ("q", "k", "v"), q=q, k=k, v=v)
    record("attention/scale", lambda q, k, v: product(q, k, v, scale=0.7), ("q", "k", "v"), q=q, k=k, v=v)
    record("attention/causal", lambda q, k, v: product(q, k, v, is_causal=True), ("q", "k", "v"), q=q, k=k, v=v)
    keep = random.random((2, 1, 5, 7)) < 0.6
    keep[..., 0] = True
    record("attention/mask", lambda q, k, v, m: product(q, k, v, m), ("q", "k", "v"), q=q, k=k, v=v, mask=keep)
    bias = normal(4, 5, 7)
    record("attention/bias", lambda q, k, v, m: product(q, k, v, m), ("q", "k", "v", "mask"), q=q, k=k, v=v, mask=bias)
    record(
        "attention/grouped", lambda q, k, v: product(q, k, v, is_causal=True, enable_gqa=True), ("q", "k", "v"),
        q=q, k=normal(2, 2, 5, 6), v=normal(2, 2, 5, 6),
    )  # fmt: skip

    def layer(x, q_proj, k_proj, v_proj, out_proj, mask):
        q, k, v = ((x @ w).unflatten(-1, (-1, 4)).transpose(1, 2) for w in (q_proj, k_proj, v_proj))
        q, k = rotated(q, 500.0), rotated(k, 500.0)
        seen = torch.ones(6, 6).tril().bool() & mask.bool()[:, None, None, :]
        y = product(q, k, v, seen, enable_gqa=True)
        return y.transpose(1, 2).flatten(2) @ out_proj

    mask = np.ones((3, 6), np.int32)
    mask[1, 4:] = 0
    names = ("x", "q_proj", "k_proj", "v_proj", "out_proj")
    record(
        "attention/layer", layer, names, x=normal(3, 6, 16), q_proj=normal(16, 16), k_proj=normal(16, 8),
        v_proj=normal(16, 8), out_proj=normal(16, 16), mask=mask,
    )  # fmt: skip
    table = normal(7, 4)
    record("embedding/0", lambda i, w: F.embedding(i, w), ("w",), i=random.integers(0, 7, (2, 5)), w=table)


def metrics() -> None:
    for number, (classes, count) in enumerate([(3, 30), (7, 25), (2, 40)]):
        true, guessed = random.integers(0, classes, count), random.integers(0, max(2, classes - 2), count)
        case = f"metric/{number}"
        values[f"{case}/true"], values[f"{case}/guessed"] = true, guessed
        values[f"{case}/accuracy"] = np.asarray(sklearn.metrics.accuracy_score(true, guessed))
        for average in ("macro", "micro", "weighted"):
            for name in ("precision", "recall", "f1"):
                score = getattr(sklearn.metrics, f"{name}_score")(true, guessed, average=average, zero_division=0.0)
                values[f"{case}/{name}/{average}"] = np.asarray(score)


def state_dict() -> None:
    """A module in evaluation, its state dict, and what it gives."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3, padding=1, groups=2), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten(),
        torch.nn.Linear(64, 6), torch.nn.LayerNorm(6), torch.nn.ReLU(),
    )  # fmt: skip
    x = torch.tensor(normal(5, 2, 4, 4))
    for _ in range(3):
        module(x * 2 + 1)
    with torch.no_grad():
        for p in module.parameters():
            p += 0.1 * torch.randn_like(p)
    module.eval()
    values["state_dict/x"], values["state_dict/y"] = x.numpy(), module(x).detach().numpy()
    for key, value in module.state_dict().items():
        values[f"state_dict/entry/{key}"] = value.numpy()


if __name__ == "__main__":
    for make in (
        activations, convolutions, pools, normalizations, losses, optimizers, more_optimizers, attention, metrics,
        state_dict,
    ):  # fmt: skip
        make()
    np.savez_compressed(os.path.join(os.path.dirname(os.path.abspath(__file__)), "values.npz"), **values)
    print(f"{len(values)} arrays from torch {torch.__version__}, optax {optax.__version__}, "
          f"scikit-learn {sklearn.__version__}")
