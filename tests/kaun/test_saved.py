"""`save` and `kn.load`: a file has all that is needed, gives the same bits, and is checked before any of it runs."""

import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from kaun.compiler.ir import parse_graph
from kaun.runtime import cpu_features, saved_file
from kaun.runtime.saved_file import Section

import kaun as kn
from kaun import nx

# What a process that only loads has to do without: LLVM, the compiler's stages, the module of the model.
WITHOUT = """
import sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        later = ("kaun.compiler.pipeline", "kaun.compiler.passes", "kaun.compiler.codegen.kernels", "modelling")
        if name.partition(".")[0] in ("llvmlite", "networkx") or name in later:
            raise ImportError(f"{name} is not to be imported here")

sys.meta_path.insert(0, Refused())
"""

BATCHES = """
import hashlib
import numpy as np
import kaun as kn
from kaun import nx

def batches(count):
    generator = np.random.default_rng(1)
    for _ in range(count):
        yield generator.normal(size=(16, 12)).astype(np.float32), generator.integers(0, 5, 16).astype(np.int32)

def digest(*trees):
    leaves = [leaf for tree in trees for leaf in kn.ptree.leaves(tree)]
    return hashlib.sha256(b"".join(leaf.numpy().tobytes() for leaf in leaves)).hexdigest()

def train(step, count):
    with nx.rng.run(seed=5):
        st = step.init()
    lines = []
    for x, y in batches(count):
        value, st = step(st, x, y)
        lines.append(f"{digest(value)} {digest(st.to_tree())}")
    x, y = next(batches(1))
    lines += [digest(step.predict(st, x)), digest(step.evaluate(st, x, y))]
    return [*lines, digest(step.init(vars=st.vars).to_tree())]
"""

namespace: dict[str, object] = {}
exec(BATCHES, namespace)
batches, train = namespace["batches"], namespace["train"]


def model():
    return kn.layer.sequential(
        [
            kn.layer.linear(in_features=12, out_features=150),
            kn.layer.batch_norm(num_features=150),
            kn.layer.relu(),
            kn.layer.dropout(rate=0.2),
            kn.layer.linear(in_features=150, out_features=5),
        ]
    )


def compiled_step(**keywords):
    schedule = kn.optim.schedule.warmup_cosine_decay(
        init_value=0.0, peak_value=0.01, warmup_steps=10, decay_steps=90, end_value=0.001
    )
    trainer = kn.train.make(model=model(), optimizer=kn.optim.adamw(lr=schedule))
    given = {"x": kn.spec((16, 12)), "y": kn.spec(16, kn.int32), "loss": kn.loss.cross_entropy_sparse}
    return kn.train.compile(trainer, **{**given, **keywords})


@pytest.fixture(scope="module")
def step():
    return compiled_step()


@pytest.fixture(scope="module")
def file(step, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "step.kaun"
    step.save(path)
    return path


def run(script, *arguments, **environment):
    """What a new process prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("threads", ["1", "2"])
def test_a_step_loaded_without_llvm_gives_the_same_bits_for_100_steps(step, file, threads):
    script = f"""{WITHOUT}{BATCHES}
step = kn.load(sys.argv[1])
print("\\n".join(train(step, 100)))
assert not any(name.partition(".")[0] in ("llvmlite", "networkx") for name in sys.modules)
"""
    assert run(script, file, KAUN_NUM_THREADS=threads).split("\n")[:-1] == train(step, 100)


def test_loading_takes_no_model_and_the_file_holds_every_look_inside(step, file):
    loaded = kn.load(file)
    assert list(loaded.functions) == list(step.functions) == ["step", "predict", "evaluate", "start", "init"]
    for name, function in step.functions.items():
        other = loaded.functions[name]
        assert (other.inputs, other.outputs) == (function.inputs, function.outputs)
        assert other.function.details == function.function.details
        assert dict(other.function.stages) == dict(function.function.stages)
    assert loaded.kernels == step.kernels and loaded.memory == step.memory and loaded.cost == step.cost
    assert repr(loaded) == repr(step) and list(loaded.stages) == list(step.stages)
    with pytest.raises(KeyError, match="expected one of traced"):
        loaded.stages["linked"]


def test_a_loaded_step_saves_the_same_bytes_and_others_with_a_state(step, file, tmp_path):
    loaded = kn.load(file)
    loaded.save(tmp_path / "again.kaun")
    assert (tmp_path / "again.kaun").read_bytes() == file.read_bytes()
    with nx.rng.run(seed=1):
        st = step.init()
    for x, y in batches(3):
        _, st = loaded(st, x, y)
    loaded.save(tmp_path / "trained.kaun", state=st)
    step.save(tmp_path / "from_first.kaun", state=st)
    assert (tmp_path / "trained.kaun").read_bytes() == (tmp_path / "from_first.kaun").read_bytes()
    again = kn.load(tmp_path / "trained.kaun")
    x, y = next(batches(1))
    kept = again.initial.to_tree()
    for (path, leaf), expected in zip(kn.ptree.flatten_with_paths(kept), kn.ptree.leaves(st.to_tree()), strict=True):
        assert leaf.numpy().tobytes() == expected.numpy().tobytes(), path
    value, after = again(again.initial, x, y, donate=True)
    expected, other = step(st, x, y)
    assert float(value) == float(expected) and int(after.step) == int(other.step) == 4
    # What was given up was not all there is of it.
    for leaf, expected in zip(kn.ptree.leaves(again.initial.to_tree()), kn.ptree.leaves(kept), strict=True):
        assert leaf.numpy().tobytes() == expected.numpy().tobytes()
    again.save(tmp_path / "still.kaun")
    assert (tmp_path / "still.kaun").read_bytes() == (tmp_path / "trained.kaun").read_bytes()
    assert kn.load(file).initial is None


def test_states_of_one_process_are_states_of_the_loaded_step(step, file):
    loaded = kn.load(file)
    with nx.rng.run(seed=2):
        st = step.init()
    x, y = next(batches(1))
    _, mine = loaded(st, x, y)
    assert type(mine.opt_state[0]) is type(st.opt_state[0])  # the optimizer's own named tuple
    value, _ = step(mine, x, y)
    assert np.isfinite(float(value))


def test_wrong_arguments_of_a_loaded_step_are_named(file):
    loaded = kn.load(file)
    x, y = next(batches(1))
    with nx.rng.run(seed=2):
        st = loaded.init()
    with pytest.raises(ValueError, match=r"step.step: x: got shape \[15, 12\], expected \[16, 12\]"):
        loaded(st, x[1:], y)
    with pytest.raises(TypeError, match="y: got dtype int64, expected int32"):
        loaded(st, x, y.astype(np.int64))
    with pytest.raises(ValueError, match="no random scope is active"):
        loaded.init()


def test_a_python_schedule_is_not_in_the_file_and_its_rates_are_given(tmp_path):
    optimizer = kn.optim.sgd(lr=lambda number: 0.1 / number)
    trainer = kn.train.make(model=kn.layer.linear(in_features=3, out_features=1), optimizer=optimizer)
    step = kn.train.compile(trainer, x=kn.spec((4, 3)), y=kn.spec((4, 1)), loss=kn.loss.mse)
    step.save(tmp_path / "step.kaun")
    loaded = kn.load(tmp_path / "step.kaun")
    x, y = np.ones((4, 3), np.float32), np.ones((4, 1), np.float32)
    with nx.rng.run(seed=0):
        st = loaded.init()
    with pytest.raises(TypeError, match=r"got no rates, expected 1: the schedule .* is a Python function"):
        loaded(st, x, y)
    assert float(loaded(st, x, y, rates=[0.1])[0]) == float(step(st, x, y)[0])


# --- functions -------------------------------------------------------------------------------------------------------


class Result(NamedTuple):
    total: object
    parts: object


OFFSET = np.arange(3, dtype=np.float32)


def everything(x, tree):
    product = x @ tree["weight"]
    parts = {"given": x, "empty": tree["empty"] * 2, "twice": (product, product), "one": nx.ones(2)}
    return Result(nx.sum(product + OFFSET), parts)


def test_functions_keep_constants_trees_inputs_handed_through_and_arrays_of_nothing(tmp_path):
    specs = kn.spec((4, 7)), {"weight": kn.spec((7, 3)), "empty": kn.spec((0, 5), kn.float64)}
    function = kn.compile(everything, *specs)
    function.save(tmp_path / "function.kaun")
    loaded = kn.load(tmp_path / "function.kaun")
    generator = np.random.default_rng(0)
    x = generator.normal(size=(4, 7)).astype(np.float32)
    tree = {"weight": generator.normal(size=(7, 3)).astype(np.float32), "empty": np.zeros((0, 5))}
    mine, theirs = loaded(x, tree), function(x, tree)
    assert type(mine).__name__ == "Result" and mine._fields == ("total", "parts")
    for (path, one), other in zip(kn.ptree.flatten_with_paths(mine), kn.ptree.leaves(theirs), strict=True):
        assert one.shape == other.shape and one.dtype is other.dtype, path
        assert one.numpy().tobytes() == other.numpy().tobytes(), path
    assert mine.parts["given"].numpy().tobytes() == x.tobytes()
    np.testing.assert_allclose(float(mine.total), float((x @ tree["weight"] + OFFSET).sum()), rtol=1e-5)
    (call,) = loaded.artifact().functions
    assert [leaf.name for leaf in call.inputs] == ["x", "tree.weight", "tree.empty", "constants.0"]
    assert [leaf.name for leaf in call.outputs][:3] == ["result.total", "result.parts.given", "result.parts.empty"]
    with pytest.raises(ValueError, match=r"compiled.everything: argument 1 at `weight`: got shape \[7, 2\]"):
        loaded(x, tree | {"weight": tree["weight"][:, :2]})
    gradient = kn.grad(lambda x: loaded(x, tree).total)(nx.asarray(x))  # a part of what is traced
    np.testing.assert_allclose(gradient.numpy(), np.tile(tree["weight"].sum(1), (4, 1)), rtol=1e-5)
    loaded.save(tmp_path / "again.kaun")
    assert (tmp_path / "again.kaun").read_bytes() == (tmp_path / "function.kaun").read_bytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", "int8", "bool"])
def test_functions_of_every_dtype_load(dtype, tmp_path):
    kind = kn.compiler.ir.dtypes.of(dtype)
    constant = nx.astype(nx.asarray([1, 0, 1]), kind)
    function = kn.compile(lambda x: (nx.where(x == constant, x, constant), x), kn.spec((2, 3), kind))
    function.save(tmp_path / "f")
    x = nx.astype(nx.asarray([[1, 2, 3], [4, 0, 1]]), kind)
    for one, other in zip(kn.load(tmp_path / "f")(x), function(x), strict=True):
        assert one.dtype is other.dtype is kind and one.numpy().tobytes() == other.numpy().tobytes()


def test_a_function_that_computes_nothing_loads(tmp_path):
    kn.compile(lambda x, y: (y, x), kn.spec(3), kn.spec(2)).save(tmp_path / "f")
    y, x = kn.load(tmp_path / "f")(np.arange(3, dtype=np.float32), np.ones(2, np.float32))
    assert y.tolist() == [1, 1] and x.tolist() == [0, 1, 2]


# --- machines --------------------------------------------------------------------------------------------------------


def function_for(path, target):
    made = kn.compile(lambda x, w: nx.tanh(x @ w), kn.spec((33, 40)), kn.spec((40, 50)), target=target)
    made.save(path)
    return made


def arguments():
    generator = np.random.default_rng(3)
    return generator.normal(size=(33, 40)).astype(np.float32), generator.normal(size=(40, 50)).astype(np.float32)


def assert_right(function):
    x, w = arguments()
    np.testing.assert_allclose(function(x, w).numpy(), np.tanh(x.astype(np.float64) @ w), rtol=1e-4, atol=1e-5)


def test_a_missing_feature_is_named_and_recompiling_helps(tmp_path, monkeypatch):
    path = tmp_path / "f.kaun"
    function_for(path, "host")
    wanted = cpu_features.needed(kn.load(path).artifact().target)
    assert wanted
    monkeypatch.setattr(cpu_features, "_host_features", lambda *_: frozenset(wanted[1:]))
    with pytest.raises(ValueError, match=f"f.kaun: this processor lacks {wanted[0]}, which .* recompile=True"):
        kn.load(path)
    loaded = kn.load(path, recompile=True)
    assert_right(loaded)
    assert [leaf.name for leaf in loaded.functions["call"].inputs] == ["x", "w"]


@pytest.mark.skipif(not kn.runtime.target.host().architecture == "x86_64", reason="presets of x86-64")
def test_code_of_an_older_processor_runs_and_newer_code_is_refused(tmp_path):
    function_for(tmp_path / "v2", "linux-x86_64-v2")
    assert_right(kn.load(tmp_path / "v2"))
    script = "import kaun as kn, sys; kn.load(sys.argv[1]); kn.load(sys.argv[2])"
    for newer in ("linux-x86_64-v4", "x86_64-linux-gnu,cpu=skylake-avx512"):
        function_for(tmp_path / "newer", newer)
        with pytest.raises(AssertionError, match=r"lacks avx, avx2, avx512bw, .*which the machine code may use"):
            run(script, tmp_path / "v2", tmp_path / "newer", KAUN_TARGET_VECTOR_BITS="128")


def test_code_for_another_architecture_is_refused_and_its_graph_compiled(tmp_path):
    here = kn.runtime.target.host().architecture
    other = "aarch64" if here == "x86_64" else "x86_64-v2"
    made = function_for(tmp_path / "f", f"linux-{other}")
    with pytest.raises(ValueError, match="cannot run on"):
        made(*arguments())
    wanted = other.partition("-")[0]
    with pytest.raises(ValueError, match=f"cannot run here: it is for {wanted} and linux, and this machine is {here}"):
        kn.load(tmp_path / "f")
    assert_right(kn.load(tmp_path / "f", recompile=True))


def test_a_recompiled_step_trains_like_the_first(step, file, monkeypatch, tmp_path):
    monkeypatch.setattr(cpu_features, "wrong_machine", lambda *_: "it is for another")
    with pytest.raises(ValueError, match="cannot run here: it is for another"):
        kn.load(file)
    loaded = kn.load(file, recompile=True)
    monkeypatch.undo()
    assert train(loaded, 5) == train(step, 5)  # the same machine, really
    loaded.save(tmp_path / "again.kaun")
    assert train(kn.load(tmp_path / "again.kaun"), 5) == train(step, 5)


def test_targets_without_threads_are_exported_and_not_saved(tmp_path):
    made = kn.compile(lambda x: x * 2, kn.spec(3), target="cortex-m7")
    with pytest.raises(ValueError, match=r"got the target arm-cortex-m7-.*export"):
        made.save(tmp_path / "f")
    assert not (tmp_path / "f").exists()


# --- files -----------------------------------------------------------------------------------------------------------


def test_what_is_no_such_file_is_refused(tmp_path, file):
    with pytest.raises(FileNotFoundError):
        kn.load(tmp_path / "missing")
    for content in (b"", b"KAUN-AOT", b"\x7fELF" + bytes(100), Path(__file__).read_bytes()):
        (tmp_path / "f").write_bytes(content)
        with pytest.raises(ValueError, match="/f: this is not a file that `save` of a compiled function or step wrote"):
            kn.load(tmp_path / "f")
    whole = file.read_bytes()
    (tmp_path / "f").write_bytes(whole[:8] + (7).to_bytes(4, "little") + whole[12:])
    with pytest.raises(ValueError, match="has format 7, expected 1: another version of Kaun wrote it"):
        kn.load(tmp_path / "f")


def test_errors_name_what_was_called_and_the_path_that_was_given(tmp_path, step, small):
    (tmp_path / "f").write_bytes(small.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"^kn.load: {tmp_path}/f: the file has"):
        kn.load(tmp_path / "f")
    with pytest.raises(ValueError, match=f"^step.read_state: {tmp_path}/f: got "):
        step.read_state(tmp_path / "f")
    with pytest.raises(TypeError, match=r"^step.save: got a state of type int"):
        step.save(tmp_path / "g", state=3)
    with pytest.raises(TypeError, match=r"^step.export: got a state of type int"):
        step.export(tmp_path / "g", state=3)
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder") as caught:
        step.save(tmp_path / "folder")
    assert caught.value.filename == str(tmp_path / "folder") and "partial" not in str(caught.value)


def test_a_small_file_does_not_ask_for_much_memory(tmp_path, small):
    with (tmp_path / "f").open("wb") as large:
        large.truncate(1 << 42)  # takes no space on the disk
    with pytest.raises(ValueError, match="this is not a file that `save` of a compiled function or step wrote"):
        kn.load(tmp_path / "f")
    with (tmp_path / "f").open("r+b") as large:
        large.write(small.read_bytes())
    with pytest.raises(ValueError, match=f"the file has {1 << 42} bytes, expected {small.stat().st_size}"):
        kn.load(tmp_path / "f")
    for name in ("code", "data", "numbers"):
        sections = dict(saved_file.read(small))
        content = np.random.default_rng(0).bytes(1 << 16).hex().encode()
        sections[name] = Section((saved_file.zlib.compress(content),), len(content))
        saved_file.write(tmp_path / "f", sections)
        with pytest.raises(ValueError, match=f"the section '{name}' is packed, which it never is"):
            kn.load(tmp_path / "f")


def test_a_file_does_not_unpack_to_many_times_its_size(tmp_path, small):
    content = bytes(1 << 20)
    packed = saved_file.zlib.compress(content)
    assert 64 * len(packed) < len(content)
    sections = dict(saved_file.read(small))
    sections["text.step.llvm"] = Section((packed,), len(content))
    saved_file.write(tmp_path / "f", sections)
    with pytest.raises(ValueError, match=f"'text.step.llvm' is said to be of {1 << 20} bytes, stored in {len(packed)}"):
        kn.load(tmp_path / "f")
    # What `save` writes is read, however well it could be packed.
    sections["text.step.llvm"] = Section.packed(content)
    saved_file.write(tmp_path / "f", sections)
    assert kn.load(tmp_path / "f").stages["llvm"] == content.decode()


def test_a_full_disk_leaves_the_old_file(file, tmp_path):
    path = tmp_path / "step.kaun"
    path.write_bytes(file.read_bytes())
    script = """
    import errno, resource, signal, sys
    import kaun as kn
    loaded = kn.load(sys.argv[1])
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        loaded.save(sys.argv[1])
    except OSError as error:
        print(errno.errorcode[error.errno])
    """
    assert hasattr(resource, "RLIMIT_FSIZE")
    assert run(script, path) == "EFBIG\n"
    assert path.read_bytes() == file.read_bytes()
    assert [entry.name for entry in tmp_path.iterdir()] == ["step.kaun"]


def test_the_graph_in_a_file_is_the_one_that_was_traced(step, file):
    loaded = kn.load(file)
    graph = parse_graph(loaded.stages["differentiated"])
    assert list(graph.input_names) == [leaf.name for leaf in step.functions["step"].inputs]


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A file with a bit of everything, small enough to be damaged in many ways."""
    optimizer = kn.optim.sgd(lr=0.1, momentum=0.9)
    trainer = kn.train.make(model=kn.layer.linear(in_features=2, out_features=3), optimizer=optimizer)
    weights = nx.asarray([1.0, 2.0, 3.0])
    with nx.rng.run(seed=0):
        st = kn.train.init(trainer)
    made = kn.train.compile(
        trainer, x=kn.spec((2, 2)), y=(kn.spec((2, 3)),), state=st,
        loss=lambda output, y: nx.mean((output - y[0]) ** 2 * weights),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("small") / "step.kaun"
    made.save(path)
    return path


def outcome(path, content):
    """What loading these bytes comes to. Anything but a ValueError, or a step that can be looked at, is a failure."""
    path.write_bytes(content)
    try:
        loaded = kn.load(path)
    except ValueError as error:
        assert str(path) in str(error)
        return "refused"
    assert loaded.memory.peak > 0 and repr(loaded)
    for function in loaded.functions.values():
        try:
            assert all(isinstance(text, str) for text in function.function.stages.values())
            assert function.graph.outputs
        except ValueError:
            return "refused later"
    return "loaded"


def test_every_flipped_bit_and_every_shorter_file_is_noticed(small, tmp_path):
    whole = small.read_bytes()
    generator = np.random.default_rng(0)
    places = [*range(96), *generator.integers(0, len(whole), 300)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(generator.integers(8))
        assert outcome(tmp_path / "f", bytes(damaged)) == "refused", place
    for length in [*range(0, 200, 7), *generator.integers(0, len(whole), 50), len(whole) - 1]:
        assert outcome(tmp_path / "f", whole[:length]) == "refused", length
    assert outcome(tmp_path / "f", whole + bytes(64)) == "refused"
    assert outcome(tmp_path / "f", whole) == "loaded"


def rewritten(whole, change):
    """The file with one thing changed by `change(header, entries, sections)`, and checksums that fit again."""
    sections = {name: [bytes(s.stored[0]), s.length] for name, s in saved_file._sections(memoryview(whole)).items()}
    change(sections)
    pieces = saved_file._pieces({name: Section((stored,), length) for name, (stored, length) in sections.items()})
    return b"".join(map(bytes, pieces))


def test_lengths_and_offsets_in_the_directory_are_checked_even_if_the_checksums_fit(small, tmp_path):
    whole = small.read_bytes()
    count = int.from_bytes(whole[12:16], "little")
    generator = np.random.default_rng(1)
    wrong = [0, 1, 63, 64, len(whole), 2**31, 2**32 - 1, 2**63, 2**64 - 1]
    fields = [(12, 4), (16, 8), (24, 8)]
    fields += [(64 + 96 * number + at, 8) for number in range(count) for at in (32, 40, 48, 56)]
    for place, size in fields:
        for value in [*wrong, *(int(v) for v in generator.integers(0, len(whole), 3))]:
            damaged = bytearray(whole)
            damaged[place : place + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
            if bytes(damaged) == whole:
                continue
            entries = 64 + 96 * min(int.from_bytes(damaged[12:16], "little"), 1000)
            damaged[32:64] = saved_file.hashlib.sha256(bytes(damaged[:32]) + bytes(damaged[64:entries])).digest()
            assert outcome(tmp_path / "f", bytes(damaged)).startswith("refused"), (place, value)


def test_what_the_sections_say_is_checked_even_if_the_checksums_fit(small, tmp_path):
    whole = small.read_bytes()
    generator = np.random.default_rng(2)
    names = list(saved_file._sections(memoryview(whole)))
    counts = {"refused": 0, "refused later": 0, "loaded": 0}
    for number in range(500):
        # Most often the two from which the rest is understood.
        name = ("about", "text.step.scheduled", "about", str(generator.choice(names)))[number % 4]

        def change(sections, name=name):
            content = bytearray(Section((sections[name][0],), sections[name][1]).content())
            for _ in range(int(generator.integers(1, 4))):
                if not content:
                    break
                place = int(generator.integers(len(content)))
                kind = int(generator.integers(5))
                if kind == 0:
                    content[place] ^= 1 << int(generator.integers(8))
                elif kind == 1:
                    del content[place : place + int(generator.integers(1, 20))]
                elif kind == 2:
                    content[place:place] = content[place : place + int(generator.integers(1, 30))]
                elif kind == 3:
                    digits = [i for i, letter in enumerate(content) if chr(letter).isdigit()] or [place]
                    content[int(generator.choice(digits))] = int(generator.integers(48, 58))
                else:
                    more = [b"-1", b"99999999999999999999", b"null", b"[", b"\xff", b" "]
                    content[place:place] = more[int(generator.integers(len(more)))]
            section = Section.packed(bytes(content)) if name != "numbers" else Section.raw(bytes(content))
            sections[name] = [bytes(section.stored[0]), section.length]

        counts[outcome(tmp_path / "f", rewritten(whole, change))] += 1
    assert counts["refused"] > 200, counts


@pytest.mark.parametrize("change", ["drop", "swap", "bomb", "lie", "empty", "deep"])
def test_sections_that_are_missing_or_not_what_they_should_be_are_refused(change, small, tmp_path):
    whole = small.read_bytes()
    for name in saved_file._sections(memoryview(whole)):

        def damage(sections, name=name):
            if change == "drop":
                del sections[name]
            elif change == "swap":
                other = "numbers" if name != "numbers" else "code"
                sections[name], sections[other] = sections[other], sections[name]
            elif change == "bomb":
                sections[name] = [saved_file.zlib.compress(bytes(1 << 22), 9), 1 << 20]
            elif change == "lie":
                packed = saved_file.zlib.compress(bytes(1 << 22), 9)
                sections[name] = [packed, 16 * len(packed)]
            elif change == "empty":
                sections[name] = [b"", 0]
            else:
                sections[name] = [b"[" * 100_000, 100_000]

        if change in ("swap", "deep") and name in ("code", "numbers", "data"):
            continue  # any bytes may be code or numbers
        found = outcome(tmp_path / "f", rewritten(whole, damage))
        if name in ("about", "code", "data", "numbers") or name.endswith("scheduled"):
            assert found == "refused", name
        elif name.endswith("differentiated"):
            assert found.startswith("refused"), name
        elif change in ("swap", "bomb", "lie"):
            assert found.startswith("refused"), name
