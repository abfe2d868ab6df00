"""Larger training steps to measure: transformers, a residual network and a text classifier, as named arrays."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = dict[str, Array]

# Different batches that a measurement goes through in turn.
BATCHES = 8
# A parameter is stored under its name after this.
PARAMETER = "w."


@dataclass(frozen=True)
class Model:
    """A training step of mean cross-entropy with AdamW (1e-3, 0.9, 0.999, 1e-8, 0.01).

    `settings["model"]` names the function of `kaun_models`, `peer_torch` and `peer_jax` that computes it, which are
    given the rest. `classes` are those of the inputs if they are tokens (0 for images) and of the targets.
    """

    name: str
    title: str
    settings: tuple[tuple[str, Any], ...]
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    x: tuple[int, ...]
    y: tuple[int, ...]
    classes: tuple[int, int]
    slow_to_compile: bool = False
    # Of losses after the first, which must agree to 1e-4 whatever this is. AdamW's first update is near plus or minus
    # the rate, so a gradient that is all rounding moves a weight as far as any other; deep networks show it.
    later_tolerance: float = 1e-4

    def arrays(self, seed: int = 0) -> Arrays:
        """`w.name` of each parameter, batches x and y, and the settings as JSON.

        Weights are normal, of variance 2 / fan_in if they are of convolutions, 1 / fan_in if they are matrices, and of
        deviation 0.02 if they are embeddings; gains are 1 and biases 0, each a little off so that none is neutral.
        """
        generator = np.random.default_rng(seed)
        parameters = {PARAMETER + name: _initial(name, shape, generator) for name, shape in self.shapes}
        tokens, targets = self.classes
        if tokens:
            x = generator.integers(0, tokens, (BATCHES, *self.x)).astype(np.int32)
        else:
            x = generator.standard_normal((BATCHES, *self.x)).astype(np.float32)
        y = generator.integers(0, targets, (BATCHES, *self.y)).astype(np.int32)
        return {"settings": np.array(json.dumps(dict(self.settings))), "x": x, "y": y} | parameters


def _initial(name: str, shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    if len(shape) == 1:
        centre, deviation = float(name.endswith("gain")), 0.02
    elif name.endswith("embedding"):
        centre, deviation = 0.0, 0.02
    elif len(shape) == 4:
        centre, deviation = 0.0, (2 / int(np.prod(shape[1:]))) ** 0.5
    else:
        centre, deviation = 0.0, shape[0] ** -0.5
    return generator.normal(centre, deviation, shape).astype(np.float32)


def gpt(
    name: str,
    blocks: int,
    width: int,
    heads: int,
    batch: int,
    tokens: int,
    vocabulary: int = 512,
    *,
    title: str = "",
    gpt2: bool = False,
) -> Model:
    """A transformer with learned positions, pre-norm, causal attention without biases, GELU and an untied output.

    With `gpt2` as GPT-2 has it: biases in attention, GELU by tanh, and the output multiplies by the token embedding.
    Radford et al., Language models are unsupervised multitask learners (2019).
    """
    shapes: list[tuple[str, tuple[int, ...]]] = [
        ("tokens.embedding", (vocabulary, width)),
        ("positions.embedding", (tokens, width)),
    ]
    for block in range(blocks):
        entries = {
            "norm1.gain": (width,), "norm1.bias": (width,),
            "q": (width, width), "k": (width, width), "v": (width, width), "out": (width, width),
            **({f"{part}.bias": (width,) for part in ("q", "k", "v", "out")} if gpt2 else {}),
            "norm2.gain": (width,), "norm2.bias": (width,),
            "up.weight": (width, 4 * width), "up.bias": (4 * width,),
            "down.weight": (4 * width, width), "down.bias": (width,),
        }  # fmt: skip
        shapes += [(f"{block}.{entry}", shape) for entry, shape in entries.items()]
    shapes += [("norm.gain", (width,)), ("norm.bias", (width,))]
    if not gpt2:
        shapes.append(("head", (width, vocabulary)))
    return Model(
        name=name,
        title=title or f"GPT {blocks} layers, d {width}, {heads} heads, {batch} x {tokens} tokens",
        settings=(("model", "gpt"), ("blocks", blocks), ("heads", heads), ("gpt2", gpt2)),
        shapes=tuple(shapes),
        x=(batch, tokens),
        y=(batch, tokens),
        classes=(vocabulary, vocabulary),
        slow_to_compile=gpt2,
        later_tolerance=2e-3 if gpt2 else 1e-4,
    )


def resnet(
    name: str, title: str, batch: int, side: int, stages: tuple[int, ...], blocks: int, classes: int = 10
) -> Model:
    """A residual network on images (3, side, side): 3x3 stem, `blocks` basic blocks for each width in `stages`.

    Stages after the first halve the image, with a 1x1 projection beside their first block. He et al. (2016).
    """

    def normed(conv: str, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
        return [(f"{conv}.weight", shape), (f"{conv}.gain", shape[:1]), (f"{conv}.bias", shape[:1])]

    shapes = normed("stem", (stages[0], 3, 3, 3))
    previous = stages[0]
    for stage, width in enumerate(stages):
        for block in range(blocks):
            shapes += normed(f"{stage}.{block}.first", (width, previous, 3, 3))
            shapes += normed(f"{stage}.{block}.second", (width, width, 3, 3))
            if stage and not block:
                shapes += normed(f"{stage}.{block}.projection", (width, previous, 1, 1))
            previous = width
    shapes += [("head.weight", (previous, classes)), ("head.bias", (classes,))]
    return Model(
        name=name,
        title=title,
        settings=(("model", "resnet"), ("stages", len(stages)), ("blocks", blocks)),
        shapes=tuple(shapes),
        x=(batch, 3, side, side),
        y=(batch,),
        classes=(0, classes),
        slow_to_compile=True,
        later_tolerance=2e-3,
    )


def classifier(
    name: str, title: str, vocabulary: int, width: int, batch: int, tokens: int, hidden: int, classes: int = 4
) -> Model:
    """A text classifier: the mean of the tokens' embeddings, a dense layer with ReLU, a dense layer."""
    shapes = (
        ("tokens.embedding", (vocabulary, width)),
        ("hidden.weight", (width, hidden)), ("hidden.bias", (hidden,)),
        ("head.weight", (hidden, classes)), ("head.bias", (classes,)),
    )  # fmt: skip
    settings = (("model", "classifier"),)
    return Model(name, title, settings, shapes, (batch, tokens), (batch,), (vocabulary, classes))


MODELS: tuple[Model, ...] = (
    gpt("gpt-128", blocks=4, width=128, heads=4, batch=12, tokens=64),
    gpt("gpt-256", blocks=4, width=256, heads=8, batch=8, tokens=128),
    gpt("gpt-2-small", 12, 768, 12, 1, 256, 50257, title="GPT-2 small, 1 x 256 tokens", gpt2=True),
    resnet("resnet-18", "ResNet-18 on 32x32, batch 32", 32, 32, (64, 128, 256, 512), 2),
    classifier("text", "text classifier, 20000 x 128 embedding bag, 64 x 128 tokens", 20000, 128, 64, 128, 128),
)
