"""Layouts put every result where it belongs, files of states are checked, and headers say what the layout is."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from c_programs import Library, Memory, c_compiler, run
from graph_strategies import graph_from_seed
from guarded_programs import GuardedArray
from kaun.compiler.ir import Graph, Node, dtypes, ops
from kaun.compiler.pipeline import Compilation
from kaun.runtime.artifact import Artifact, Details, Function, Leaf
from kaun.runtime.artifact import Memory as Needs
from kaun.runtime.export import export, names, read_state, state_file, write_state
from kaun.runtime.export.layout import ALIGNMENT, Layout, StateLayout, lay_out
from kaun.runtime.program import Executable
from kaun.runtime.target import host, named

import kaun as kn
from kaun import nx
from kaun.execution import placeholder, vector_target


def leaf(name: str, *shape: int, dtype: dtypes.DType = dtypes.float32) -> Leaf:
    return Leaf(name, dtype, shape)


def function(name: str, inputs: dict[str, Node], outputs: dict[str, Node], constants=()) -> Function:
    """A function of nodes by name; those of `constants` follow the inputs."""
    graph = Graph((*inputs.values(), *(node for node, _ in constants)), tuple(outputs.values()))
    program = Compilation(graph, vector_target(host())).program
    inputs = {**inputs, **{f"constants.{i}": node for i, (node, _) in enumerate(constants)}}
    takes, gives = (
        tuple(Leaf(name, node.dtype, node.shape) for name, node in each.items()) for each in (inputs, outputs)
    )
    numbers = tuple(array for _, array in constants)
    return Function(name, program, takes, gives, numbers, {}, lambda: Details((), Needs.of(program, 0)))


def artifact(*functions: Function, state: tuple[Leaf, ...] = (), initial=None) -> Artifact:
    kind = "step" if state else "function"
    return Artifact(kind, "step" if state else "plain", functions, host(), {}, {}, state, initial)


def vectors(count: int, size: int = 5) -> list[Node]:
    return [placeholder((size,), dtypes.float32) for _ in range(count)]


# Where results go


def random_step(seed: int) -> tuple[Artifact, list[np.ndarray], np.ndarray]:
    """A step that permutes, copies, keeps and computes leaves of its state, and what it makes of numbers."""
    source = random.Random(seed)
    count = source.randrange(1, 6)
    state, x = vectors(count), vectors(1)[0]
    numbers = [np.arange(5, dtype=np.float32) + 10 * number for number in range(count)]
    given = np.arange(5, dtype=np.float32) * 0.5
    known = dict(zip([*state, x], [*numbers, given], strict=True))
    computed = []
    for _ in range(source.randrange(0, 4)):
        one, other = source.choice([*state, x]), source.choice([*state, x])
        made = ops.add(one, other) if source.random() < 0.5 else ops.mul(one, one)
        known[made] = known[one] + known[other] if made.op is ops.add else known[one] * known[one]
        computed.append(made)
    choices = [*state, x, *computed, *computed]
    results = {f"s{number}": source.choice(choices) for number in range(count)}
    kept = [name for name in results if source.random() < 0.2]
    outputs = {"loss": source.choice(choices), **{n: node for n, node in results.items() if n not in kept}}
    inputs = {**{f"s{number}": node for number, node in enumerate(state)}, "x": x}
    step = function("step", inputs, outputs)
    leaves = tuple(leaf(f"s{number}", 5) for number in range(count))
    expected = [known[state[i] if f"s{i}" in kept else results[f"s{i}"]] for i in range(count)]
    return artifact(step, state=leaves, initial=tuple(numbers)), [known[outputs["loss"]], *expected], given


@pytest.mark.parametrize("seed", range(40))
def test_a_step_happens_as_a_whole_whatever_leaves_become_of_which(seed: int, tmp_path: Path) -> None:
    made, (loss, *after), given = random_step(seed)
    library = Library(export(made, tmp_path, threads=1))
    assert library.code("init", library.state.address) == 0
    assert library.call("run", given)[0].tobytes() == loss.tobytes()
    for number, expected in enumerate(after):
        assert library.leaf(f"s{number}").tobytes() == expected.tobytes(), f"s{number}"


def exported_graph(seed: int, folder: Path) -> tuple[Library, list[np.ndarray], dict[str, bytes]]:
    """A random graph as a step: some inputs are its state, some constants; what a caller gives, and all results."""
    example, source = graph_from_seed(seed), random.Random(seed)
    known = dict(zip(example.graph.inputs, example.arguments, strict=True))
    kinds = {node: source.choice(("state", "state", "x", "constant")) for node in known}
    state, given, constants = ([node for node in known if kinds[node] == kind] for kind in ("state", "x", "constant"))
    inputs = {**{f"s{i}": node for i, node in enumerate(state)}, **{f"x{i}": node for i, node in enumerate(given)}}
    free = [name for name in inputs if name.startswith("s")]
    outputs: dict[str, Node] = {}
    for number, node in enumerate(example.graph.outputs):
        fitting = [n for n in free if (inputs[n].dtype, inputs[n].shape) == (node.dtype, node.shape)]
        name = source.choice(fitting) if fitting and source.random() < 0.8 else f"o{number}"
        free = [other for other in free if other != name]
        outputs[name] = node
    step = function("step", inputs, outputs, [(node, known[node]) for node in constants])
    arguments = [np.ascontiguousarray(known[node]) for node in (*state, *given, *constants)]
    buffers = Executable(step.program, host()).run([array.ctypes.data for array in arguments])
    expected = {f"s{i}": known[node].tobytes() for i, node in enumerate(state)}
    for (name, node), place in zip(outputs.items(), step.program.results, strict=True):
        if place.kind == "input":
            expected[name] = arguments[place.position].tobytes()
        else:
            expected[name] = ctypes.string_at(buffers[place.position].address, node.nbytes)
    leaves = tuple(Leaf(f"s{i}", node.dtype, node.shape) for i, node in enumerate(state))
    made = artifact(step, state=leaves, initial=tuple(known[node] for node in state) if state else None)
    return Library(export(made, folder), threads=source.choice((1, 2))), [known[node] for node in given], expected


def check_exported_graph(seed: int, folder: Path) -> None:
    library, given, expected = exported_graph(seed, folder)
    (entry,) = library.layout.entries
    if library.layout.state.slots:
        assert library.code("init", library.state.address) == 0
    results = library.call("run", *given)
    found = {leaf.name: array.tobytes() for leaf, array in zip(entry.outputs, results, strict=True)}
    found |= {slot.leaf.name: library.leaf(slot.leaf.name).tobytes() for slot in library.layout.state.slots}
    library.close()
    assert found == expected


def test_exported_random_graphs_have_the_bits_of_their_programs(tmp_path: Path) -> None:
    for seed in range(10):
        check_exported_graph(seed, tmp_path / str(seed))


@pytest.mark.slow
@pytest.mark.parametrize("fifty", range(6))
def test_many_exported_random_graphs_have_the_bits_of_their_programs(fifty: int, tmp_path: Path) -> None:
    for seed in range(10 + 50 * fifty, 60 + 50 * fifty):
        check_exported_graph(seed, tmp_path / str(seed))


def test_what_may_be_written_over_the_old_state_is_not_copied() -> None:
    a, b, x = vectors(3, 4096)
    total = ops.reduce_sum(ops.mul(a, x), axes=(0,))
    step = function("step", {"a": a, "b": b, "x": x}, {"loss": total, "a": ops.mul(a, x), "b": ops.add(b, x)})
    assert len(step.program.aliases) == 2
    (entry,) = lay_out(artifact(step, state=(leaf("a", 4096), leaf("b", 4096))), "step", 1).entries
    assert entry.copies == () and entry.staging_bytes == 0


def test_leaves_that_change_places_wait_in_staging() -> None:
    a, b = vectors(2)
    step = function("step", {"a": a, "b": b}, {"a": b, "b": a})
    layout = lay_out(artifact(step, state=(leaf("a", 5), leaf("b", 5))), "step", 1)
    (entry,) = layout.entries
    assert [copy.source.kind for copy in entry.copies] == ["state", "state", "staging", "staging"]
    assert entry.staging_bytes == 2 * ALIGNMENT <= layout.workspace_bytes(1)


def test_leaves_lie_at_multiples_of_64_and_do_not_overlap() -> None:
    state = (leaf("a", 3), leaf("b"), leaf("c", 0), leaf("d", 65, dtype=dtypes.bool_), leaf("e", 16))
    layout = StateLayout.of(state)
    ends = 0
    for slot in layout.slots:
        assert slot.offset % 64 == 0 and slot.offset >= ends
        ends = slot.offset + slot.leaf.nbytes
    assert layout.nbytes % 64 == 0 and layout.nbytes >= ends


def test_equal_constants_of_two_functions_are_in_the_object_once(tmp_path: Path) -> None:
    (x,), table = vectors(1), np.linspace(0, 1, 5).astype(np.float32)
    one, other = (placeholder((5,), dtypes.float32) for _ in range(2))
    functions = [
        function("step", {"s": x}, {"s": ops.add(x, one)}, [(one, table)]),
        function("predict", {"s": x}, {"output": ops.mul(x, other)}, [(other, table.copy())]),
    ]
    made = artifact(*functions, state=(leaf("s", 5),), initial=(np.ones(5, np.float32),))
    assert lay_out(made, "step", 1).constants == [table.tobytes()]
    library = Library(export(made, tmp_path))
    assert library.code("init", library.state.address) == 0
    assert library.call("predict")[0].tobytes() == table.tobytes()
    assert library.call("run") == [] and library.leaf("s").tobytes() == (table + 1).tobytes()


def test_arrays_of_no_elements_need_no_address(tmp_path: Path) -> None:
    x = placeholder((0, 3), dtypes.float32)
    made = artifact(function("call", {"x": x}, {"sum": ops.reduce_sum(x, axes=(0,)), "same": x}))
    library = Library(export(made, tmp_path))
    total = np.ones(3, np.float32)
    inputs, outputs = (ctypes.c_void_p * 1)(None), (ctypes.c_void_p * 2)(total.ctypes.data, None)
    assert library.code("run", inputs, outputs, library.workspace.address) == 0
    assert total.tolist() == [0, 0, 0]


@pytest.mark.parametrize("seed", range(4))
def test_a_step_touches_no_memory_beside_what_it_was_given(seed: int, tmp_path: Path) -> None:
    source = random.Random(seed)
    model = kn.layer.sequential([
        kn.layer.conv2d(in_channels=3, out_channels=7), kn.layer.batch_norm(num_features=7), kn.layer.gelu(),
        kn.layer.dropout(rate=0.5), kn.layer.flatten(), kn.layer.linear(in_features=7 * 35, out_features=11),
    ])  # fmt: skip
    trainer = kn.train.make(model=model, optimizer=kn.optim.adamw(lr=1e-2))
    with nx.rng.run(seed=0):
        start = kn.train.init(trainer)
    x, y = np.random.default_rng(1).normal(size=(9, 3, 5, 7)).astype(np.float32), np.arange(9, dtype=np.int32)
    step = kn.train.compile(
        trainer, x=kn.spec(x.shape), y=kn.spec(9, kn.int32), loss=kn.loss.cross_entropy_sparse, state=start
    )
    exported = step.export(tmp_path)
    library = Library(exported)
    layout, threads = exported.layout, source.choice((1, 2))
    state, workspace = (
        GuardedArray(nbytes, at_end=source.random() < 0.6)
        for nbytes in (layout.state.nbytes, layout.workspace_bytes(threads))
    )
    ctypes.memset(workspace.address, 0, layout.header_bytes)
    assert library.code("init", state.address) == 0
    if threads > 1:
        assert library.code("threads_start", workspace.address, threads) == threads
    for verb in ("run", "predict", "evaluate", "run"):
        (entry,) = [entry for entry in layout.entries if entry.verb == verb]
        given = [GuardedArray(each.nbytes, at_end=source.random() < 0.6) for each in entry.inputs]
        for memory, array in zip(given, (x, y), strict=False):
            memory.write(array)
        found = [GuardedArray(each.nbytes, at_end=source.random() < 0.6) for each in entry.outputs]
        tables = [(ctypes.c_void_p * len(each))(*(m.address for m in each)) for each in (given, found)]
        assert library.code(verb, state.address, *tables, workspace.address) == 0
        assert all(memory.is_intact() for memory in (state, workspace, *given, *found))
    if threads > 1:
        assert library.code("threads_stop", workspace.address) == 0


# Names, headers, descriptions


def test_names_become_identifiers_of_c_that_differ() -> None:
    found = names.identifiers(["params.0.weight", "params_0_weight", "PARAMS_0_WEIGHT", "x", "class", "0", "é", ""])
    assert found[:5] == ["params_0_weight", "params_0_weight_2", "PARAMS_0_WEIGHT_", "x", "class_"]
    assert len({name.lower() for name in found}) == len(found)
    assert all(re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) for name in found)
    # What a header may define: macros are in capitals, or known.
    assert names.identifiers(["EOF", "I", "X", "linux", "Q1"]) == ["EOF_", "I_", "X", "linux_", "Q1_"]


@pytest.mark.parametrize("name", ["", "1st", "a-b", "a b", "../a", "ä"])
def test_a_name_that_no_symbol_can_have_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="export: got the name"):
        export(plain(), tmp_path / "out", name=name or "-")
    assert not (tmp_path / "out").exists()


def plain() -> Artifact:
    (x,) = vectors(1)
    return artifact(function("call", {"x": x}, {"result": ops.add(x, x)}))


def test_threads_and_places_that_cannot_be_are_refused(tmp_path: Path) -> None:
    for threads in (0, -1, 1025, True, "2"):
        with pytest.raises(ValueError, match="threads, expected 1 to 1024"):
            export(plain(), tmp_path, threads=threads)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected 'embedded', 'file' or None"):
        export(plain(), tmp_path, initial="beside")
    with pytest.raises(ValueError, match="there is no state to start from"):
        export(plain(), tmp_path, initial="file")


EVERY_DTYPE = {dtype.name: placeholder((3,), dtype) for dtype in dtypes.ALL}


def test_every_type_of_element_has_one_in_c_of_its_size(tmp_path: Path) -> None:
    made = artifact(function("call", dict(EVERY_DTYPE), {f"of_{name}": node for name, node in EVERY_DTYPE.items()}))
    library = Library(export(made, tmp_path))
    given = [np.array([1, 0, 1]).astype(node.dtype.numpy) for node in EVERY_DTYPE.values()]
    assert [found.tobytes() for found in library.call("run", *given)] == [array.tobytes() for array in given]
    sizes = ", ".join(f"sizeof *(({names.c_type(node.dtype)} *)0)" for node in EVERY_DTYPE.values())
    (tmp_path / "sizes.c").write_text(
        '#include "plain.h"\n#include <stdio.h>\nint main(void) {\n    size_t i, sizes[] = {' + sizes + "};\n"
        '    for (i = 0; i < sizeof sizes / sizeof *sizes; i++) printf("%d ", (int)sizes[i]);\n    return 0;\n}\n'
    )
    run(c_compiler(), "-o", "sizes", "sizes.c", folder=tmp_path)
    assert run(tmp_path / "sizes", folder=tmp_path).split() == [str(d.dtype.itemsize) for d in EVERY_DTYPE.values()]


def test_the_description_and_the_header_say_what_the_layout_is(tmp_path: Path) -> None:
    made, _, _ = random_step(11)
    exported = export(made, tmp_path)
    data = json.loads((tmp_path / "step.json").read_text())
    layout = exported.layout
    assert data["state"]["bytes"] == layout.state.nbytes == exported.state_bytes
    assert [leaf["offset"] for leaf in data["state"]["leaves"]] == [slot.offset for slot in layout.state.slots]
    assert data["workspace"]["one_thread"] == layout.workspace_bytes(1) == exported.workspace_bytes
    assert data["target"]["triple"] == host().triple and data["functions"]["run"]["symbol"] == "kaun_step_run"
    lines = [f'printf("%zu %zu ", (size_t)KAUN_STEP_STATE_SIZE, KAUN_STEP_WORKSPACE_SIZE({n}));' for n in (1, 2, 64)]
    lines += [f'printf("%d ", KAUN_STEP_{slot.identifier.upper()}_OFFSET);' for slot in layout.state.slots]
    source = '#include "step.h"\n#include <stdio.h>\nint main(void) { ' + " ".join(lines) + " return 0; }\n"
    (tmp_path / "constants.c").write_text(source)
    run(c_compiler(), "-o", "constants", "constants.c", folder=tmp_path)
    expected = [number for n in (1, 2, 64) for number in (layout.state.nbytes, layout.workspace_bytes(n))]
    expected += [slot.offset for slot in layout.state.slots]
    assert run(tmp_path / "constants", folder=tmp_path).split() == [str(number) for number in expected]


def test_comments_of_c_are_not_ended_by_what_people_name_things(tmp_path: Path) -> None:
    (x,) = vectors(1)
    made = artifact(function("call", {"x*/y": x}, {"/*": ops.add(x, x)}))
    export(made, tmp_path)
    (tmp_path / "use.c").write_text('#include "plain.h"\nint main(void) { return 0; }\n')
    run(c_compiler(), "-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", "-c", "use.c", folder=tmp_path)


def test_lines_of_a_name_stay_in_their_comment(tmp_path: Path) -> None:
    (x,) = vectors(1)
    made = artifact(function("call", {"x\nint y": x}, {"\nint z": ops.add(x, x)}))
    made = dataclasses.replace(made, name="f\nimport 'nothing'", target=named("wasm32"))
    export(made, tmp_path, name="plain")
    assert not re.search("^ *(int [yz]|import)", (tmp_path / "plain.h").read_text(), re.MULTILINE)
    assert not re.search("^ *(int [yz]|import)", (tmp_path / "plain.mjs").read_text(), re.MULTILINE)


def test_equal_artifacts_give_equal_files(tmp_path: Path) -> None:
    for folder in ("one", "other"):
        export(random_step(3)[0], tmp_path / folder)
    for file in ("step.o", "step.h", "step.json", "main.c", "CMakeLists.txt"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


def test_without_tools_there_is_an_object_and_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(plain(), tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.delenv("CC", raising=False)
    exported = export(plain(), tmp_path)
    assert exported.files == ("plain.o", "plain.h", "plain.json", "main.c", "CMakeLists.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(exported.files)  # those of before are gone
    assert [text.split()[0] for text in exported.missing] == ["plain.a", "plain.so"]
    assert "plain.so is made by cc, a C compiler, not found here" in repr(exported)


def test_a_linker_that_fails_is_an_error_with_what_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no such thing >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    with pytest.raises(RuntimeError, match="failed: no such thing"):
        export(plain(), tmp_path / "out")


@pytest.mark.parametrize("target", ["linux-aarch64", "linux-riscv64", "cortex-m7", "wasm32"])
def test_objects_for_other_machines_are_made_here(target: str, tmp_path: Path) -> None:
    model = kn.layer.sequential([kn.layer.linear(in_features=8, out_features=4), kn.layer.relu()])
    trainer = kn.train.make(model=model, optimizer=kn.optim.sgd(lr=0.1))
    with nx.rng.run(seed=0):
        step = kn.train.compile(
            trainer, x=kn.spec((4, 8)), y=kn.spec((4, 4)), loss=kn.loss.mse, state=kn.train.init(trainer)
        )
    exported = step.export(tmp_path, target)
    data = json.loads((tmp_path / "step.json").read_text())
    assert data["target"]["triple"] == named(target).triple
    assert (exported.layout.most_threads > 1) == named(target).has_pthreads
    assert ("threads_start" in (tmp_path / "step.h").read_text()) == named(target).has_pthreads


# Files of states


def test_a_state_file_is_read_as_it_was_written_and_refused_when_it_is_not(tmp_path: Path) -> None:
    leaves = (leaf("a", 3), leaf("b", 2, 2, dtype=dtypes.bfloat16), leaf("c", dtype=dtypes.int32))
    layout = StateLayout.of(leaves)
    arrays = [np.ones(3, np.float32), np.ones((2, 2), dtypes.bfloat16.numpy), np.array(7, np.int32)]
    content = state_file.packed(layout, arrays)
    for found, array in zip(state_file.unpacked(layout, content), arrays, strict=True):
        assert found.dtype == array.dtype and found.tobytes() == array.tobytes()
    renamed = StateLayout.of((leaf("z", 3), *leaves[1:]))
    assert renamed.nbytes == layout.nbytes
    damaged = bytearray(content)
    damaged[70] ^= 1
    for broken in (b"", content[:63], content[:-1], content + b"\0", content[:-64], bytes(damaged)):
        with pytest.raises(ValueError, match=r"^got \d+ bytes"):
            state_file.unpacked(layout, broken)
    with pytest.raises(ValueError, match=r"^got \d+ bytes, expected an undamaged state of this step"):
        state_file.unpacked(renamed, content)
    with pytest.raises(ValueError, match=r"state_file\.packed: got float32\[2\]"):
        state_file.packed(layout, [np.ones(2, np.float32), *arrays[1:]])


def test_a_state_that_cannot_be_written_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_state([leaf("a", 3)], [np.ones(3, np.float32)], tmp_path / "state")

    def full(descriptor: int) -> None:
        raise OSError(28, "no space left on the device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_state([leaf("a", 3)], [np.zeros(3, np.float32)], tmp_path / "state")
    assert read_state([leaf("a", 3)], tmp_path / "state")[0].tolist() == [1, 1, 1]
    assert [file.name for file in tmp_path.iterdir()] == ["state"]


def test_memory_is_aligned_as_the_tests_say() -> None:
    assert Memory(100).address % ALIGNMENT == 0


def test_a_layout_without_a_state_has_none() -> None:
    layout: Layout = lay_out(plain(), "plain", 1)
    assert layout.state.slots == () and layout.state.nbytes == 0 and layout.workspace_bytes(1) >= ALIGNMENT
