"""Sums of an operand over a contraction's depth are part of the contraction, in every representation."""

from __future__ import annotations

import numpy as np
import pytest
from kaun.compiler.ir.verify import VerificationError
from kaun.compiler.schedule.aliasing import may_overwrite
from kaun.compiler.schedule.loop_ir import ContractionKernel, Load
from kaun.compiler.schedule.parse import parse_kernel
from kaun.compiler.schedule.run import run_kernel
from kaun.compiler.schedule.text import print_kernel
from kaun.compiler.schedule.verify import verify_kernel
from schedule_examples import trace

import kaun as kn
from kaun import layer, nx, optim
from kaun.optim.apply import host_rates, traced_step

RANDOM = np.random.default_rng(0)
X, W, G = (RANDOM.normal(size=shape).astype(np.float32) for shape in ((32, 50), (50, 20), (32, 20)))

TEXT = """\
kernel(%0: float32[12] in, %1: float32[8] in, %2: float32[2] in, %3: float32[6] out, %4: float32[2] out) {
  contract b < 1, m < 3, n < 2 over k < 4 in float32 {
    v0 = load %0[3*k + m] : float32
    left v0
    v1 = load %1[2*k + n] : float32
    right v1
    v2 = accumulator : float32
    store %3[2*m + n] = v2
    column sums {
      v3 = load %2[n] : float32
      v4 = accumulator : float32
      v5 = sub(v3, v4) of float32 : float32
      store %4[n] = v5
    }
  }
}
"""


def contraction_of(function, *arrays):
    """The only kernel, a contraction, and its stored and column-stored shapes."""
    (scheduled,) = trace(function, *arrays).compilation.kernels
    kernel = scheduled.kernel
    assert isinstance(kernel, ContractionKernel)
    shapes = [[store.buffer.node.shape for store in stores] for stores in (kernel.stores, kernel.column_stores)]
    return kernel, *shapes


def kinds_of(function, *arrays):
    """Whether each kernel is a contraction, and whether one has column sums."""
    kernels = [scheduled.kernel for scheduled in trace(function, *arrays).compilation.kernels]
    contractions = [k for k in kernels if isinstance(k, ContractionKernel)]
    return len(kernels), len(contractions), any(k.column_stores for k in contractions)


# What is merged.


def test_the_gradient_of_a_bias_is_computed_with_that_of_its_weight():
    _, stored, summed = contraction_of(lambda x, g: (x.T @ g, nx.sum(g, axis=0)), X, G)
    assert stored == [(50, 20)] and summed == [(20,)]


@pytest.mark.parametrize("rule", [optim.sgd(lr=0.1), optim.adamw(lr=1e-3)])
def test_both_are_followed_by_their_updates(rule):
    parameters = {"w": nx.asarray(W), "b": nx.zeros(20)}
    state = optim.init(rule, parameters)
    rates = host_rates(rule, state)

    def step(parameters, state, x, g):
        gradients = kn.grad(lambda p: nx.sum((x @ p["w"] + p["b"]) * g))(parameters)
        updates, new = traced_step(rule, state, parameters, gradients, rates)
        return optim.apply_updates(parameters, updates), new

    kernels = [scheduled.kernel for scheduled in trace(step, parameters, state, X, G).compilation.kernels]
    (contraction,) = (k for k in kernels if isinstance(k, ContractionKernel))
    assert {store.buffer.node.shape for store in contraction.stores} == {(50, 20)}
    assert {store.buffer.node.shape for store in contraction.column_stores} == {(20,)}
    assert len(kernels) <= 2
    assert all(buffer.size == 1 for k in kernels if k is not contraction for buffer in k.buffers), "counters are left"


def test_an_operand_computed_in_the_prologue_is_summed_as_it_is_multiplied():
    masked = lambda g: nx.where(g > 0, g * 2.0, 0.0)  # noqa: E731
    kernel, _, summed = contraction_of(lambda x, g: (x.T @ masked(g), nx.sum(masked(g), axis=0)), X, G)
    assert summed == [(20,)] and not isinstance(kernel.right, Load)


def test_all_axes_of_the_depth_are_summed_whatever_shapes_lie_between():
    x, g = X.reshape(4, 8, 50), G.reshape(4, 8, 20)

    def both(x, g):
        product = nx.reshape(x, (32, 50)).T @ nx.reshape(g, (32, 20))
        return product, nx.sum(g, axis=(0, 1)), nx.sum(nx.reshape(g, (32, 20)), axis=0, keepdims=True) * 2.0

    _, stored, summed = contraction_of(both, x, g)
    assert stored == [(50, 20)] and sorted(summed) == [(1, 20), (20,)]


def test_a_contraction_that_reads_its_rows_as_an_image_sums_its_columns_too():
    x, g = np.tile(X, (4, 8)), np.tile(G, (4, 1))[:, :10]
    kernel, stored, summed = contraction_of(lambda x, g: (nx.where(x > 0, x, 0.0).T @ g, nx.sum(g, axis=0)), x, g)
    assert kernel.image is not None and stored == [(400, 10)] and summed == [(10,)]


def test_each_entry_of_a_batch_has_its_own_sums():
    x, g = X.reshape(4, 8, 50), G.reshape(4, 8, 20)
    _, _, summed = contraction_of(lambda x, g: (nx.matrix_transpose(x) @ g, nx.sum(g, axis=1)), x, g)
    assert summed == [(4, 20)]


def test_all_biases_of_a_perceptron_are_updated_by_the_kernels_of_their_weights():
    model = layer.sequential(
        [layer.linear(in_features=50, out_features=20), layer.relu(), layer.linear(in_features=20, out_features=20)]
    )
    with nx.rng.run(seed=0):
        variables = layer.init(model)

    def step(params, x, g):
        objective = lambda p: nx.sum(layer.apply(model, variables.with_params(p), x, training=True)[0] * g)  # noqa: E731
        return kn.ptree.map2(lambda p, g: p - 0.1 * g, params, kn.grad(objective)(params))

    kernels = [scheduled.kernel for scheduled in trace(step, variables.params, X, G).compilation.kernels]
    assert all(isinstance(kernel, ContractionKernel) for kernel in kernels)
    assert sum(len(kernel.column_stores) for kernel in kernels) == 2


# What is not.


def test_a_sum_over_a_part_of_the_depth_stays_a_kernel_of_its_own():
    x, g = X.reshape(4, 8, 50), G.reshape(4, 8, 20)
    product = lambda x, g: nx.reshape(x, (32, 50)).T @ nx.reshape(g, (32, 20))  # noqa: E731
    assert kinds_of(lambda x, g: (product(x, g), nx.sum(g, axis=1)), x, g) == (2, 1, False)


def test_a_sum_over_the_columns_stays_a_kernel_of_its_own():
    assert kinds_of(lambda x, g: (x.T @ g, nx.sum(g, axis=1)), X, G) == (2, 1, False)
    square = X[:, :32]
    assert kinds_of(lambda x, g: (x.T @ g, nx.sum(g, axis=1)), square, square[::-1]) == (2, 1, False)


def test_a_sum_of_the_operand_that_becomes_the_rows_stays_a_kernel_of_its_own():
    assert kinds_of(lambda x, g: (x.T @ g, nx.sum(x, axis=0)), X, G) == (2, 1, False)


def test_what_needs_the_product_and_the_sum_stays_a_kernel_of_its_own():
    count, contractions, _ = kinds_of(lambda x, g: x.T @ g + nx.sum(g, axis=0), X, G)
    assert count == 2 and contractions == 1


def test_other_reductions_stay_kernels_of_their_own():
    assert kinds_of(lambda x, g: (x.T @ g, nx.max(g, axis=0)), X, G) == (2, 1, False)


# Representations.


def test_column_sums_parse_and_print_as_they_were_and_are_well_formed():
    kernel = parse_kernel(TEXT)
    assert print_kernel(kernel) == TEXT
    verify_kernel(kernel)


@pytest.mark.parametrize(
    "found, replaced, reason",
    [
        ("store %4[n] = v5", "store %4[m] = v5", "uses m outside their loops|m outside"),
        ("store %4[n] = v5", "store %4[n + 1] = v5", "store to %4 may be out of bounds"),
        ("store %4[n] = v5", "store %4[0] = v5", "not every element of %4"),
        ("store %4[n] = v5", "store %4[n] += v5", "accumulates"),
        ("sub(v3, v4)", "sub(v3, v2)", "the accumulator is read at b, m, n|uses m"),
        ("load %2[n]", "load %3[n]", "which the kernel writes"),
        ("%2: float32[2] in, %3: float32[6] out", "%2: float32[2] in, %3: float32[0] out", "without rows"),
    ],
)
def test_broken_column_sums_are_refused(found, replaced, reason):
    assert found in TEXT
    text = TEXT.replace(found, replaced)
    if "without" in reason:
        text = text.replace("m < 3", "m < 0").replace("%0: float32[12]", "%0: float32[0]")
    with pytest.raises((VerificationError, ValueError), match=reason):
        verify_kernel(parse_kernel(text))


def test_column_sums_mean_sums_of_the_right_operand_over_the_depth():
    x, g, b = (RANDOM.integers(-4, 5, shape).astype(np.float32) for shape in ((4, 3), (4, 2), (2,)))
    product, bias = np.empty((3, 2), np.float32), np.empty(2, np.float32)
    run_kernel(parse_kernel(TEXT), [x, g, b, product, bias])
    np.testing.assert_array_equal(product, x.T @ g)
    np.testing.assert_array_equal(bias, b - g.sum(axis=0))


def test_a_successor_may_be_written_over_what_only_the_column_sums_read():
    kernel = parse_kernel(TEXT)
    _, right, bias, _, updated = kernel.buffers
    assert may_overwrite(kernel, bias, updated)
    elsewhere = parse_kernel(TEXT.replace("v2 = accumulator : float32", "v2 = load %2[n] : float32"))
    assert not may_overwrite(elsewhere, elsewhere.buffers[2], elsewhere.buffers[4])
    assert not may_overwrite(kernel, right, updated)
