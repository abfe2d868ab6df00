"""The same seed gives the same bits: on any number of threads, run after run, from a cold or a warm cache."""

import importlib
import itertools
import json
import os
import threading

import pytest
from kaun.runtime import cache, threads
from promises import digest, examples, exit_code_in_child, fresh_process, mlp, started, trainer_of
from workloads import WORKLOADS, digests

import kaun as kn
from kaun import execution, loss, nx, train

REPORT = "import workloads; workloads.report()"


@pytest.fixture
def thread_count():
    """Sets the number of threads, and puts the number from before back."""
    before = threads.num_threads()
    yield threads.set_num_threads
    threads.set_num_threads(before)


@pytest.fixture(scope="module")
def expected():
    return digests()


@pytest.mark.parametrize("work", WORKLOADS, ids=lambda work: work.__name__)
def test_one_to_four_threads_give_the_same_bits_run_after_run(work, thread_count, expected):
    for count in (1, 2, 3, 4, 2):
        thread_count(count)
        assert digest(work()) == expected[work.__name__], f"on {count} threads"


def test_processes_give_the_same_bits_from_a_cold_and_from_a_warm_cache(tmp_path, expected):
    runs = []
    for count, folder in ((1, "a"), (2, "a"), (2, "b")):
        done = fresh_process(REPORT, KAUN_CACHE_DIR=str(tmp_path / folder), KAUN_NUM_THREADS=str(count))
        assert done.returncode == 0, done.stderr
        runs.append(json.loads(done.stdout))
    assert all(run["digests"] == expected for run in runs)
    cold, warm, other = runs
    assert warm["compiled"] == 0 and warm["loaded"] == cold["compiled"] + cold["loaded"]
    assert cold["compiled"] == other["compiled"] > 0


def test_a_kernel_loaded_next_to_kernels_just_compiled_gives_the_same_bits(tmp_path, expected):
    environment = {"KAUN_CACHE_DIR": str(tmp_path), "KAUN_NUM_THREADS": "2"}
    assert fresh_process("import workloads; workloads.trained_perceptron()", **environment).returncode == 0
    for entry in itertools.islice(sorted(tmp_path.glob("*.kernel")), 0, None, 2):
        entry.unlink()
    code = "import workloads, promises; print(promises.digest(workloads.trained_perceptron()))"
    done = fresh_process(code, **environment)
    assert done.stdout.strip() == expected["trained_perceptron"], done.stderr


def test_threads_of_python_computing_at_once_get_the_same_results():
    x, y = examples(64, (20,), 3)
    trainer = trainer_of(mlp(rate=0.3))
    st = started(trainer)
    function = kn.jit(lambda a: nx.sum(nx.tanh(a @ a.T), axis=0))
    start = threading.Barrier(4)
    results, errors = [], []

    def work():
        try:
            start.wait()
            trained = train.fit(trainer, st, [(x, y)] * 10, loss=loss.cross_entropy_sparse)
            results.append((digest(trained.to_tree()), digest(function(x)), digest(nx.softmax(nx.asarray(x) * 3))))
        except Exception as error:  # a thread's failure is the test's
            errors.append(error)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not errors
    assert len(results) == 4 and len(set(results)) == 1


def test_one_lazy_tensor_looked_at_by_many_threads_has_one_value():
    x, _ = examples(500, (40,), 3)
    lazy = nx.sum(nx.exp(nx.asarray(x)) * 0.01)
    values = []
    workers = [threading.Thread(target=lambda: values.append(lazy.item())) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(values) == 8 and len(set(values)) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_computes_the_same_with_old_and_new_programs(thread_count):
    thread_count(2)
    x, y = examples(64, (20,), 3)
    trainer = trainer_of(mlp(hidden=300, rate=0.3))
    st = started(trainer)
    batches = [(x, y)] * 5
    wanted = digest(train.fit(trainer, st, batches, loss=loss.cross_entropy_sparse).to_tree())

    def child():
        assert digest(train.fit(trainer, st, batches, loss=loss.cross_entropy_sparse).to_tree()) == wanted
        assert float(nx.sum(nx.asarray(x) * 0.0 + 1.0)) == x.size  # a program the parent never compiled

    assert exit_code_in_child(child) == 0
    assert digest(train.fit(trainer, st, batches, loss=loss.cross_entropy_sparse).to_tree()) == wanted


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    "inside", ["kaun.compiler.passes.run", "kaun.compiler.pipeline.fuse", "kaun.compiler.pipeline.emit_kernel"]
)
def test_a_child_forked_while_another_thread_compiles_compiles_what_it_needs(inside, monkeypatch):
    monkeypatch.setattr(cache, "_default", [cache.KernelCache(None)])
    execution._programs.clear()
    entered, leave = threading.Event(), threading.Event()
    module, _, name = inside.rpartition(".")
    usual = getattr(importlib.import_module(module), name)

    def waiting(*arguments):
        if threading.current_thread() is parents:
            entered.set()
            leave.wait(60)
        return usual(*arguments)

    def computed(count):
        return float(kn.jit(lambda x: nx.sum(x * 2.0))(nx.ones((count,))))

    monkeypatch.setattr(inside, waiting)
    values = []
    parents = threading.Thread(target=lambda: values.append(computed(1237)))
    parents.start()
    assert entered.wait(60)

    def child():
        assert computed(1249) == 2 * 1249

    try:
        assert exit_code_in_child(child) == 0
    finally:
        leave.set()
        parents.join()
    assert values == [2 * 1237]
