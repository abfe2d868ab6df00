"""What the tests of promises share: small models, digests of states, counts of native calls, fresh processes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from kaun.runtime import threads
from kaun.runtime.cache import default_cache

import kaun as kn
from kaun import execution, layer, nx, optim, ptree, train


def mlp(inputs=20, hidden=16, classes=3, rate=0.0):
    """A perceptron with one hidden layer, with dropout if `rate` is positive."""
    middle = [layer.relu(), layer.dropout(rate=rate)] if rate else [layer.relu()]
    first = layer.linear(in_features=inputs, out_features=hidden)
    return layer.sequential([first, *middle, layer.linear(in_features=hidden, out_features=classes)])


def cnn(channels=(8, 16, 16), classes=10, rate=0.1):
    """Three convolutions with batch normalisation and one linear layer, for images (N, 1, 8, 8)."""
    a, b, c = channels
    return layer.sequential([
        layer.conv2d(in_channels=1, out_channels=a), layer.batch_norm(num_features=a, momentum=0.9), layer.relu(),
        layer.conv2d(in_channels=a, out_channels=b), layer.batch_norm(num_features=b, momentum=0.9), layer.relu(),
        layer.max_pool2d(kernel_size=(2, 2)),
        layer.conv2d(in_channels=b, out_channels=c), layer.relu(), layer.max_pool2d(kernel_size=(2, 2)),
        layer.flatten(), layer.dropout(rate=rate), layer.linear(in_features=4 * c, out_features=classes),
    ])  # fmt: skip


def trainer_of(model, lr=1e-2):
    return train.make(model=model, optimizer=optim.adamw(lr=lr))


def started(trainer, seed=0, dtype=kn.float32):
    with nx.rng.run(seed=seed):
        return train.init(trainer, dtype=dtype)


def examples(count, shape, classes, seed=0):
    """Normal inputs (count, *shape) and classes (count,)."""
    random = np.random.default_rng(seed)
    return random.normal(size=(count, *shape)).astype(np.float32), random.integers(0, classes, count)


def digest(tree):
    """A hash of the bytes of every leaf."""
    found = hashlib.sha256()
    for path, leaf in ptree.flatten_with_paths(tree):
        found.update(path.encode() + str(leaf.shape).encode() + leaf.numpy().tobytes())
    return found.hexdigest()


def copies(tree):
    return [np.array(leaf.numpy() if isinstance(leaf, nx.Tensor) else leaf) for leaf in ptree.leaves(tree)]


@dataclass
class Calls:
    count: int = 0


@contextlib.contextmanager
def native_calls(monkeypatch):
    """Counts the calls of programs' entry functions made inside; what was compiled before is compiled anew."""
    calls, pool = Calls(), threads.pool()
    native = pool.run

    def counted(record):
        calls.count += 1
        native(record)

    with monkeypatch.context() as patch:
        patch.setattr(pool, "run", counted)
        patch.setattr(execution, "_programs", OrderedDict())
        yield calls


@contextlib.contextmanager
def nothing_compiles():
    """Fails if a kernel is compiled, loaded or looked up inside."""
    before = default_cache().statistics
    yield
    assert default_cache().statistics == before


def fresh_process(code, seconds=120, **environment):
    """Runs Python code in a process of its own, which can import what is beside this file; the finished process."""
    # Appended after the library is imported: a folder here has its name.
    start = f"import sys, kaun; sys.path.append({str(Path(__file__).parent)!r})\n"
    return subprocess.run(
        [sys.executable, "-c", start + code], env={**os.environ, **environment},
        capture_output=True, text=True, timeout=seconds,
    )  # fmt: skip


def exit_code_in_child(function):
    """Exit code of a forked child that runs `function`; killed after a while if it hangs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later: fork with threads
        child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            function()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
