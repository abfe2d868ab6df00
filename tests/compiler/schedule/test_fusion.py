"""What shares a kernel: the promises of the design, counted in kernels."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from graph_strategies import graph_from_seed
from kaun.compiler.ir import ops
from kaun.compiler.pipeline import Compilation
from kaun.compiler.schedule import aliasing, chains, fusion
from kaun.compiler.schedule.aliasing import may_overwrite
from kaun.compiler.schedule.chain_lowering import lower_chain
from kaun.compiler.schedule.collapse import all_values, roots_of
from kaun.compiler.schedule.fusion import EXPENSIVE
from kaun.compiler.schedule.loop_ir import Apply, ChainKernel, ContractionKernel, Load, LoopKernel
from kaun.compiler.schedule.lowering import lower
from schedule_examples import MODELS, TARGET, trace

import kaun as kn
from kaun import fn, layer, loss, nx, optim
from kaun.optim.apply import host_rates, traced_step

RANDOM = np.random.default_rng(0)
X, G = (RANDOM.normal(size=(32, 50)).astype(np.float32) for _ in range(2))
GAMMA, BETA = (RANDOM.normal(size=50).astype(np.float32) for _ in range(2))
CLASSES = RANDOM.integers(0, 50, 32)


def kernels_of(function, *arrays):
    return [scheduled.kernel for scheduled in trace(function, *arrays).compilation.kernels]


def values_of(kernel):
    return all_values(roots_of(kernel))


def with_gradient(function):
    """The function and its pullback of `g`."""
    return lambda x, g: (function(x), kn.grad(lambda x: nx.sum(function(x) * g))(x))


# Row passes.


@pytest.mark.parametrize(
    "function",
    [nx.softmax, nx.log_softmax, fn.layer_norm, lambda x: nx.logsumexp(x, axis=-1, keepdims=True) * nx.ones_like(x)],
    ids=["softmax", "log_softmax", "layer_norm", "logsumexp"],
)
def test_a_row_pass_is_one_loop_kernel_forward_and_backward(function):
    (forward,) = kernels_of(function, X)
    (both,) = kernels_of(with_gradient(function), X, G)
    for kernel in (forward, both):
        assert isinstance(kernel, LoopKernel) and [v.extent for v in kernel.outer] == [32]


def test_layer_norm_with_scale_and_shift_is_one_kernel_and_their_gradients_one_more():
    def norm(x, gamma, beta):
        return fn.layer_norm(x, gamma=gamma, beta=beta)

    def all_gradients(x, gamma, beta, g):
        objective = lambda *a: nx.sum(norm(*a) * g)  # noqa: E731
        return norm(x, gamma, beta), kn.grad(objective, argnums=(0, 1, 2))(x, gamma, beta)

    assert len(kernels_of(norm, X, GAMMA, BETA)) == 1
    rows, columns = kernels_of(all_gradients, X, GAMMA, BETA, G)
    assert [v.extent for v in rows.outer] == [32] and [v.extent for v in columns.outer] == [50]


def test_the_gradient_of_cross_entropy_is_one_kernel_and_its_mean_one_over_rows_alone():
    def value_and_gradient(x, classes):
        return kn.value_and_grad(lambda x: loss.cross_entropy_sparse(x, classes))(x)

    (gradient,) = kernels_of(lambda x, c: kn.grad(lambda x: loss.cross_entropy_sparse(x, c))(x), X, CLASSES)
    assert isinstance(gradient, LoopKernel)
    rows, mean = kernels_of(value_and_gradient, X, CLASSES)
    assert isinstance(rows, LoopKernel) and isinstance(mean, LoopKernel)
    assert all(buffer.size <= 32 for buffer in mean.buffers)


def test_elementwise_chains_and_movement_are_one_kernel():
    chain = lambda x, g: nx.tanh(nx.permute_dims(x * g + 1.0, (1, 0))[::-1]) * 2.0  # noqa: E731
    (kernel,) = kernels_of(chain, X, G)
    assert len(kernel.buffers) == 3


# Contractions.


def test_bias_activation_and_residual_finish_the_contraction():
    weight = RANDOM.normal(size=(50, 50)).astype(np.float32)
    (kernel,) = kernels_of(lambda x, w, b, g: nx.maximum(x @ w + b, 0.0) + g, X, weight, BETA, G)
    assert isinstance(kernel, ContractionKernel) and len(kernel.stores) == 1
    finish = [v.name for v in all_values([kernel.stores[0].value]) if isinstance(v, Apply)]
    assert sorted(finish)[:2] == ["add", "add"] and len(finish) <= 4


def test_a_linear_layer_and_its_relu_are_one_contraction_each_way():
    model = layer.sequential([layer.linear(in_features=50, out_features=20), layer.relu()])
    with nx.rng.run(seed=0):
        variables = layer.init(model)

    def forward(params, x):
        return layer.apply(model, variables.with_params(params), x, training=False)[0]

    (kernel,) = kernels_of(forward, variables.params, X)
    assert isinstance(kernel, ContractionKernel)


@pytest.mark.parametrize("rule", [optim.sgd(lr=0.1), optim.adam(lr=1e-3), optim.adamw(lr=1e-3)])
def test_the_update_of_a_weight_finishes_the_contraction_that_makes_its_gradient(rule):
    weight = RANDOM.normal(size=(50, 20)).astype(np.float32)
    state = optim.init(rule, nx.asarray(weight))
    rates = host_rates(rule, state)

    def step(weight, state, x, g):
        grads = kn.grad(lambda w: nx.sum((x @ w) * g))(weight)
        updates, new = traced_step(rule, state, weight, grads, rates)
        return optim.apply_updates(weight, updates), new

    kernels = kernels_of(step, weight, state, X, G[:, :20])
    contractions = [k for k in kernels if isinstance(k, ContractionKernel)]
    others = [k for k in kernels if not isinstance(k, ContractionKernel)]
    assert len(contractions) == 1
    assert all(buffer.size == 1 for kernel in others for buffer in kernel.buffers), "only counters are left"
    updated = {buffer.node.shape for buffer in (s.buffer for s in contractions[0].stores)}
    assert updated == {(50, 20)}
    assert not any(isinstance(v, Load) and v.buffer in {s.buffer for s in contractions[0].stores}
                   for v in values_of(contractions[0]))  # fmt: skip


def test_a_training_step_of_a_perceptron_takes_at_most_eight_kernels():
    assert len(MODELS["perceptron"]().compilation.kernels) <= 8


# Results of one number.


def test_numbers_that_are_results_share_a_kernel():
    def measured(x, count):
        return nx.mean(x[:, 0]), count + 1, nx.max(x[0]), nx.sqrt(count * 2.0)

    (kernel,) = kernels_of(measured, X, np.int32(3))
    assert isinstance(kernel, LoopKernel) and len(kernel.buffers) == 6


def test_numbers_share_no_kernel_if_one_of_them_waits_for_another():
    def chained(x, g, count):
        following = count + 1
        return following, nx.sum(nx.softmax(x * following) @ g.T)

    kernels = kernels_of(chained, X, G, np.int32(3))
    assert sum(all(buffer.size == 1 for buffer in kernel.buffers) for kernel in kernels) == 1


def test_a_long_sum_shares_no_kernel_with_a_counter():
    big = RANDOM.normal(size=(200, 200)).astype(np.float32)
    assert len(kernels_of(lambda x, count: (nx.sum(x), count + 1), big, np.int32(3))) == 2
    rows = [big[i : i + 25].reshape(-1) for i in range(0, 200, 25)]
    assert len(kernels_of(lambda *rows: tuple(nx.sum(row) for row in rows), *rows)) == 8


# Costs.


def expensive_names(scheduled):
    candidates = [n for n in scheduled.nodes if n.op.is_elementwise or n.op is ops.random_bits]
    return {n.op.name for n in candidates if n.op.flops(n) >= EXPENSIVE * max(1, n.size)}


def assert_nothing_expensive_twice(compilation):
    for scheduled in compilation.kernels:
        nodes = Counter(node.op.name for node in scheduled.nodes)
        # What depends on no loop is computed once, in front of them.
        computed = Counter(v.name for v in values_of(scheduled.kernel) if isinstance(v, Apply) and v.variables)
        for name in expensive_names(scheduled):
            assert computed[name] <= nodes[name], f"{name} is computed {computed[name]} times for {nodes[name]} nodes"


@pytest.mark.parametrize("hundred", range(3))
def test_no_kernel_of_a_random_graph_computes_an_expensive_node_at_two_places(hundred):
    for seed in range(100 * hundred, 100 * hundred + 100):
        assert_nothing_expensive_twice(Compilation(graph_from_seed(seed).graph, TARGET))


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_no_kernel_of_a_training_step_computes_an_expensive_node_at_two_places(model):
    assert_nothing_expensive_twice(model().compilation)


def test_neighbours_of_an_expensive_value_read_it_from_memory():
    def differences(x):
        y = nx.exp(x)
        return y[:, 1:] - y[:, :-1]

    first, second = kernels_of(differences, X)
    assert [v.name for v in values_of(first) if isinstance(v, Apply)] == ["exp"]
    assert [v.name for v in values_of(second) if isinstance(v, Apply)] == ["sub"]


def test_a_value_in_memory_may_be_read_at_several_places():
    weight = RANDOM.normal(size=(50, 16)).astype(np.float32)

    def normed(x, weight):
        y = x @ weight
        shifted = y - y[:1]
        mean = nx.mean(shifted, axis=0)
        variance = nx.mean(shifted * shifted, axis=0) - mean * mean
        return (shifted - mean) / nx.sqrt(variance + 1e-5)

    contraction, norm = kernels_of(normed, X, weight)
    assert isinstance(contraction, ContractionKernel) and isinstance(norm, LoopKernel)
    assert [v.extent for v in norm.outer] == [16]


# Order.


@pytest.mark.parametrize("hundred", range(2))
def test_every_kernel_reads_only_what_is_given_or_was_written_before_and_every_result_is_written_once(hundred):
    for seed in range(100 * hundred, 100 * hundred + 100):
        compilation = Compilation(graph_from_seed(seed).graph, TARGET)
        written = set(compilation.simplified.inputs)
        for scheduled in compilation.kernels:
            assert written >= set(scheduled.reads)
            assert not written & set(scheduled.outputs)
            written |= set(scheduled.outputs)
        assert all(node in written or not node.size for node in compilation.simplified.outputs)


def test_a_kernel_tells_why_what_it_reads_is_another_kernel():
    x, w = (RANDOM.normal(size=(64, 64)).astype(np.float32) for _ in range(2))
    compilation = trace(lambda x, w: nx.softmax(x @ w) @ w, x, w).compilation
    first, softmax, last = compilation.kernels
    assert not first.apart
    assert "reduction" in softmax.apart[first.outputs[0]]
    assert "".join(last.apart.values())
    assert "apart from kernel 0" in compilation.stage("fused")


def test_layers_of_equal_structure_are_judged_once():
    lowered = 0

    def counted(*arguments):
        nonlocal lowered
        lowered += 1
        return lower(*arguments)

    def layers(count):
        nonlocal lowered
        lowered = 0
        x, w = (RANDOM.normal(size=(64, 64)).astype(np.float32) for _ in range(2))

        def deep(x, w):
            for _ in range(count):
                x = fn.layer_norm(nx.tanh(x @ w)) + x
            return x

        kernels = kernels_of(deep, x, w)
        return len(kernels), lowered

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fusion, "lower", counted)
        (few, few_lowered), (many, many_lowered) = layers(4), layers(24)
    assert many > 5 * few
    # Each kernel of the further layers is lowered once, at the end, and no candidate is.
    assert many_lowered - few_lowered <= many - few


def test_attention_of_equal_layers_is_found_to_be_a_chain_once():
    tried = 0

    def counted(*arguments):
        nonlocal tried
        tried += 1
        return lower_chain(*arguments)

    def layers(count):
        nonlocal tried
        tried = 0
        x = RANDOM.normal(size=(2, 4, 64, 8)).astype(np.float32)

        def deep(x):
            for _ in range(count):
                x = fn.dot_product_attention(x, x, x) + x
            return x

        chained = [kernel for kernel in kernels_of(deep, x) if isinstance(kernel, ChainKernel)]
        return len(chained), tried

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chains, "lower_chain", counted)
        (few, few_tried), (many, many_tried) = layers(2), layers(12)
    assert many == 6 * few > 0
    assert 0 < many_tried == few_tried


def test_what_equal_kernels_may_write_over_is_found_out_once():
    asked = 0

    def counted(*arguments):
        nonlocal asked
        asked += 1
        return may_overwrite(*arguments)

    def layers(count):
        nonlocal asked
        asked = 0
        w = RANDOM.normal(size=(count, 64, 64)).astype(np.float32)

        def update(*weights):
            return tuple(nx.tanh(w) * 2.0 for w in weights)

        return len(trace(update, *w).compilation.program.aliases), asked

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aliasing, "may_overwrite", counted)
        (few, few_asked), (many, many_asked) = layers(2), layers(20)
    assert (few, many) == (2, 20)
    assert 0 < many_asked == few_asked
