"""Programs as text: they print, parse, are verified, and the verifier finds what would go wrong."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from graph_strategies import graph_from_seed
from kaun.compiler.codegen.entry import emit_entry
from kaun.compiler.codegen.kernels import emit_kernel
from kaun.compiler.ir import VerificationError
from kaun.compiler.pipeline import Compilation
from kaun.compiler.program import Place
from kaun.compiler.program_run import run_program
from kaun.compiler.program_text import parse_program, print_program
from kaun.compiler.program_verify import verify_program
from kaun.compiler.schedule.parse import parse_kernel
from schedule_examples import MODELS, TARGET, trace

from kaun import nx


def parsed(text):
    return parse_program(
        text,
        lambda kernel, name: emit_kernel(parse_kernel(kernel), name, TARGET),
        lambda program, name, symbols: emit_entry(program, name, TARGET, symbols),
    )


def array(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def two_launches():
    """(x @ w) @ w, and what depends on x alone: two chains, then one."""
    return trace(lambda x, w: ((x @ w) @ w, x @ w[:, :40]), array(300, 256), array(256, 256)).compilation.program


def check_text(program):
    again = parsed(print_program(program))
    assert print_program(again) == print_program(program)
    assert again.entry.text == program.entry.text and again.entry.emit("e") == program.entry.emit("e")
    assert [m.text for m in again.kernels] == [m.text for m in program.kernels]
    assert [m.emit("k") for m in again.kernels] == [m.emit("k") for m in program.kernels]
    fields = ("inputs", "outputs", "results", "bundles", "arena_bytes", "scratch_bytes", "aliases")
    assert all(getattr(again, name) == getattr(program, name) for name in fields)
    verify_program(program)


@pytest.mark.parametrize("ten", range(8))
def test_programs_of_random_graphs_print_parse_and_hold_every_rule(ten):
    for seed in range(10 * ten, 10 * ten + 10):
        check_text(Compilation(graph_from_seed(seed).graph, TARGET).program)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_programs_of_training_steps_print_parse_and_hold_every_rule(model):
    check_text(model().compilation.program)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_training_step_written_over_its_inputs_computes_the_same(model):
    traced = model()
    program = traced.compilation.program
    # Everything that a step hands to the next: all outputs but the loss.
    assert {output for _, output in program.aliases} == set(range(1, len(program.outputs)))
    apart, in_place = (run_program(program, traced.arguments, in_place=over) for over in (False, True))
    for one, other in zip(apart, in_place, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_input_is_kept_that_is_read_again_handed_through_or_of_another_type():
    def program(function, *arrays):
        return trace(function, *arrays).compilation.program

    x, w = array(40, 40), array(40, 40)
    assert program(lambda x: x * 2, x).aliases == ((0, 0),)
    assert program(lambda x: (x * 2, x), x).aliases == ()
    assert program(lambda x: (x * 2, nx.reshape(x * 3, (1600,))), x).aliases in (((0, 0),), ((0, 1),))
    assert program(lambda x: nx.astype(x * 2, nx.bfloat16), x).aliases == ()
    assert program(lambda x, w: x @ w, x, w).aliases == ()
    # The product may be written where neither of its operands is, the sum over the other input.
    assert program(lambda x, w, b: x @ w + b, x, w, array(40, 40)).aliases == ((2, 0),)


def test_the_verifier_finds_outputs_over_inputs_that_are_still_read():
    program = two_launches()
    for pair in ((0, 0), (1, 0), (0, 1)):
        with pytest.raises(VerificationError, match=f"output {pair[1]} cannot be written over input {pair[0]}"):
            verify_program(dataclasses.replace(program, aliases=(pair,)))
    twice = trace(lambda x, y: (x + y, x - y), array(40), array(40)).compilation.program
    assert sorted(output for _, output in twice.aliases) == [0, 1]
    for aliases in (((0, 0), (0, 1)), ((0, 0), (1, 0))):
        with pytest.raises(VerificationError, match="cannot be written over"):
            verify_program(dataclasses.replace(twice, aliases=aliases))


def test_a_parsed_program_computes_the_same():
    traced = MODELS["perceptron"]()
    program = traced.compilation.program
    results = run_program(program, traced.arguments), run_program(parsed(print_program(program)), traced.arguments)
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        (r"program \{", "programme {"),
        (r"  input float32", "  input float33"),
        (r"  launch \{", "  lunch {"),
        (r"pieces (\d+)\n", r"pieces \1.\n"),
        (r"kernel (\d+) in", r"kernel 9\1 in"),
        (r" in \d+ \(", " in 0 ("),
        (r"\(input 0, ", "("),
        (r"\(input 0, ", "(input 7, "),
        (r"\(input 0, ", "(input 1, "),
        (r"\(input 0, ", "(arena 999999, "),
        (r"\(input 0, ", "(somewhere 0, "),
        (r"return output \d", "return output 17"),
        (r"return output \d", "return arena 0"),
        (r"  arena (\d+)", r"  alias input 0, output 9\n  arena \1"),
        (r"  arena (\d+)", r"  alias output 0, input 0\n  arena \1"),
        (r"\n\}\n$", "\n"),
        (r"  arena \d+", "  arena 64"),
        (r"  arena \d+", "  arena -1"),
    ],
)
def test_a_text_that_was_changed_is_refused_and_told_why(pattern, replacement):
    text, count = re.subn(pattern, replacement, print_program(two_launches()), count=1)
    assert count == 1
    with pytest.raises((ValueError, TypeError), match=r"program_text|dtype"):
        parsed(text)


def changed(program, step, **fields):
    """The program with other fields in the first chain of a launch."""
    first, *others = program.bundles[step]
    bundles = list(program.bundles)
    bundles[step] = (dataclasses.replace(first, **fields), *others)
    return dataclasses.replace(program, bundles=tuple(bundles))


def with_place(program, step, position, place):
    """The program with another place of the first call of a launch."""
    call = program.bundles[step][0].calls[0]
    places = (*call.places[:position], place, *call.places[position + 1 :])
    return changed(program, step, calls=(dataclasses.replace(call, places=places),))


def position_of(program, step, kind):
    return [place.kind for place in program.bundles[step][0].calls[0].places].index(kind)


def test_the_verifier_finds_reads_of_what_is_not_written_yet():
    program = two_launches()
    with pytest.raises(VerificationError, match="before its time"):
        verify_program(dataclasses.replace(program, bundles=program.bundles[::-1]))


def test_the_verifier_finds_chains_that_meet():
    program = two_launches()
    step = next(i for i, chains in enumerate(program.bundles) if "arena" in {p.kind for p in chains[0].calls[0].places})
    bundles = list(program.bundles)
    bundles[step] = (bundles[step][0], *bundles[step])
    with pytest.raises(VerificationError, match="meet"):
        verify_program(dataclasses.replace(program, bundles=tuple(bundles)))


def test_the_verifier_finds_a_call_that_writes_where_it_reads():
    x, w = array(64, 32), array(32, 32)
    program = trace(lambda x, w: nx.tanh(nx.tanh(x @ w) @ w) @ w, x, w).compilation.program
    verify_program(program)
    chain = program.bundles[0][0]
    (read, *others, _) = chain.calls[1].places
    assert read.kind == "arena"
    calls = (chain.calls[0], dataclasses.replace(chain.calls[1], places=(read, *others, read)), *chain.calls[2:])
    with pytest.raises(VerificationError, match=r"writes \('arena', 0, 0, 8192\) and reads or writes"):
        verify_program(changed(program, 0, calls=calls))


def test_the_verifier_finds_written_inputs_and_outputs_never_or_twice_written():
    program = two_launches()
    last = len(program.bundles) - 1
    where = position_of(program, last, "output")
    twin = Place("input", 0)
    with pytest.raises(VerificationError, match="writes an input"):
        verify_program(with_place(program, last, where, twin))
    with pytest.raises(VerificationError, match="is not written"):
        verify_program(dataclasses.replace(program, bundles=program.bundles[:-1]))
    with pytest.raises(VerificationError, match="written twice"):
        verify_program(dataclasses.replace(program, bundles=(*program.bundles, program.bundles[-1])))


def test_the_verifier_finds_chains_in_impossible_pieces_and_crooked_places():
    program = two_launches()
    chunks = program.bundles[0][0].calls[0].chunks
    for pieces in (0, chunks + 1):
        with pytest.raises(VerificationError, match="pieces"):
            verify_program(changed(program, 0, pieces=pieces))
    with pytest.raises(VerificationError, match="cache line"):
        verify_program(with_place(program, 0, position_of(program, 0, "arena"), Place("arena", 4)))
