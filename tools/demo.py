"""`kaun demo`: trains a small network on real handwritten digits and says what the compiler did for it."""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kaun.runtime.cache import CacheStatistics, default_cache
from kaun.runtime.threads import num_threads
from kaun.tools.compiled_steps import compiled_step
from rich.console import Console

import kaun as kn
from kaun import nx

BATCH_SIZE = 64
DEFAULT_CHECKPOINT = "kaun-digits.safetensors"
# Passes over the training set after which another changes the test accuracy no more.
EPOCHS = {"mlp": 30, "cnn": 10}

_NEXT_STEPS = """
Try next
  kaun demo --model {other}   {other_what}
  kaun bench              how fast the kernels are on this machine
  python                  and in it, for example:
    >>> import kaun as kn
    >>> kn.grad(lambda x: kn.nx.sum(x ** 3))(kn.nx.asarray([1.0, 2.0]))"""


@dataclass(frozen=True)
class Result:
    """What a run of the demo found out. Seconds are wall-clock, `training_seconds` without compiling."""

    accuracy: float
    parameters: int
    kernels_per_step: int
    steps: int
    training_seconds: float
    total_seconds: float
    cache: CacheStatistics
    checkpoint: str | None


@dataclass(frozen=True)
class Epochs:
    """Several passes over a pipeline as one sequence of batches, so that one progress bar covers them."""

    batches: Any
    count: int

    def __len__(self) -> int:
        return self.count * len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self.count):
            self.batches.reset()
            yield from self.batches


def network(model: str) -> tuple[kn.layer.Layer, str]:
    """The network and its description: "mlp" takes (N, 64), "cnn" (N, 1, 8, 8); both give logits (N, 10)."""
    layer = kn.layer
    if model == "mlp":
        layers = [
            layer.linear(in_features=64, out_features=128), layer.relu(),
            layer.linear(in_features=128, out_features=128), layer.relu(),
            layer.linear(in_features=128, out_features=10),
        ]  # fmt: skip
        return layer.sequential(layers), "64 pixels > 128 > 128 > 10 classes, ReLU between"
    layers = [
        layer.conv2d(in_channels=1, out_channels=16), layer.relu(),
        layer.conv2d(in_channels=16, out_channels=32), layer.relu(), layer.max_pool2d(kernel_size=2), layer.flatten(),
        layer.linear(in_features=512, out_features=128), layer.relu(),
        layer.linear(in_features=128, out_features=10),
    ]  # fmt: skip
    return layer.sequential(layers), "3x3 convolutions to 16 and 32 channels, pool, 512 > 128 > 10 classes"


def run(console: Console, *, model: str, seed: int, epochs: int, checkpoint: str) -> Result:
    """Train, test and save, telling `console` what happens."""
    started = time.perf_counter()
    before = default_cache().statistics
    x_train, y_train, x_test, y_test = kn.datasets.digits(flatten=model == "mlp")
    layers, description = network(model)
    steps = epochs * (x_train.shape[0] // BATCH_SIZE)
    schedule = kn.optim.schedule.cosine_decay(init_value=3e-3, decay_steps=steps)
    trainer = kn.train.make(model=layers, optimizer=kn.optim.adamw(lr=schedule))
    with nx.rng.run(seed=seed):
        state = kn.train.init(trainer)
        batches = kn.data.prepare((x_train, y_train), batch_size=BATCH_SIZE, shuffle=True)
    parameters = kn.ptree.count_parameters(state.vars.params)
    console.print(f"Teaching a network to read {x_train.shape[0]:,} handwritten digits of 8x8 pixels.\n")
    console.print(f"  network   {description}: {parameters:,} parameters", soft_wrap=True)

    # A state is never changed, so this step compiles the program and leaves no trace in the training.
    loss = kn.loss.cross_entropy_sparse
    tracing_started = time.perf_counter()
    _trained(trainer, state, [next(batches)], loss=loss)
    tracing_seconds = time.perf_counter() - tracing_started
    kernels = len(compiled_step(trainer).compiled.executable.program.calls)
    console.print(
        f"  step      forward pass, gradients and AdamW in {kernels} kernels, traced and compiled in "
        f"{tracing_seconds:.2f} s\n",
        soft_wrap=True,
    )

    training_started = time.perf_counter()
    state = _trained(trainer, state, Epochs(batches, epochs), loss=loss, progress=True)
    training_seconds = time.perf_counter() - training_started
    accuracy = kn.metric.accuracy(kn.train.predict(trainer, state, x_test), y_test)
    written = _save(console, checkpoint, state)
    return Result(
        accuracy=accuracy,
        parameters=parameters,
        kernels_per_step=kernels,
        steps=steps,
        training_seconds=training_seconds,
        total_seconds=time.perf_counter() - started,
        cache=_difference(default_cache().statistics, before),
        checkpoint=written,
    )


def _trained(trainer: kn.train.Trainer, state: kn.train.State, data: Iterable[Any], **options: Any) -> kn.train.State:
    """What `fit` returns, but for an interrupt, after which there is nothing to go on with: it is raised."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "train.fit: interrupted", UserWarning)
        try:
            return kn.train.fit(trainer, state, data, **options)
        except UserWarning as interrupted:
            raise KeyboardInterrupt from interrupted


def _save(console: Console, path: str, state: kn.train.State) -> str | None:
    """Where the parameters were written; None, with a message, when they could not be."""
    try:
        kn.checkpoint.save(path, state.vars.params)
    except OSError as error:
        reason = error.strerror or error
        message = f"\nCould not write the checkpoint {path}: {reason}. Choose another file with --checkpoint."
        console.print(message, markup=False, soft_wrap=True)
        return None
    return os.path.abspath(path)


def _difference(after: CacheStatistics, before: CacheStatistics) -> CacheStatistics:
    pairs = zip(dataclasses.astuple(after), dataclasses.astuple(before), strict=True)
    return CacheStatistics(*(now - then for now, then in pairs))


def report(console: Console, result: Result) -> None:
    """Print the result, one fact a line."""
    cache = result.cache
    rate = result.steps / result.training_seconds
    facts = {
        "test accuracy": f"[bold green]{100 * result.accuracy:.1f} %[/] of 360 digits it has never seen",
        "parameters": f"{result.parameters:,}",
        "kernels per step": f"{result.kernels_per_step}, run by one native call",
        "compiled": f"{cache.compiled} kernels in {cache.compile_seconds:.2f} s" if cache.compiled else "0 kernels",
        "cache hits": f"{cache.disk_hits} on disk, {cache.memory_hits} in memory",
        "speed": f"{rate:,.0f} steps/s, {rate * BATCH_SIZE:,.0f} digits/s on {_threads()}",
        "time": f"{result.total_seconds:.2f} s, of which training {result.training_seconds:.2f} s",
        "checkpoint": result.checkpoint or "not written",
    }
    console.print()
    for name, value in facts.items():
        console.print(f"  {name:<18}", value, sep="", soft_wrap=True, markup=name != "checkpoint")


def _threads() -> str:
    count = num_threads()
    return f"{count} thread{'s' if count > 1 else ''}"


def main(arguments: Sequence[str], prog: str = "kaun demo") -> int:
    """Run the demo. The exit status is 1 if the checkpoint asked for could not be written, 0 otherwise."""
    options = _options(arguments, prog)
    console = Console(highlight=False)
    result = run(
        console,
        model=options.model,
        seed=options.seed,
        epochs=options.epochs or EPOCHS[options.model],
        checkpoint=options.checkpoint or DEFAULT_CHECKPOINT,
    )
    report(console, result)
    other, what = ("cnn", "the same with convolutions") if options.model == "mlp" else ("mlp", "the same without them")
    console.print(_NEXT_STEPS.format(other=other, other_what=what), markup=False, soft_wrap=True)
    return 1 if options.checkpoint and result.checkpoint is None else 0


def _options(arguments: Sequence[str], prog: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=prog, description="Train a small network on handwritten digits, and tell what the compiler did for it."
    )
    parser.add_argument("--model", choices=sorted(EPOCHS), default="mlp", help="the network (default: mlp)")
    parser.add_argument("--seed", type=int, default=42, help="of weights and order of the data (default: 42)")
    parser.add_argument("--epochs", type=int, help="passes over the training set (default: 30, or 10 for cnn)")
    parser.add_argument("--checkpoint", metavar="FILE", help=f"where to write it (default: {DEFAULT_CHECKPOINT} here)")
    options = parser.parse_args(arguments)
    if not 0 <= options.seed < 2**64:
        parser.error(f"got --seed {options.seed}, expected 0 <= seed < 2**64")
    if options.epochs is not None and options.epochs < 1:
        parser.error(f"got --epochs {options.epochs}, expected at least 1")
    return options
