"""kn.remat: the same values and gradients in less memory, wherever it is used."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

import kaun as kn
from kaun import nx

BLOCKS, WIDTH, ROWS = 8, 32, 4096


def parameters() -> list[Any]:
    generator = np.random.default_rng(0)
    shapes = {"u": (WIDTH, 2 * WIDTH), "d": (2 * WIDTH, WIDTH)}
    return [
        {name: nx.asarray(generator.standard_normal(shape).astype(np.float32) / 8) for name, shape in shapes.items()}
        for _ in range(BLOCKS)
    ]


PARAMETERS = parameters()
X = nx.asarray(np.random.default_rng(1).standard_normal((ROWS, WIDTH)).astype(np.float32))
SPECS = [{name: kn.spec(tensor.shape) for name, tensor in block.items()} for block in PARAMETERS]


def block(params: Any, x: Any) -> Any:
    return x + kn.fn.gelu(nx.tanh(x) @ params["u"]) @ params["d"]


def loss_of(function: Any) -> Any:
    def loss(params: Any, x: Any) -> Any:
        for each in params:
            x = function(each, x)
        return nx.mean(x * x)

    return loss


def compiled(loss: Any) -> kn.Compiled:
    return kn.compile(kn.value_and_grad(loss), SPECS, kn.spec(X.shape))


def results(function: Any) -> list[np.ndarray]:
    value, grads = function(PARAMETERS, X)
    return [value.numpy(), *(leaf.numpy() for leaf in kn.ptree.leaves(grads))]


@pytest.fixture(scope="module")
def plain() -> kn.Compiled:
    return compiled(loss_of(block))


def products(function: kn.Compiled) -> int:
    return function.stages["simplified"].count("dot_general(")


def test_gradients_are_the_same_and_the_arena_is_smaller(plain: kn.Compiled) -> None:
    marked = compiled(loss_of(kn.remat(block)))
    for got, wanted in zip(results(marked), results(plain), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=1e-8)
    assert marked.memory.arena < 0.5 * plain.memory.arena
    # Of each block the first product is done again; nothing needs the second's result.
    assert products(marked) == products(plain) + BLOCKS


def test_a_budget_trades_products_for_bytes(plain: kn.Compiled) -> None:
    before = None
    for budget in (64 << 20, 9_600_000, 5_300_000):
        marked = compiled(kn.remat(loss_of(block), budget=budget))
        for got, wanted in zip(results(marked), results(plain), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=1e-8)
        size, count = marked.memory.arena, products(marked)
        if before is None:
            # What is cheap may be done again, but no product.
            assert size <= plain.memory.arena and count == products(plain)
        else:
            assert size < before[0] and before[1] <= count <= products(plain) + 2 * BLOCKS
        before = size, count


@pytest.mark.filterwarnings("ignore:kn.remat. a budget")
def test_no_budget_takes_less_than_a_mark_on_every_block(plain: kn.Compiled) -> None:
    """Blocks that are marked one by one keep all that enters them until the gradient is there."""
    blocks, least = compiled(loss_of(kn.remat(block))), compiled(kn.remat(loss_of(block), budget=0))
    for got, wanted in zip(results(least), results(plain), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=1e-8)
    assert least.memory.arena < 0.8 * blocks.memory.arena
    assert products(least) <= products(plain) + 2 * 2 * BLOCKS


def test_nothing_happens_where_no_gradient_is_taken() -> None:
    marked, direct = kn.remat(block), block(PARAMETERS[0], X)
    assert marked(PARAMETERS[0], X).numpy().tobytes() == direct.numpy().tobytes()
    text = kn.compile(marked, SPECS[0], kn.spec(X.shape)).stages["simplified"]
    assert "= remat(" not in text and "= again(" not in text


@pytest.mark.filterwarnings("ignore:kn.remat. a budget")
@pytest.mark.parametrize("budget", [None, 0, 20_000])
def test_dropout_inside_drops_the_same_again(budget: int | None) -> None:
    def dropped(params: Any, x: Any) -> Any:
        return x + kn.fn.dropout(nx.tanh(x @ params["u"]), rate=0.5) @ params["d"]

    def gradient(function: Any) -> list[Any]:
        @kn.jit
        def run(params: Any, x: Any) -> Any:
            with nx.rng.run(seed=3):
                return kn.grad(loss_of(function))(params, x)

        return [leaf.numpy() for leaf in kn.ptree.leaves(run(PARAMETERS, X))]

    for got, wanted in zip(gradient(kn.remat(dropped, budget=budget)), gradient(dropped), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-7)


def test_it_composes_with_itself_jit_vjp_and_second_derivatives() -> None:
    inner = kn.remat(lambda x: nx.sin(x * x))
    outer = kn.remat(kn.jit(lambda x: nx.exp(inner(x)) * inner(x)))

    def direct(x: Any) -> Any:
        return nx.exp(nx.sin(x * x)) * nx.sin(x * x)

    x = nx.asarray(np.linspace(-1.0, 1.0, 7))
    assert kn.gradcheck(outer, x)
    value, pullback = kn.vjp(outer, x)
    expected, expected_pullback = kn.vjp(direct, x)
    np.testing.assert_allclose(value.numpy(), expected.numpy(), rtol=1e-12)
    np.testing.assert_allclose(pullback(x)[0].numpy(), expected_pullback(x)[0].numpy(), rtol=1e-12)
    twice = [
        kn.grad(lambda x, f=f: nx.sum(kn.grad(lambda x: nx.sum(f(x)))(x) ** 2))(x).numpy() for f in (outer, direct)
    ]
    np.testing.assert_allclose(*twice, rtol=1e-10)


def test_structures_captured_tensors_and_settings_pass_through() -> None:
    class Pair(NamedTuple):
        left: Any
        right: Any

    captured = nx.asarray(np.arange(3.0))

    def f(pair: Pair, *, power: int, extra: Any) -> Any:
        return {"sum": pair.left**power + captured * pair.right, "extra": (extra, pair)}

    def objective(function: Any) -> Any:
        def objective(x: Any) -> Any:
            made = function(Pair(x, x * 2), power=3, extra="name")
            assert made["extra"][0] == "name" and isinstance(made["extra"][1], Pair)
            return nx.sum(made["sum"] * made["extra"][1].right)

        return objective

    x = nx.asarray(np.array([0.5, 1.0, 2.0]))
    assert kn.grad(objective(kn.remat(f)))(x).tolist() == kn.grad(objective(f))(x).tolist()


def test_a_trainer_keeps_to_its_memory_budget() -> None:
    layers = [kn.layer.linear(in_features=64, out_features=64), kn.layer.gelu(), kn.layer.dropout(rate=0.1)]
    model = kn.layer.sequential([*layers * 6, kn.layer.linear(in_features=64, out_features=4)])
    data = [(np.ones((128, 64), np.float32), np.arange(128) % 4)] * 3

    def trained(budget: int | None) -> tuple[list[np.ndarray], int]:
        trainer = kn.train.make(model=model, optimizer=kn.optim.sgd(lr=0.1), memory_budget=budget)
        with nx.rng.run(seed=0):
            st = kn.train.init(trainer)
        st = kn.train.fit(trainer, st, data, loss=kn.loss.cross_entropy_sparse)
        (special,) = next(iter(trainer._compiled.values()))._specialisations.values()
        program = special.compiled.compilation.program
        return [leaf.numpy() for leaf in kn.ptree.leaves(st.vars.params)], program.arena_bytes

    free, arena = trained(None)
    tight, smaller = trained(250_000)
    for got, wanted in zip(tight, free, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)
    assert smaller < 0.75 * arena


def test_negative_budgets_are_refused() -> None:
    with pytest.raises(ValueError, match=r"kn\.remat: got a budget of -1 bytes"):
        kn.remat(block, budget=-1)
    with pytest.raises(ValueError, match=r"train\.make: got a budget of -1 bytes"):
        kn.train.make(model=kn.layer.relu(), optimizer=kn.optim.sgd(lr=0.1), memory_budget=-1)


@pytest.mark.parametrize("budget", [1.5, float("nan"), True, "5", []])
def test_budgets_that_are_no_integers_are_refused(budget: object) -> None:
    with pytest.raises(TypeError, match=r"kn\.remat: got a budget of type \w+, expected a number of bytes"):
        kn.remat(block, budget=budget)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"train\.make: got a budget of type"):
        kn.train.make(model=kn.layer.relu(), optimizer=kn.optim.sgd(lr=0.1), memory_budget=budget)  # type: ignore[arg-type]


def test_the_gradient_of_a_table_larger_than_the_budget_is_never_in_memory() -> None:
    """A token embedding that is the output projection too: its update takes both parts of its gradient tile by tile."""
    vocabulary, width, tokens = 2000, 64, 24
    generator = np.random.default_rng(0)
    table = nx.asarray(generator.standard_normal((vocabulary, width)).astype(np.float32) / 8)
    indices = generator.integers(-1, vocabulary + 1, tokens).astype(np.int32)

    def loss(table: Any) -> Any:
        hidden = nx.tanh(kn.fn.embedding(indices, table, scale=False))
        return kn.loss.cross_entropy_sparse(hidden @ nx.permute_dims(table, (1, 0)), np.arange(tokens))

    def step(budget: int | None) -> kn.Compiled:
        function = loss if budget is None else kn.remat(loss, budget=budget)
        return kn.compile(lambda table: table - 0.5 * kn.grad(function)(table), kn.spec(table.shape))

    free, tight = step(None), step(vocabulary * width * 4 - 1)
    np.testing.assert_allclose(tight(table).numpy(), free(table).numpy(), rtol=1e-4, atol=1e-6)
    assert tight.memory.arena < 4 * vocabulary * width < free.memory.arena
