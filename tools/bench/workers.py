"""The processes that run the problems: one for each system, asked in turn, so that only one works at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

_PEERS = Path(__file__).with_name("peers.py")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "KAUN_NUM_THREADS")


class WorkerError(Exception):
    """A worker said that it could not do what it was asked, or ended."""


@dataclass(frozen=True)
class System:
    """Something to measure: how its worker is started, and the version of what it runs."""

    name: str
    title: str
    command: tuple[str, ...]
    version: str


def kaun_system() -> System:
    """Kaun, in the running interpreter."""
    from kaun import __version__

    return System("kaun", "Kaun", (sys.executable, "-m", "kaun.tools.bench.kaun_worker"), __version__)


def peer_systems(python: str) -> list[System]:
    """The systems that the interpreter `python` can run: NumPy always, PyTorch and JAX where they are installed."""
    candidates = (
        ("numpy", "NumPy", "numpy"),
        ("torch", "PyTorch", "torch"),
        ("torch-compile", "PyTorch compiled", "torch"),
        ("jax", "JAX", "jax"),
    )
    versions = _versions(python, {distribution for _, _, distribution in candidates})
    return [
        System(name, title, (python, str(_PEERS), name), versions[distribution])
        for name, title, distribution in candidates
        if distribution in versions
    ]


def _versions(python: str, distributions: set[str]) -> dict[str, str]:
    """The versions of those distributions that an interpreter has. ValueError if it cannot be started."""
    program = (
        "import importlib.metadata as m, json, sys\n"
        "found = {d.metadata['Name'].lower(): d.version for d in m.distributions() if d.metadata['Name']}\n"
        "print(json.dumps({n: found[n] for n in sys.argv[1:] if n in found}))"
    )
    command = [python, "-c", program, *sorted(distributions)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"cannot run {python}: {why}") from error
    if done.returncode:
        raise ValueError(f"{python} failed: {done.stderr.strip()[-300:]}")
    versions: dict[str, str] = json.loads(done.stdout)
    return versions


class Worker:
    """A system's process, for use as a context."""

    def __init__(self, system: System, threads: int, environment: Mapping[str, str] | None = None) -> None:
        self.system, self.threads, self.environment = system, threads, environment
        self._errors: IO[bytes] = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            system.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(threads)), **(environment or {})},
        )
        _limit(self._process.pid, threads)

    def ask(self, do: str, **request: Any) -> Any:
        """The answer to a request; WorkerError if there is none."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait()
            raise WorkerError(f"the process ended with status {self._process.returncode}: {self._last_words()}")
        reply = json.loads(line)
        if "error" in reply:
            raise WorkerError(reply["error"])
        return reply["answer"]

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        if kind is not None:
            self._process.kill()  # it may be in the middle of something long
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            self._process.kill()  # it has ended already
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()


def _limit(process: int, threads: int) -> None:
    """Keep a new process to as many processors as threads, where the system can: not every library can be told."""
    if hasattr(os, "sched_setaffinity"):
        processors = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(process, processors[:threads])
