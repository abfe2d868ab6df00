"""KAUN_DEBUG and `kn.debug.stages` print what runs: each program once, wherever its code comes from."""

from __future__ import annotations

import io

import pytest
from promises import fresh_process, mlp, started, trainer_of

import kaun as kn
from kaun import nx, observe

SCRIPT = """
import kaun as kn
from kaun import nx
double = kn.jit(lambda x: nx.sum(x * 2))
for _ in range(3):
    double(nx.asarray([1.0, 2.0]))
"""


def test_stages_are_printed_once_for_each_program() -> None:
    file = io.StringIO()
    triple = kn.jit(lambda x: x * 3)
    with kn.debug.stages("traced", "fused", file=file):
        for size in (3, 3, 4):
            triple(nx.asarray([1.0] * size))
    text = file.getvalue()
    assert text.count(": traced ---") == text.count(": fused ---") == 2
    assert "%2 = mul(%0, %1) : float32[3]" in text and "kernel 0: stores mul float32[4]" in text


def test_a_program_that_ran_before_is_printed_too_and_nothing_after_the_context() -> None:
    file = io.StringIO()
    quadruple = kn.jit(lambda x: x * 4)
    quadruple(nx.asarray([1.0]))
    with kn.debug.stages("llvm", file=file):
        quadruple(nx.asarray([1.0]))
    text = file.getvalue()
    assert text.startswith("--- program 1: 3 nodes, made at test_debug_stages.py:")
    assert "define void" in text
    quadruple(nx.asarray([1.0, 2.0]))
    assert file.getvalue() == text
    assert not observe.observers


def test_training_steps_are_printed() -> None:
    trainer = trainer_of(mlp())
    state = started(trainer)
    x, y = nx.ones((8, 20)), nx.zeros(8, dtype=kn.int32)
    file = io.StringIO()
    with kn.debug.stages("differentiated", file=file):
        kn.train.fit(trainer, state, [(x, y)] * 3, loss=kn.loss.cross_entropy_sparse)
    assert file.getvalue().count('"params.0.weight"') == 1


def test_the_environment_variable_prints_to_standard_error_also_what_comes_from_the_cache(tmp_path) -> None:
    for _ in range(2):
        done = fresh_process(SCRIPT, KAUN_DEBUG="traced, scheduled", KAUN_CACHE_DIR=str(tmp_path))
        assert done.returncode == 0 and not done.stdout
        assert done.stderr.count(": traced ---") == done.stderr.count(": scheduled ---") == 1
        assert "reduce_sum" in done.stderr and "program {" in done.stderr


def test_a_stage_that_is_none_is_named() -> None:
    with pytest.raises(ValueError, match=r"debug\.stages: got 'fusd', expected stages among traced, differentiated"):
        kn.debug.stages("fusd")
    with pytest.raises(ValueError, match=r"debug\.stages: got no stage"):
        kn.debug.stages()
    done = fresh_process(SCRIPT, KAUN_DEBUG="all")
    assert done.returncode == 0 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("KAUN_DEBUG: got 'all', expected stages among")
