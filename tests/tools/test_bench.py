"""The benchmark gives every system the same work, demands equal answers, and reports what it measured."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from kaun.runtime import target as targets
from kaun.runtime.peaks import bandwidth_of, measure_peaks
from kaun.tools import bench
from kaun.tools.bench import kaun_problems, kaun_worker, measure, peers, plot, report
from kaun.tools.bench.model_problems import MODELS, Model, classifier, gpt, resnet
from kaun.tools.bench.operation_problems import OPERATIONS, Operation
from kaun.tools.bench.problems import GROUPS, PROBLEMS, Network, Product, chosen
from kaun.tools.bench.workers import System, Worker, WorkerError, kaun_system, peer_systems

import kaun as kn

TINY_MLP = Network("tiny-mlp", "tiny MLP", 4, 3, (), (5, 3))
TINY_CNN = Network("tiny-cnn", "tiny CNN", 3, 8, (2, 3), (5, 4))
TINY_PRODUCT = Product("matmul-24", 24)
TINY_MODELS = [
    gpt("tiny-gpt", blocks=2, width=8, heads=2, batch=2, tokens=5, vocabulary=7),
    gpt("tiny-gpt-2", blocks=2, width=8, heads=2, batch=2, tokens=5, vocabulary=7, gpt2=True),
    resnet("tiny-resnet", "tiny ResNet", 3, 8, (2, 3), 1, classes=4),
    classifier("tiny-text", "tiny text", 11, 4, 3, 5, 6),
]
IMAGES = (2, 3, 4, 4)
# Of each operation: the shapes of the inputs that have gradients, of the result, and of indices.
TINY_SHAPES: dict[str, tuple[tuple[tuple[int, ...], ...], tuple[int, ...], tuple[int, ...] | None]] = {
    "layer_norm": (((2, 3, 5), (5,), (5,)), (2, 3, 5), None),
    "rms_norm": (((2, 3, 5), (5,)), (2, 3, 5), None),
    "softmax": (((2, 3, 5),), (2, 3, 5), None),
    "gelu": (((2, 3, 5),), (2, 3, 5), None),
    "batch_norm": ((IMAGES, (3,), (3,)), IMAGES, None),
    "attention": (((2, 3, 5, 4),) * 3, (2, 3, 5, 4), None),
    "causal_attention": (((2, 3, 5, 4),) * 3, (2, 3, 5, 4), None),
    "conv1d": (((2, 3, 7), (4, 3, 3), (4,)), (2, 4, 7), None),
    "conv2d": ((IMAGES, (5, 3, 3, 3), (5,)), (2, 5, 4, 4), None),
    "max_pool": ((IMAGES,), (2, 3, 2, 2), None),
    "avg_pool": ((IMAGES,), (2, 3, 2, 2), None),
    "linear": (((4, 3), (3, 5), (5,)), (4, 5), None),
    "linear_gelu": (((4, 3), (3, 5), (5,)), (4, 5), None),
    "embedding": (((7, 3),), (2, 4, 3), (2, 4)),
    "cross_entropy": (((4, 7),), (), (4,)),
}
TINY_OPERATIONS = [
    Operation(name, "tiny", inputs, result, True, indices, 7) for name, (inputs, result, indices) in TINY_SHAPES.items()
]
QUICK = measure.Settings(
    threads=1, rounds=1, seconds=0.001, kernel_seconds=0.001, compile_times=False, memory=False
)


def numpy_losses(arrays: dict[str, np.ndarray], count: int) -> list[float]:
    """The losses of a dense network's first steps, written out by hand in float64."""
    parameters = [parameter.astype(np.float64) for parameter in peers.parameters_of(arrays)]
    first, second = ([np.zeros_like(p) for p in parameters] for _ in range(2))
    losses = []
    for step in range(count):
        x, y = arrays["x"][step].astype(np.float64), arrays["y"][step]
        inputs = [x]
        for i in range(0, len(parameters), 2):
            x = inputs[-1] @ parameters[i] + parameters[i + 1]
            inputs.append(x if i == len(parameters) - 2 else np.maximum(x, 0))
        logits = inputs.pop()
        shares = np.exp(logits - logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        losses.append(float(-np.log(shares[np.arange(len(y)), y]).mean()))
        cotangent = (shares - np.eye(shares.shape[1])[y]) / len(y)
        gradients: list[np.ndarray] = []
        for i in range(len(parameters) - 2, -1, -2):
            gradients[:0] = [inputs[i // 2].T @ cotangent, cotangent.sum(0)]
            cotangent = (cotangent @ parameters[i].T) * (inputs[i // 2] > 0)
        for i, gradient in enumerate(gradients):
            first[i] = 0.9 * first[i] + 0.1 * gradient
            second[i] = 0.999 * second[i] + 0.001 * gradient**2
            mean, square = first[i] / (1 - 0.9 ** (step + 1)), second[i] / (1 - 0.999 ** (step + 1))
            parameters[i] -= 1e-3 * (mean / (np.sqrt(square) + 1e-8) + 0.01 * parameters[i])
    return losses


def test_kauns_step_is_the_step_that_the_problem_describes() -> None:
    arrays = TINY_MLP.arrays()
    np.testing.assert_allclose(kaun_worker.Step(arrays).values(5), numpy_losses(arrays, 5), rtol=1e-4)


@pytest.mark.parametrize("problem", [TINY_MLP, TINY_CNN], ids=lambda problem: problem.name)
def test_kaun_agrees_with_the_interpreter(problem: Network) -> None:
    step = kaun_worker.Step(problem.arrays())
    step.run(1)
    np.testing.assert_allclose(step.values(4), kaun_worker.interpreted_losses(step, 4), rtol=1e-4)


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_peers_do_the_same_steps(name: str, tmp_path: Path) -> None:
    peer = next((system for system in peer_systems(sys.executable) if system.name == name), None)
    if peer is None:
        pytest.skip(f"{name} is not installed")
    with Worker(peer, 1) as worker:
        for problem in (TINY_MLP, TINY_CNN):
            arrays = problem.arrays()
            np.savez(tmp_path / "arrays.npz", **arrays)  # type: ignore[arg-type]
            worker.ask("load", arrays=str(tmp_path / "arrays.npz"))
            expected = kaun_worker.Step(arrays).values(4)
            np.testing.assert_allclose(worker.ask("values", count=4), expected, rtol=1e-4)
            assert min(worker.ask("time", seconds=0.001)) > 0
            np.testing.assert_allclose(worker.ask("values", count=4), expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_peers_compute_the_same_models_and_operations(name: str, tmp_path: Path) -> None:
    peer = next((system for system in peer_systems(sys.executable) if system.name == name), None)
    if peer is None:
        pytest.skip(f"{name} is not installed")
    with Worker(peer, 1) as worker:
        for problem in (*TINY_MODELS, *TINY_OPERATIONS):
            arrays = problem.arrays()
            np.savez(tmp_path / "arrays.npz", **arrays)  # type: ignore[arg-type]
            worker.ask("load", arrays=str(tmp_path / "arrays.npz"))
            expected = kaun_worker.make(arrays).values(3)
            np.testing.assert_allclose(worker.ask("values", count=3), expected, 1e-4, 1e-4, err_msg=problem.title)


@pytest.mark.parametrize("problem", TINY_MODELS, ids=lambda problem: problem.name)
def test_models_agree_with_the_interpreter(problem: Model) -> None:
    step = kaun_worker.Step(problem.arrays())
    step.run(1)
    np.testing.assert_allclose(step.values(2), kaun_worker.interpreted_losses(step, 2), rtol=1e-4)


def pooled(x: np.ndarray) -> np.ndarray:
    """The entries of each 2x2 window of (N, C, H, W) on a last axis."""
    return np.stack([x[:, :, i::2, j::2] for i in range(2) for j in range(2)], -1)


def convolved(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """The same-padded 3x3 convolution of (N, C, H, W)."""
    high, wide = x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    parts = (
        np.einsum("nchw,oc->nohw", padded[:, :, i : i + high, j : j + wide], weight[:, :, i, j])
        for i in range(3)
        for j in range(3)
    )
    return sum(parts) + bias[:, None, None]


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / 2**0.5))


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool = False) -> np.ndarray:
    scores = q @ k.swapaxes(2, 3) / q.shape[-1] ** 0.5
    return softmax(np.where(np.tri(*scores.shape[2:]), scores, -np.inf) if causal else scores) @ v


def standardised(x: np.ndarray, axes: int | tuple[int, ...]) -> np.ndarray:
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)


BY_HAND: dict[str, Callable[..., np.ndarray]] = {
    "layer_norm": lambda x, gain, bias: standardised(x, -1) * gain + bias,
    "rms_norm": lambda x, gain: x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * gain,
    "softmax": softmax,
    "gelu": gelu,
    "batch_norm": lambda x, gain, bias: standardised(x, (0, 2, 3)) * gain[:, None, None] + bias[:, None, None],
    "attention": attention,
    "causal_attention": lambda q, k, v: attention(q, k, v, causal=True),
    "conv1d": lambda x, weight, bias: convolved(
        x[:, :, None], np.pad(weight[:, :, None], ((0, 0), (0, 0), (1, 1), (0, 0))), bias
    )[:, :, 0],
    "conv2d": convolved,
    "max_pool": lambda x: pooled(x).max(-1),
    "avg_pool": lambda x: pooled(x).mean(-1),
    "linear": lambda x, weight, bias: x @ weight + bias,
    "linear_gelu": lambda x, weight, bias: gelu(x @ weight + bias),
    "embedding": lambda table, indices: table[indices],
    "cross_entropy": lambda logits, y: -np.log(softmax(logits))[np.arange(len(y)), y].mean(),
}


@pytest.mark.parametrize("name", TINY_SHAPES)
def test_operations_are_those_of_their_names(name: str) -> None:
    """Forward by NumPy in float64; the gradients by central differences along a random direction of each input."""
    inputs, result, indices = TINY_SHAPES[name]
    arrays = Operation(name, "tiny", inputs, result, True, indices, 7).arrays()
    values = [arrays[f"i{i}"] for i in range(len(inputs) + (indices is not None))]
    wide = [value.astype(np.float64) if value.dtype == np.float32 else value for value in values]
    system = kaun_worker.make(arrays)
    assert isinstance(system, kaun_worker.Operation)
    computed, *gradients = (tensor.numpy() for tensor in system.function(*system.arguments))
    np.testing.assert_allclose(computed, BY_HAND[name](*wide), rtol=1e-5, atol=1e-5)
    assert len(gradients) == len(inputs)
    generator = np.random.default_rng(1)
    for place, gradient in enumerate(gradients):
        direction = 1e-6 * generator.standard_normal(inputs[place])
        both = [
            np.sum(arrays["c"] * BY_HAND[name](*wide[:place], wide[place] + sign * direction, *wide[place + 1 :]))
            for sign in (1, -1)
        ]
        expected = (both[0] - both[1]) / 2e-6
        np.testing.assert_allclose(np.sum(gradient * direction) / 1e-6, expected, rtol=2e-4, atol=2e-4)


def test_all_operations_are_tested_and_have_names_of_their_own() -> None:
    assert {operation.operation for operation in OPERATIONS} == set(TINY_SHAPES) == set(kaun_problems.OPERATIONS)
    names = [problem.name for problem in PROBLEMS]
    assert len(set(names)) == len(names)
    assert {dict(model.settings)["model"] for model in MODELS} == set(kaun_problems.MODELS)


def test_a_sample_tells_results_apart_by_any_of_their_rows() -> None:
    result = np.random.default_rng(0).standard_normal((512, 64)).astype(np.float32)
    first = peers.sample([result])
    assert len(first) == 1 + peers.SAMPLED and first[0] == pytest.approx(1.0, rel=0.05)
    assert not np.allclose(first, peers.sample([result.T]), 1e-4, 1e-4)
    assert not np.allclose(first, peers.sample([2 * result]), 1e-4, 1e-4)


def test_problems_are_chosen_by_name_and_by_group() -> None:
    assert chosen(["quick"]) == list(GROUPS["quick"])
    assert [problem.name for problem in chosen(["matmul-64", "gelu", "text"])] == ["text", "gelu", "matmul-64"]
    assert chosen(["all"]) == chosen(["steps", "ops", "matmul"]) == list(PROBLEMS)
    with pytest.raises(ValueError, match="got 'gru', expected one of the groups quick, steps"):
        chosen(["gru"])


def result_of(**seconds: float) -> measure.Result:
    timings = {name: measure.Timing(0.0, time, time) for name, time in seconds.items()}
    kernel = {"what": "exp", "where": "-", "seconds": 1.0, "flops": 1, "bytes": 4, "chunks": 1, "text": "kernel 0: exp"}
    return measure.Result("op", "an operation", "operation", timings, [1.0], [kernel], 0)


def test_ratios_are_to_the_best_peer_and_kernels_are_shown_where_kaun_is_behind() -> None:
    ahead, behind = result_of(kaun=2.0, torch=8.0, jax=6.0), result_of(kaun=3.0, torch=1.0, jax=2.0)
    assert report.ratio_to_best(ahead) == 3.0
    assert report.ratio_to_best(behind) == pytest.approx(1 / 3)
    assert report.ratio_to_best(result_of(kaun=1.0)) is None
    assert report.geometric_mean([3.0, 1 / 3]) == pytest.approx(1.0)
    systems = {name: System(name, name, (), "0") for name in ("kaun", "torch", "jax")}
    peaks = {"flops": 1e9, "bandwidth": [(1 << 20, 1e9)], "target": "t"}
    times, kernels = report.tables(measure.Benchmark(1, systems, peaks, [ahead, behind]))
    assert times.columns[-2:] == ("best peer", "of limit")
    assert [row[-2] for row in times.rows] == ["3.00x", "0.33x", "1.00x"]
    assert kernels.title == "Kernels of an operation" and "kernel 0: exp" in report.markdown([kernels])


def test_the_share_of_the_limit_is_the_kernels_limits_over_the_time() -> None:
    peaks = {"flops": 8.0, "bandwidth": [(1 << 20, 16.0)]}
    kernels = [{"flops": 16, "bytes": 8}, {"flops": 1, "bytes": 64}]
    result = dataclasses.replace(result_of(kaun=12.0), kernels=kernels)
    assert report.share_of_limit(result, peaks) == pytest.approx((2.0 + 4.0) / 12.0)


def test_one_thread_is_timed_beside_all_of_them_if_asked_for() -> None:
    settings = dataclasses.replace(QUICK, threads=2, single_thread=True)
    benchmark = measure.run([TINY_CNN], [kaun_system()], settings, lambda text: None)
    (result,) = benchmark.results
    assert result.single_thread is not None and result.single_thread.least > 0
    assert list(result.timings) == ["kaun"]
    slow = dataclasses.replace(result_of(kaun=2.0), single_thread=measure.Timing(0.0, 3.0, 3.0))
    table = report.tables(measure.Benchmark(2, benchmark.systems, benchmark.peaks, [slow]), kernels=False)[0]
    assert table.columns[-1] == "threads" and table.rows[0][-1] == "1.50x"


def test_saved_runs_are_shown_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    systems = {"kaun": System("kaun", "Kaun", ("k",), "0"), "jax": System("jax", "JAX", ("j",), "1")}
    peaks = {"flops": 1e9, "bandwidth": [(1 << 20, 1e9)], "target": "t"}
    faster = {**peaks, "flops": 2e9}
    first = measure.Benchmark(1, systems, peaks, [result_of(kaun=2.0, jax=8.0)])
    again = dataclasses.replace(result_of(kaun=2.0, jax=4.0), single_thread=measure.Timing(0.0, 3.0, 3.0))
    other = dataclasses.replace(result_of(kaun=1.0, jax=3.0), name="other", title="another operation")
    second = measure.Benchmark(1, systems, faster, [again, other])
    files = [str(tmp_path / name) for name in ("first.json", "second.json")]
    for file, benchmark in zip(files, (first, second), strict=True):
        bench._save(file, benchmark)
    assert dataclasses.asdict(bench._saved(files[1:])) == json.loads(Path(files[1]).read_text())
    assert bench.main(["--show", *files, "--markdown", "--no-kernels"]) == 0
    text = capsys.readouterr().out
    assert "4.00 s (2.00x)" in text and "3.00 s (3.00x)" in text and "8.00 s" not in text and "2 GFLOP/s" in text
    with pytest.raises(ValueError, match="got runs on 2 threads of t and on"):
        first.with_more(dataclasses.replace(second, threads=2))
    (tmp_path / "broken.json").write_text('{"results": 3}')
    with pytest.raises(SystemExit):
        bench.main(["--show", str(tmp_path / "broken.json")])
    assert "no benchmark that --json wrote" in capsys.readouterr().err


def test_the_plot_is_a_picture_of_every_step_and_operation(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="drawing needs the extra `plot`")
    systems = {name: System(name, name, (), "0") for name in ("kaun", "torch")}
    peaks = {"flops": 1e9, "bandwidth": [(1 << 20, 1e9)], "target": "t"}
    file = tmp_path / "plot.png"
    rows = [result_of(kaun=2.0, torch=8.0), result_of(kaun=2.0, torch=1.0), result_of(kaun=1.0)]
    plot.save(measure.Benchmark(1, systems, peaks, rows), file)
    assert file.read_bytes().startswith(b"\x89PNG") and file.stat().st_size > 5000
    with pytest.raises(ValueError, match="without steps and operations"):
        plot.save(measure.Benchmark(1, systems, peaks, []), file)


def test_running_starts_again_from_the_initial_parameters() -> None:
    step = kaun_worker.Step(TINY_MLP.arrays())
    before = step.values(3)
    step.run(5)
    step.reset()
    assert step.values(3) == before


def test_gpt_2_small_has_its_124_million_parameters() -> None:
    (model,) = (model for model in MODELS if model.name == "gpt-2-small")
    sizes = {name: math.prod(shape) for name, shape in model.shapes}
    # The published count is with 1024 positions instead of 256.
    assert sum(sizes.values()) + (1024 - 256) * 768 == 124_439_808


GREEDY = """
import sys
import numpy as np
from kaun.tools.bench import peers


class Greedy:
    def __init__(self, arrays):
        self.initial = np.ones(1 << 22)
        self.kept = np.ones(1 << 20)
        np.ones(1 << 25)

    def forget_initial(self):
        del self.initial

    def run(self, times):
        for _ in range(times):
            np.ones(1 << 23)


print(peers.peak_bytes(Greedy, sys.argv[1], 2))
"""


def test_memory_is_that_of_steps_and_not_of_what_came_before(tmp_path: Path) -> None:
    """A system whose steps hold 64 MB beside the 8 MB it keeps, and whose making holds 256 MB for a while."""
    np.savez(tmp_path / "arrays.npz", x=np.zeros(1))
    command = [sys.executable, "-c", GREEDY, str(tmp_path / "arrays.npz")]
    peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    wanted = (8 << 20) + (64 << 20)
    if Path("/proc/self/clear_refs").exists():
        assert wanted - (4 << 20) < peak < wanted + (24 << 20)
    else:
        assert peak > wanted - (4 << 20)


def test_the_memory_of_steps_is_in_a_table_of_its_own() -> None:
    benchmark = measure.run([TINY_MLP], [kaun_system()], dataclasses.replace(QUICK, memory=True), lambda text: None)
    (result,) = benchmark.results
    parameters = 9 * 5 + 5 + 5 * 3 + 3
    assert 12 * parameters <= result.state_bytes <= 12 * parameters + 16
    assert result.lower_bound_bytes <= result.arena_bytes
    assert result.timings["kaun"].peak_bytes > 0
    assert result.frugal is not None and 0 < result.frugal["arena_bytes"] <= result.arena_bytes
    assert min(result.frugal["peak_bytes"], result.frugal["compiled_peak_bytes"]) > 0
    assert "Peak memory of training" in report.markdown(report.tables(benchmark))


def test_a_whole_run_agrees_and_reports(tmp_path: Path) -> None:
    systems = [kaun_system(), *(peer for peer in peer_systems(sys.executable) if peer.name == "numpy")]
    said: list[str] = []
    benchmark = measure.run([TINY_CNN, TINY_PRODUCT], systems, QUICK, said.append)
    steps, product = benchmark.results
    assert list(steps.timings) == ["kaun"] and list(product.timings) == ["kaun", "numpy"]
    assert all(timing.least > 0 and not timing.error for r in benchmark.results for timing in r.timings.values())
    assert report.failures(benchmark) == []
    (kernel,) = product.kernels
    assert (kernel["flops"], kernel["bytes"]) == (TINY_PRODUCT.flops, 3 * 4 * 24 * 24)
    text = report.markdown(report.tables(benchmark))
    assert "| tiny CNN |" in text and "| matmul 24 |" in text and "Kernels of tiny CNN" in text
    widths = {line.count("|") for line in text.split("\n\n")[1].splitlines()}
    assert len(widths) == 1
    assert any("NumPy" in line for line in said)


def test_a_peer_that_answers_wrongly_is_not_timed(tmp_path: Path) -> None:
    liar = tmp_path / "liar.py"
    liar.write_text(
        "import json, sys\n"
        "for line in sys.stdin:\n"
        "    do = json.loads(line)['do']\n"
        "    print(json.dumps({'answer': [1.0] * 4 if do == 'values' else 0.0}), flush=True)\n"
    )
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit('no such library')\n")
    systems = [
        kaun_system(),
        System("jax", "JAX", (sys.executable, str(liar)), "0"),
        System("torch", "PyTorch", (sys.executable, str(broken)), "0"),
    ]
    benchmark = measure.run([TINY_PRODUCT], systems, QUICK, lambda text: None)
    wrong, ended = report.failures(benchmark)
    assert "JAX left out: answers [1, 1, 1, 1], expected" in wrong
    assert "PyTorch left out" in ended and "no such library" in ended
    assert benchmark.results[0].timings["kaun"].least > 0


def test_a_wrong_answer_of_kaun_is_not_timed() -> None:
    program = (
        "from kaun.tools.bench import kaun_worker as w, peers\n"
        "peers.serve(w.make, {**w.MORE, 'interpreted': lambda system, request: [0.0] * request['count']})"
    )
    wrong = System("kaun", "Kaun", (sys.executable, "-c", program), "0")
    with pytest.raises(measure.DisagreementError, match="matmul 24"):
        measure.run([TINY_PRODUCT], [wrong], QUICK, lambda text: None)


def test_a_worker_reports_an_error_and_goes_on() -> None:
    with Worker(kaun_system(), 1) as worker:
        with pytest.raises(WorkerError, match="FileNotFoundError"):
            worker.ask("load", arrays="/no/such/file.npz")
        assert worker.ask("statistics")["compiled"] == 0


def test_the_command_writes_json_and_markdown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "chosen", lambda names: [TINY_PRODUCT])
    file = tmp_path / "bench.json"
    quick = ["--rounds", "1", "--seconds", "0.001", "--systems", "--threads", "1"]
    assert bench.main([*quick, "--markdown", "--json", str(file)]) == 0
    assert "| GFLOP/s | Kaun | Kaun / NumPy | Kaun / peak |" in capsys.readouterr().out
    assert json.loads(file.read_text())["results"][0]["name"] == "matmul-24"


def test_kernels_and_flops_of_a_step_are_counted() -> None:
    step = kaun_worker.Step(TINY_MLP.arrays())
    step.run(1)
    special, arguments = step.traced()
    inputs = [kn.execution.Storage.of(leaf.numpy()) for leaf in kn.ptree.leaves(arguments)]
    times = kaun_worker.kernel_times(special.compiled, [*inputs, *special.captured], 0.001)
    assert len(times) == len(special.compiled.compilation.program.calls)
    contractions = sum(kernel.flops for kernel in times if kernel.what.startswith("dot"))
    # Forward, gradient of each weight, and gradient of what enters the second layer; the rest is elementwise.
    products = 2 * 4 * (2 * 9 * 5 + 3 * 5 * 3)
    assert products <= contractions < 2 * products + 40 * (9 * 5 + 5 * 3)


def test_peaks_are_those_of_a_machine() -> None:
    peaks = measure_peaks(targets.host(), seconds=0.002)
    assert peaks.flops > 1e6 and all(rate > 1e6 for _, rate in peaks.bandwidth)
    assert 0 <= peaks.fork_and_join < 1 and 0 <= peaks.fork_and_join_after_serial < 1
    bounds = [bound for bound, _ in peaks.bandwidth]
    assert bounds == sorted(set(bounds))
    assert bandwidth_of([(10, 3.0), (100, 2.0), (1000, 1.0)], 50) == 2.0
    assert bandwidth_of([(10, 3.0), (100, 2.0)], 5000) == 2.0


def test_the_problems_are_those_of_the_documentation() -> None:
    assert [problem.name for problem in GROUPS["quick"]] == [
        "mlp-128", "mlp-512", "cnn", "matmul-256", "matmul-512", "matmul-1024", "matmul-2048",
    ]  # fmt: skip
    shapes = [parameter.shape for parameter in peers.parameters_of(PROBLEMS[2].arrays())]
    assert shapes[::2] == [(16, 1, 3, 3), (32, 16, 3, 3), (1568, 128), (128, 10)]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.234e-8, "0.01 µs"), (1.23e-5, "12.3 µs"), (4.56e-3, "4.56 ms"), (0.9996, "1.00 s"), (61.2, "61.2 s")],
)
def test_durations_have_three_digits(seconds: float, text: str) -> None:
    assert report.duration(seconds) == text
