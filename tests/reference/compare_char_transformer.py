"""Trains examples/char_transformer.py and the same model in PyTorch from equal weights on equal batches.

    python tests/reference/compare_char_transformer.py [--steps 500]

needs both libraries and prints both validation losses; with `--record` it writes char_transformer.json beside this
file: PyTorch's losses on a text that every Python ships unchanged, for the tests to compare with.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import importlib.util
import io
import json
import pydoc_data.topics
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F

import kaun as kn
from kaun import nx

HERE = Path(__file__).resolve().parent
RECORDED_STEPS = 60


def example() -> ModuleType:
    path = HERE.parent.parent / "examples" / "char_transformer.py"
    spec = importlib.util.spec_from_file_location("char_transformer", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def zen() -> str:
    """The Zen of Python, which importing `this` prints: the same in every version."""
    with contextlib.redirect_stdout(io.StringIO()):
        import this
    return codecs.decode(this.s, "rot13")


def encoded(text: str) -> tuple[np.ndarray, np.ndarray, int]:
    """(training codes, validation codes, number of characters)."""
    alphabet = "".join(sorted(set(text)))
    codes = np.array([alphabet.index(character) for character in text])
    training, validation = np.split(codes, [int(0.9 * len(codes))])
    return training, validation, len(alphabet)


def rotated(x: torch.Tensor) -> torch.Tensor:
    """Rotary positions of x (B, H, T, D), pairing the two halves of D. Su et al., arXiv:2104.09864."""
    length, half = x.shape[-2], x.shape[-1] // 2
    angles = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(half) / half)
    cos, sin = angles.cos(), angles.sin()
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def forward(weights: dict[str, torch.Tensor], x: torch.Tensor, heads: int = 4) -> torch.Tensor:
    """The example's model, from parameters under kaun's paths."""
    table = weights["left.embedding"]
    h = table[x] * table.shape[1] ** 0.5
    width = h.shape[-1]
    last = max(int(name.split(".")[1]) for name in weights if name.startswith("right."))

    def norm(h: torch.Tensor, at: str) -> torch.Tensor:
        return F.layer_norm(h, (width,), weights[f"{at}.gamma"], weights[f"{at}.beta"])

    def linear(h: torch.Tensor, at: str) -> torch.Tensor:
        return h @ weights[f"{at}.weight"] + weights[f"{at}.bias"]

    for block in range(0, last - 1, 2):
        at = f"right.{block}"
        y = norm(h, f"{at}.0")
        q, k, v = (
            (y @ weights[f"{at}.1.{name}"]).unflatten(-1, (heads, -1)).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        y = F.scaled_dot_product_attention(rotated(q), rotated(k), v, is_causal=True)
        h = h + y.transpose(1, 2).flatten(2) @ weights[f"{at}.1.out_proj"]
        at = f"right.{block + 1}"
        h = h + linear(F.gelu(linear(norm(h, f"{at}.0"), f"{at}.1")), f"{at}.3")
    return linear(norm(h, f"right.{last - 1}"), f"right.{last}")


def learned_by_torch(module: ModuleType, text: np.ndarray, characters: int, steps: int) -> dict[str, torch.Tensor]:
    """The parameters after training as `learn` of the example does, from the weights that it starts with."""
    with nx.rng.run(seed=0):
        params = kn.layer.init(module.make_model(characters)).params
    weights = {name: torch.tensor(leaf.numpy()).requires_grad_() for name, leaf in kn.ptree.flatten_with_paths(params)}
    schedule = kn.optim.schedule.warmup_cosine_decay(
        init_value=0.0, peak_value=3e-3, warmup_steps=max(1, steps // 20), decay_steps=steps
    )
    optimizer = torch.optim.AdamW(weights.values(), lr=0.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    for number, (x, y) in enumerate(module.windows(text, steps, seed=1), 1):
        optimizer.param_groups[0]["lr"] = float(schedule(number))
        logits = forward(weights, torch.tensor(x))
        loss = F.cross_entropy(logits.flatten(0, 1), torch.tensor(y).flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimizer.step()
    return weights


def validation_losses(text: str, steps: int) -> dict[str, float]:
    """The mean loss over the validation part of `text` after training with either library."""
    module = example()
    training, validation, characters = encoded(text)
    batches = module.windows(validation, 16, seed=2)
    ours = module.mean_loss(*module.learn(training, characters, steps), batches)
    weights = learned_by_torch(module, training, characters, steps)
    batches.reset()
    with torch.no_grad():
        theirs = kn.metric.eval(
            lambda batch: F.cross_entropy(
                forward(weights, torch.tensor(batch[0])).flatten(0, 1), torch.tensor(batch[1]).flatten()
            ).item(),
            batches,
        )
    return {"kaun": ours, "torch": theirs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    topics = pydoc_data.topics.topics
    losses = validation_losses("\n".join(topics[name] for name in sorted(topics)), options.steps)
    apart = abs(losses["kaun"] / losses["torch"] - 1)
    print(f"{options.steps} steps: kaun {losses['kaun']:.4f}, torch {losses['torch']:.4f}, {100 * apart:.2f} % apart")
    if options.record:
        record = {
            "text": zen(), "steps": RECORDED_STEPS, **validation_losses(zen(), RECORDED_STEPS),
            "full": {"text": "pydoc_data.topics", "steps": options.steps, **losses, "torch_version": torch.__version__},
        }  # fmt: skip
        (HERE / "char_transformer.json").write_text(json.dumps(record, indent=1) + "\n")
        print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
