"""The benchmark's training steps, compiled, to look inside: `kaun viz kaun.tools.bench.steps:gpt_128`."""

from __future__ import annotations

import json

from kaun.tools.bench import kaun_problems
from kaun.tools.bench.model_problems import MODELS, PARAMETER

import kaun as kn


def gpt_128() -> kn.train.CompiledStep:
    """GPT, 4 layers, d 128."""
    return _step("gpt-128")


def gpt_256() -> kn.train.CompiledStep:
    """GPT, 4 layers, d 256."""
    return _step("gpt-256")


def gpt_2_small() -> kn.train.CompiledStep:
    """GPT-2 small, 124 million parameters."""
    return _step("gpt-2-small")


def resnet_18() -> kn.train.CompiledStep:
    """ResNet-18 on 32 x 32 images."""
    return _step("resnet-18")


def _step(name: str) -> kn.train.CompiledStep:
    problem = next(model for model in MODELS if model.name == name)
    arrays = problem.arrays()
    settings = json.loads(str(arrays["settings"]))
    given = {key.removeprefix(PARAMETER): value for key, value in arrays.items() if key.startswith(PARAMETER)}
    trainer = kn.train.make(model=kaun_problems.model(settings), optimizer=kn.optim.adamw(lr=1e-3))
    state = kn.train.make_state(trainer, kaun_problems.variables(settings, given))
    x, y = arrays["x"][0], arrays["y"][0]
    specs = [kn.spec(array.shape, kn.float32 if array.dtype.kind == "f" else kn.int32) for array in (x, y)]
    return kn.train.compile(trainer, x=specs[0], y=specs[1], loss=kn.loss.cross_entropy_sparse, state=state)
