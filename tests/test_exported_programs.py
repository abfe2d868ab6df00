"""Exported training steps run in C, C++ and through ctypes, with the bits they have in Python."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from c_programs import STRICT_CPLUSPLUS, Library, build, c_compiler, printed_losses, raw, run, tool
from docs_pages import ROOT, blocks
from kaun.runtime.export import Exported
from kaun.runtime.target import Target, host, with_vector_bits
from promises import exit_code_in_child

import kaun as kn
from kaun import nx

Array = Any
BATCH = 64


def perceptron(rate: float = 0.0) -> kn.layer.Layer:
    return kn.layer.sequential([
        kn.layer.linear(in_features=64, out_features=256), kn.layer.relu(), kn.layer.dropout(rate=rate),
        kn.layer.linear(in_features=256, out_features=10),
    ])  # fmt: skip


def convolutional() -> kn.layer.Layer:
    return kn.layer.sequential([
        kn.layer.conv2d(in_channels=1, out_channels=8), kn.layer.batch_norm(num_features=8), kn.layer.relu(),
        kn.layer.dropout(rate=0.25), kn.layer.flatten(), kn.layer.linear(in_features=512, out_features=10),
    ])  # fmt: skip


def digit_batches(count: int, shape: Sequence[int] = (64,)) -> list[tuple[Array, Array]]:
    """Batches of the digits, over and over."""
    data = kn.datasets.digits(flatten=True)
    images, labels = data.x_train.numpy(), data.y_train.numpy()
    starts = [BATCH * (number % (len(images) // BATCH)) for number in range(count)]
    return [(images[s : s + BATCH].reshape(-1, *shape), labels[s : s + BATCH]) for s in starts]


class Digits:
    """A compiled step for the digits, the state it starts from, and what Python makes of batches."""

    def __init__(
        self, model: kn.layer.Layer, optimizer: kn.optim.Transformation | None = None, *, shape: Sequence[int] = (64,),
        target: Target | str = "host", dtype: Any = kn.float32,
    ) -> None:  # fmt: skip
        self.trainer = kn.train.make(model=model, optimizer=optimizer or kn.optim.adamw(lr=1e-3))
        with nx.rng.run(seed=3):
            self.start = kn.train.init(self.trainer, dtype=dtype)
        self.shape = shape
        x, y = kn.spec((BATCH, *shape), dtype), kn.spec(BATCH, kn.int32)
        self.step = kn.train.compile(
            self.trainer, x=x, y=y, loss=kn.loss.cross_entropy_sparse, state=self.start, target=target
        )

    def batches(self, count: int) -> list[tuple[Array, Array]]:
        return digit_batches(count, self.shape)

    def trained(self, count: int) -> tuple[list[Array], kn.train.State]:
        """The losses, and the state after so many steps of `train.step`."""
        state, losses = self.start, []
        for x, y in self.batches(count):
            value, state = kn.train.step(
                self.trainer, state, x, loss=lambda output, y=y: kn.loss.cross_entropy_sparse(output, nx.asarray(y))
            )
            losses.append(value.numpy())
        return losses, state

    def trained_on_its_target(self, count: int) -> list[Array]:
        """The losses of so many steps of the compiled step."""
        state, losses = self.start, []
        for x, y in self.batches(count):
            value, state = self.step(state, x, y)
            losses.append(value.numpy())
        return losses


def leaves_of(state: kn.train.State) -> list[Array]:
    return [leaf.numpy() for leaf in kn.ptree.leaves(state.to_tree())]


def assert_same_bits(found: Sequence[Array], expected: Sequence[Array]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits(perceptron())


@pytest.fixture(scope="module")
def exported(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return digits.step.export(tmp_path_factory.mktemp("export"))


def test_a_c_program_trains_the_digits_classifier_with_pythons_bits_on_one_thread_and_on_two(
    digits: Digits, exported: Exported
) -> None:
    losses, state = digits.trained(200)
    program = build(exported)
    folder = exported.directory
    (folder / "digits.raw").write_bytes(raw(digits.batches(len(digits.batches(1)) * 22)))
    assert any(call.chunks > 1 for call in digits.step.functions["step"].function.program.calls)
    for threads in (1, 2):
        words = ["digits.raw", "--steps", 200, "--threads", threads, "--save", f"after{threads}.state"]
        text = run(program, *words, folder=folder)
        assert_same_bits(list(printed_losses(text)), losses)
        after = digits.step.read_state(folder / f"after{threads}.state")
        assert_same_bits(leaves_of(after), leaves_of(state))
    assert losses[-1] < 0.5 < losses[0]


def test_the_library_takes_the_same_steps_and_predicts_and_evaluates_with_pythons_bits(
    digits: Digits, exported: Exported
) -> None:
    batches = digits.batches(9)
    library = Library(exported, threads=2)
    assert library.code("init", library.state.address) == 0
    state = digits.start
    for x, y in batches[:-1]:
        value, state = digits.step(state, x, y)
        assert_same_bits(library.call("run", x, y), [value.numpy()])
    x, y = batches[-1]
    before = library.state.bytes()
    assert_same_bits(library.call("predict", x), [digits.step.predict(state, x).numpy()])
    assert_same_bits(library.call("evaluate", x, y), [digits.step.evaluate(state, x, y).numpy()])
    assert library.state.bytes() == before
    assert int(library.leaf("step")) == 8
    assert_same_bits([library.leaf("params.3.bias")], [state.vars.params[3]["bias"].numpy()])
    library.close()


@pytest.mark.parametrize("bits", [512, 256, 128])
def test_code_for_narrower_vectors_has_the_bits_of_python_on_that_target(bits: int, tmp_path: Path) -> None:
    if bits > host().vector_bits:
        pytest.skip("wider than this processor")
    narrow = Digits(perceptron(), target=with_vector_bits(host(), bits))
    library = Library(narrow.step.export(tmp_path))
    assert library.code("init", library.state.address) == 0
    state = narrow.start
    for x, y in narrow.batches(5):
        value, state = narrow.step(state, x, y)
        assert_same_bits(library.call("run", x, y), [value.numpy()])


MODELS: dict[str, Callable[[], Digits]] = {
    "dropout": lambda: Digits(perceptron(0.3), kn.optim.sgd(lr=0.1, momentum=0.9)),
    "convolutions, batch norm and dropout": lambda: Digits(convolutional(), shape=(1, 8, 8)),
    "bfloat16": lambda: Digits(perceptron(), dtype=kn.bfloat16),
    "float64": lambda: Digits(perceptron(), kn.optim.adam(lr=1e-3), dtype=kn.float64),
    "clipped": lambda: Digits(
        perceptron(),
        kn.optim.chain([kn.optim.clip_by_global_norm(0.1), kn.optim.scale_by_adam(), kn.optim.scale(-0.01)]),
    ),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_steps_of_other_models_have_pythons_bits(make: Callable[[], Digits], tmp_path: Path) -> None:
    made = make()
    losses, state = made.trained(6)
    library = Library(made.step.export(tmp_path), threads=2)
    assert library.code("init", library.state.address) == 0
    found = [library.call("run", np.asarray(x, made.step.functions["step"].inputs[-2].dtype.numpy), y)[0]
             for x, y in made.batches(6)]  # fmt: skip
    assert_same_bits(found, losses)
    assert_same_bits([library.leaf(slot.leaf.name) for slot in library.layout.state.slots], leaves_of(state))
    library.close()


def test_rates_of_a_schedule_that_python_computes_are_inputs_of_a_step(tmp_path: Path) -> None:
    rates = [0.1 / (1 + step) for step in range(5)]
    made = Digits(perceptron(), kn.optim.sgd(lr=lambda step: rates[step - 1]))
    losses, state = made.trained(5)
    exported = made.step.export(tmp_path)
    library = Library(exported)
    (entry,) = [entry for entry in exported.layout.entries if entry.verb == "run"]
    assert len(entry.inputs) == 3
    where = next(number for number, leaf in enumerate(entry.inputs) if leaf.name.startswith("rates"))
    batches = [list(batch) for batch in made.batches(5)]
    for batch, rate in zip(batches, rates, strict=True):
        batch.insert(where, np.float32(rate))
    assert library.code("init", library.state.address) == 0
    assert_same_bits([library.call("run", *batch)[0] for batch in batches], losses)
    # And as a part of each batch in a file.
    program = build(exported)
    (tmp_path / "data.raw").write_bytes(raw(batches))
    text = run(program, "data.raw", "--save", "after.state", folder=tmp_path)
    assert_same_bits(list(printed_losses(text)), losses)
    assert_same_bits(leaves_of(made.step.read_state(tmp_path / "after.state")), leaves_of(state))


def test_two_states_are_trained_at_once_on_threads_of_their_own(digits: Digits, exported: Exported) -> None:
    losses, state = digits.trained(40)
    libraries = [Library(exported, threads=count) for count in (1, 2, 2)]
    found: dict[int, list[Array]] = {}

    def train(number: int) -> None:
        library = libraries[number]
        assert library.code("init", library.state.address) == 0
        found[number] = [library.call("run", x, y)[0] for x, y in digits.batches(40)]

    runners = [threading.Thread(target=train, args=(number,)) for number in range(len(libraries))]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join()
    for number, library in enumerate(libraries):
        assert_same_bits(found[number], losses)
        assert_same_bits([library.leaf(slot.leaf.name) for slot in library.layout.state.slots], leaves_of(state))
        library.close()


# Compilers and tools


def test_the_program_is_c_plus_plus_too(digits: Digits, exported: Exported) -> None:
    program = build(exported, *STRICT_CPLUSPLUS, compiler=tool("c++", "g++", "clang++"), name="main_cpp")
    (exported.directory / "two.raw").write_bytes(raw(digits.batches(2)))
    assert_same_bits(list(printed_losses(run(program, "two.raw", folder=exported.directory))), digits.trained(2)[0])


def test_the_header_is_read_by_itself_and_twice(exported: Exported, tmp_path: Path) -> None:
    source = f'#include "{exported.directory}/step.h"\n' * 2 + "int main(void) { return KAUN_STEP_OK; }\n"
    (tmp_path / "main.c").write_text(source)
    for flags in (["-std=c99"], ["-std=c11"], ["-x", "c++", "-std=c++11"], ["-x", "c++", "-std=c++17"]):
        compiler = c_compiler() if "c++" not in flags else tool("c++", "g++", "clang++")
        run(compiler, *flags, "-Wall", "-Wextra", "-pedantic", "-Werror", "-c", "main.c", folder=tmp_path)


def test_the_program_is_clean_under_sanitizers(digits: Digits, exported: Exported) -> None:
    flags = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    try:
        program = build(exported, *flags, name="sanitized")
    except AssertionError as error:
        if "asan" in str(error) or "sanitize" in str(error):
            pytest.skip("the compiler has no sanitizers")
        raise
    (exported.directory / "few.raw").write_bytes(raw(digits.batches(3)))
    # What is allocated is kept until the program ends, so nothing is looked for that leaks.
    words = ["few.raw", "--threads", 2, "--save", "sanitized.state"]
    text = run(program, *words, folder=exported.directory, environment={"ASAN_OPTIONS": "detect_leaks=0"})
    assert_same_bits(list(printed_losses(text)), digits.trained(3)[0])


@pytest.mark.parametrize("bits", [256, 128])
def test_the_program_is_clean_under_valgrind(bits: int, tmp_path: Path) -> None:
    # Valgrind knows no 512-bit vectors.
    valgrind = tool("valgrind")
    if bits > host().vector_bits:
        pytest.skip("wider than this processor")
    narrow = Digits(convolutional(), shape=(1, 8, 8), target=with_vector_bits(host(), bits))
    program = build(narrow.step.export(tmp_path), "-g")
    (tmp_path / "data.raw").write_bytes(raw(narrow.batches(2)))
    for threads in (1, 2):
        words = ["data.raw", "--threads", threads, "--save", "after.state"]
        done = subprocess.run(
            [valgrind, "--error-exitcode=9", "-q", program, *map(str, words)], cwd=tmp_path, capture_output=True,
            text=True, timeout=600,
        )  # fmt: skip
        if "unhandled instruction bytes" in done.stderr or "Unrecognised instruction" in done.stderr:
            pytest.skip("valgrind does not know an instruction of this processor")
        assert done.returncode == 0 and done.stderr == "", done.stderr
        assert_same_bits(list(printed_losses(done.stdout)), narrow.trained_on_its_target(2))


def test_cmake_builds_the_program_and_projects_that_take_the_folder_in(
    digits: Digits, exported: Exported, tmp_path: Path
) -> None:
    cmake = tool("cmake")
    c_compiler()
    run(cmake, "-S", exported.directory, "-B", tmp_path / "own", folder=tmp_path)
    run(cmake, "--build", tmp_path / "own", folder=tmp_path)
    (tmp_path / "two.raw").write_bytes(raw(digits.batches(2)))
    text = run(tmp_path / "own" / "kaun_step_main", "two.raw", folder=tmp_path)
    assert_same_bits(list(printed_losses(text)), digits.trained(2)[0])

    other = tmp_path / "other"
    other.mkdir()
    (other / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.10)\nproject(other CXX C)\n"
        f'add_subdirectory("{exported.directory}" step)\nadd_executable(other other.cpp)\n'
        "target_link_libraries(other PRIVATE kaun_step)\n"
    )
    (other / "other.cpp").write_text(
        '#include "step.h"\n#include <cstdio>\nalignas(64) static unsigned char state[KAUN_STEP_STATE_SIZE];\n'
        'int main() { std::printf("%d\\n", kaun_step_init(state)); return 0; }\n'
    )
    run(cmake, "-S", other, "-B", other / "build", folder=other)
    run(cmake, "--build", other / "build", folder=other)
    assert run(other / "build" / "other", folder=other) == "0\n"


def test_the_program_of_the_guide_compiles_and_trains(digits: Digits, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "aot.md").read_text()
    (program,) = [block.text for block in blocks(page) if block.info == "c"]
    exported = digits.step.export(tmp_path, name="digits")
    (tmp_path / "train.c").write_text(program)
    built = build(exported, "-std=c11", sources=["train.c"], name="train")
    lines = run(built, folder=tmp_path).splitlines()
    state, zeros, losses = digits.start, np.zeros((BATCH, 64), np.float32), []
    for _ in lines:
        loss, state = digits.step(state, zeros, np.zeros(BATCH, np.int32))
        losses.append(float(loss))
    assert lines == [f"step {number}: loss {loss:g}" for number, loss in enumerate(losses, 1)] and len(lines) == 3


def test_the_archive_links_as_the_object_does(digits: Digits, exported: Exported, tmp_path: Path) -> None:
    assert "step.a" in exported.files
    run(
        c_compiler(), "-I", exported.directory, "-o", tmp_path / "main", exported.directory / "main.c",
        exported.directory / "step.a", "-pthread", folder=tmp_path,
    )  # fmt: skip
    (tmp_path / "two.raw").write_bytes(raw(digits.batches(2)))
    text = run(tmp_path / "main", "two.raw", folder=tmp_path)
    assert_same_bits(list(printed_losses(text)), digits.trained(2)[0])


def test_two_exports_of_different_names_go_into_one_program(digits: Digits, tmp_path: Path) -> None:
    other = Digits(perceptron(0.5))
    digits.step.export(tmp_path, name="plain")
    exported = other.step.export(tmp_path, name="dropping")
    (tmp_path / "both.c").write_text(
        '#include "plain.h"\n#include "dropping.h"\n#include <stdlib.h>\n'
        "int main(void) {\n"
        "    void *one = aligned_alloc(64, KAUN_PLAIN_STATE_SIZE);\n"
        "    void *two = aligned_alloc(64, KAUN_DROPPING_STATE_SIZE);\n"
        "    return kaun_plain_init(one) || kaun_dropping_init(two);\n}\n"
    )
    program = build(exported, "-std=c11", sources=["both.c", "plain.o"], name="both")
    run(program, folder=tmp_path)


def test_a_function_is_exported_without_a_state(tmp_path: Path) -> None:
    weights = nx.asarray(np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32))

    def scores(x: nx.Tensor, mask: nx.Tensor) -> tuple[nx.Tensor, nx.Tensor]:
        return nx.where(mask, x @ weights, 0.0), x.sum()

    compiled = kn.compile(scores, kn.spec((7, 16)), kn.spec((7, 5), kn.bool_))
    exported = compiled.export(tmp_path)
    assert exported.layout.prefix == "kaun_scores" and exported.state_bytes == 0
    draw = np.random.default_rng(1)
    calls = [(draw.normal(size=(7, 16)).astype(np.float32), draw.random((7, 5)) < 0.5) for _ in range(3)]
    expected = [[leaf.numpy() for leaf in compiled(*each)] for each in calls]
    library = Library(exported)
    for each, wanted in zip(calls, expected, strict=True):
        assert_same_bits(library.call("run", *each), wanted)
    program = build(exported)
    (tmp_path / "data.raw").write_bytes(raw(calls))
    assert run(program, "data.raw", "--outputs", "results.raw", folder=tmp_path) == "calls: 3\n"
    assert (tmp_path / "results.raw").read_bytes() == raw(expected)


@pytest.mark.parametrize(
    "given",
    [
        ["file", "state", "step", "options", "workspace", "inputs", "outputs", "results"],
        ["argc", "argv", "main", "printf", "fopen", "fail", "check", "read_array", "read", "read_batch", "value"],
        ["NULL", "EOF", "SEEK_SET", "INT32_MAX", "I", "errno", "stdin", "linux", "typeof", "size_t", "uint8_t"],
        ["X", "x", "x_values", "x_2", "RUN", "kaun_f_run", "class_", "threads", "data", "batch"],
    ],
)
def test_arguments_may_have_any_names(given: list[str], tmp_path: Path) -> None:
    scope: dict[str, Callable[..., nx.Tensor]] = {}
    exec(f"def f({', '.join(given)}): return {' + '.join(given)}", scope)  # parameters named like what C knows
    exported = kn.compile(scope["f"], *[kn.spec(3)] * len(given)).export(tmp_path)
    (tmp_path / "data.raw").write_bytes(raw([[np.full(3, number, np.float32) for number in range(len(given))]]))
    for flags in ((), ("-std=gnu11",), STRICT_CPLUSPLUS):
        program = build(exported, "-Wconversion", *flags)
        run(program, "data.raw", "--outputs", "results.raw", folder=tmp_path)
        assert np.fromfile(tmp_path / "results.raw", np.float32).tolist() == [sum(range(len(given)))] * 3


def test_a_program_ends_whose_data_cannot_be_read_again(tmp_path: Path) -> None:
    exported = kn.compile(lambda x: x * 2, kn.spec(3)).export(tmp_path, name="double_it")
    program = build(exported)
    done = subprocess.run(
        [program, "/dev/stdin", "--steps", "3"], input=raw([[np.ones(3, np.float32)]]), capture_output=True, timeout=60
    )
    assert done.returncode == 1 and b"cannot be read again" in done.stderr
    (tmp_path / "data.raw").write_bytes(raw([[np.ones(3, np.float32)]]))
    assert run(program, "data.raw", "--steps", 3, folder=tmp_path) == "calls: 3\n"


def test_a_program_without_a_byte_of_data_needs_no_file(tmp_path: Path) -> None:
    exported = kn.compile(lambda x: x.sum(), kn.spec((0, 4))).export(tmp_path, name="nothing")
    assert run(build(exported), "--steps", 2, folder=tmp_path) == "calls: 2\n"


def test_a_function_of_nothing_is_called_without_data(tmp_path: Path) -> None:
    compiled = kn.compile(lambda: nx.arange(5, dtype=kn.float32) * 2)
    exported = compiled.export(tmp_path, name="table")
    program = build(exported)
    assert run(program, "--steps", 2, "--outputs", "results.raw", folder=tmp_path) == "calls: 2\n"
    assert np.fromfile(tmp_path / "results.raw", np.float32).tolist() == [0, 2, 4, 6, 8] * 2


# The state at the start, and states in files


def test_a_state_in_a_file_beside_the_object_is_where_the_program_starts(digits: Digits, tmp_path: Path) -> None:
    exported = digits.step.export(tmp_path, initial="file")
    assert "step.state" in exported.files and "kaun_step_init" not in (tmp_path / "step.h").read_text()
    assert_same_bits(leaves_of(digits.step.read_state(tmp_path / "step.state")), leaves_of(digits.start))
    program = build(exported)
    (tmp_path / "two.raw").write_bytes(raw(digits.batches(2)))
    losses, _ = digits.trained(2)
    assert_same_bits(list(printed_losses(run(program, "two.raw", folder=tmp_path))), losses)
    # A second run goes on where a first one stopped.
    run(program, "two.raw", "--steps", 1, "--save", "one.state", folder=tmp_path)
    (tmp_path / "second.raw").write_bytes(raw(digits.batches(2)[1:]))
    text = run(program, "second.raw", "--state", "one.state", folder=tmp_path)
    assert_same_bits(list(printed_losses(text)), losses[1:])


def failure(*command: object, folder: Path) -> str:
    done = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done.stderr
    return done.stderr


def test_a_program_without_a_state_says_how_one_is_made(digits: Digits, tmp_path: Path) -> None:
    exported = digits.step.export(tmp_path, initial="file")
    program = build(exported)
    (tmp_path / "one.raw").write_bytes(raw(digits.batches(1)))
    (tmp_path / "step.state").unlink()
    told = failure(program, "one.raw", folder=tmp_path)
    assert told.startswith("step.state: cannot be read, and there are no other numbers to start from. In Python,\n")
    assert "step.write_state(state, path)" in told and "kn.train.compile(..., state=state)" in told


def test_the_program_says_in_words_which_state_and_how_many_threads(
    digits: Digits, exported: Exported, tmp_path: Path
) -> None:
    program = build(exported, name="wording")
    (tmp_path / "one.raw").write_bytes(raw(digits.batches(1)))
    told = failure(program, "one.raw", "--state", "one.raw", folder=tmp_path)
    assert told == "one.raw: not a state of this model, not whole, or not of this size\n"
    told = failure(program, "one.raw", "--threads", 99999, folder=tmp_path)
    assert told == "--threads: expected 1 to 64\n"


def test_large_states_are_kept_beside_the_object_unless_asked_otherwise(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kaun.runtime.export.EMBEDDED_BYTES", 1000)
    assert "step.state" in digits.step.export(tmp_path).files
    assert "step.state" not in digits.step.export(tmp_path, initial="embedded").files
    assert not (tmp_path / "step.state").exists()


FILE, NULL, ALIGNMENT, WORKSPACE, THREADS = -4, -1, -2, -3, -5


def test_a_state_that_is_damaged_or_not_of_this_step_is_refused_and_nothing_is_written(
    digits: Digits, exported: Exported
) -> None:
    library = Library(exported)
    assert library.code("init", library.state.address) == 0
    size = 64 + exported.state_bytes
    content = ctypes.create_string_buffer(size + 1)
    save = lambda count: library.code("save", library.state.address, content, ctypes.c_size_t(count))  # noqa: E731
    load = lambda data, count: library.code("load", library.state.address, data, ctypes.c_size_t(count))  # noqa: E731
    assert save(size - 1) == FILE and save(size + 1) == FILE and save(size) == 0
    good = content.raw[:size]
    ctypes.memset(library.state.address, 0x11, exported.state_bytes)
    for position in [*range(64), 64, 65, 1000, size - 1]:
        bad = bytearray(good)
        bad[position] ^= 0x40
        assert load(bytes(bad), size) == FILE, position
    swapped = good[:64] + good[72:80] + good[64:72] + good[80:]
    assert load(swapped, size) == FILE
    for count in (0, 1, 63, 64, size - 1, size + 1):
        assert load(good + b"\0", count) == FILE
    assert library.state.bytes() == b"\x11" * exported.state_bytes
    assert load(good, size) == 0
    assert_same_bits([library.leaf(slot.leaf.name) for slot in library.layout.state.slots], leaves_of(digits.start))


def test_addresses_that_cannot_be_are_refused(exported: Exported) -> None:
    library = Library(exported)
    state, workspace = library.state.address, library.workspace.address
    x, y, loss = np.zeros((BATCH, 64), np.float32), np.zeros(BATCH, np.int32), np.zeros(1, np.float32)
    inputs, outputs = (ctypes.c_void_p * 2)(x.ctypes.data, y.ctypes.data), (ctypes.c_void_p * 1)(loss.ctypes.data)
    assert library.code("init", None) == NULL and library.code("init", state + 4) == ALIGNMENT
    assert library.code("init", state) == 0
    before = library.state.bytes()
    for arguments, expected in (
        ((None, inputs, outputs, workspace), NULL),
        ((state, None, outputs, workspace), NULL),
        ((state, inputs, None, workspace), NULL),
        ((state, inputs, outputs, None), NULL),
        ((state + 32, inputs, outputs, workspace), ALIGNMENT),
        ((state, inputs, outputs, workspace + 8), ALIGNMENT),
        ((state, (ctypes.c_void_p * 2)(x.ctypes.data, None), outputs, workspace), NULL),
        ((state, (ctypes.c_void_p * 2)(x.ctypes.data + 2, y.ctypes.data), outputs, workspace), ALIGNMENT),
        ((state, inputs, (ctypes.c_void_p * 1)(None), workspace), NULL),
    ):
        assert library.code("run", *arguments) == expected
    ctypes.memset(workspace, 0x22, 8)
    assert library.code("run", state, inputs, outputs, workspace) == WORKSPACE
    assert library.code("threads_start", workspace, 2) == WORKSPACE
    assert library.code("threads_stop", workspace) == WORKSPACE
    ctypes.memset(workspace, 0, 8)
    assert library.code("threads_start", workspace, 0) == THREADS == library.code("threads_start", workspace, 65)
    assert library.code("threads_start", None, 1) == NULL
    assert library.state.bytes() == before
    assert library.code("run", state, inputs, outputs, workspace) == 0


def test_threads_of_a_workspace_are_started_once_and_stopped_as_often_as_one_likes(exported: Exported) -> None:
    library = Library(exported, threads=3)
    address = library.workspace.address
    assert library.code("threads_start", address, 2) == WORKSPACE
    for _ in range(3):
        assert library.code("threads_stop", address) == 0
    assert library.code("threads_start", address, 1) == 1 == library.code("threads_start", address, 1)
    assert library.code("threads_start", address, 2) == 2
    library.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("moment", ["asleep", "spinning"])
def test_a_forked_child_waits_for_no_thread_of_its_parent(digits: Digits, exported: Exported, moment: str) -> None:
    library = Library(exported, threads=3)
    address = library.workspace.address
    losses, _ = digits.trained(3)
    batches = digits.batches(3)
    assert library.code("init", library.state.address) == 0
    assert_same_bits(library.call("run", *batches[0]), losses[:1])
    if moment == "asleep":
        time.sleep(0.2)

    def goes_on_alone() -> None:
        assert_same_bits([library.call("run", *batch)[0] for batch in batches[1:]], losses[1:])
        assert library.code("threads_stop", address) == 0

    def starts_threads_of_its_own() -> None:
        for _ in range(2):
            assert library.code("threads_start", address, 2) == 2
            assert library.code("threads_start", address, 2) == WORKSPACE
            assert_same_bits(library.call("predict", batches[1][0]), [expected])
            assert library.code("threads_stop", address) == 0

    expected = library.call("predict", batches[1][0])[0]
    assert [exit_code_in_child(each) for each in (goes_on_alone, starts_threads_of_its_own)] == [0, 0]
    assert library.code("threads_start", address, 2) == WORKSPACE
    assert_same_bits([library.call("run", *batch)[0] for batch in batches[1:]], losses[1:])
    library.close()


def test_code_without_threads_asks_for_none(digits: Digits, tmp_path: Path) -> None:
    exported = digits.step.export(tmp_path, threads=1)
    text = (tmp_path / "step.h").read_text()
    assert "threads_start" not in text and "-pthread" not in text and exported.layout.header_bytes == 0
    nm = tool("nm")
    assert "pthread" not in run(nm, "step.o", folder=tmp_path)
    program = build(exported)
    (tmp_path / "two.raw").write_bytes(raw(digits.batches(2)))
    text = run(program, "two.raw", folder=tmp_path)
    assert_same_bits(list(printed_losses(text)), digits.trained(2)[0])


def test_the_object_asks_for_nothing_but_memory_functions_and_pthreads_and_shows_its_functions_only(
    exported: Exported,
) -> None:
    nm = tool("nm")
    lines = run(nm, "-g", "step.o", folder=exported.directory).splitlines()
    undefined = {line.split()[-1].lstrip("_") for line in lines if " U " in line}
    shown = {line.split()[-1].lstrip("_") for line in lines if " T " in line}
    others = {name for name in undefined if not name.startswith("pthread_")}
    assert others <= {"memcpy", "memset", "getpid", "sched_yield"}
    endings = ("init", "load", "save", "run", "predict", "evaluate", "threads_start", "threads_stop")
    assert shown == {f"kaun_step_{ending}" for ending in endings}
