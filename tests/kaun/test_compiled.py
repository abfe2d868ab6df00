"""`kn.compile`: compiled for given types, called like the function, readable at every stage."""

import warnings

import numpy as np
import pytest
from kaun.compiler.ir import parse_graph, print_graph
from kaun.runtime.cache import default_cache

import kaun as kn
from kaun import nx


def layer(params, x):
    return nx.tanh(x @ params["weight"] + params["bias"])


def compiled_layer():
    return kn.compile(layer, {"weight": kn.spec((7, 3)), "bias": kn.spec(3)}, kn.spec((4, 7)))


def arguments(seed=0):
    generator = np.random.default_rng(seed)
    params = {"weight": generator.normal(size=(7, 3)), "bias": generator.normal(size=3)}
    x = generator.normal(size=(4, 7)).astype(np.float32)
    return {name: array.astype(np.float32) for name, array in params.items()}, x


def test_it_computes_what_the_function_computes_and_compiles_nothing_when_called():
    compiled = compiled_layer()
    compiled(*arguments())  # The first call of a process also starts the thread pool, which is compiled too.
    before = default_cache().statistics.compiled
    for seed in range(3):
        params, x = arguments(seed)
        expected = np.tanh(x.astype(np.float64) @ params["weight"] + params["bias"])
        np.testing.assert_allclose(compiled(params, x).numpy(), expected, rtol=1e-5)
    assert default_cache().statistics.compiled == before


def test_errors_in_the_function_surface_when_it_is_compiled():
    with pytest.raises(ValueError, match="matmul"):
        kn.compile(nx.matmul, kn.spec((2, 3)), kn.spec((4, 5)))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda p, x: (p, x[:, :5]), ValueError, r"argument 1: got shape \[4, 5\], expected \[4, 7\]"),
        (lambda p, x: (p, x.astype(np.float64)), TypeError, "argument 1: got dtype float64, expected float32"),
        (lambda p, x: (p | {"bias": p["bias"][:2]}, x), ValueError, r"argument 0 at `bias`: got shape \[2\]"),
        (lambda p, x: (p["weight"], x), ValueError, "argument 0 differs from its spec"),
        (lambda p, x: (p,), TypeError, "got 1 arguments, expected 2"),
    ],
)
def test_wrong_arguments_are_named(change, error, message):
    params, x = arguments()
    with pytest.raises(error, match=message):
        compiled_layer()(*change(params, x))


@pytest.mark.parametrize(("shape", "dtype", "error"), [((2, -1), "float32", ValueError), ((2,), "float31", TypeError)])
def test_specs_reject_what_no_tensor_has(shape, dtype, error):
    with pytest.raises(error):
        kn.spec(shape, dtype)


def test_a_shape_in_the_place_of_a_spec_is_an_error_that_says_what_to_write():
    with pytest.raises(TypeError, match=r"argument 0: got a tuple of numbers; write kn.spec\(\(3,\)\)"):
        kn.compile(nx.tanh, (3,))
    with pytest.raises(TypeError, match=r"got a list of numbers; write kn.spec\(\[2, 3\]\)"):
        kn.compile(lambda tree: tree["x"], {"x": [2, 3]})
    with pytest.raises(TypeError, match=r"kn.spec: got shape \(None, 12\), expected whole numbers"):
        kn.spec((None, 12))


def test_saving_and_exporting_warn_of_what_is_left_out(tmp_path):
    def function(x):
        kn.debug.check(x > 0, "positive")
        return kn.debug.print(nx.exp(x), "exp") + kn.debug.print(x, "x")

    made = kn.compile(function, kn.spec(3))
    told = "left out 1 of kn.debug.check and 2 of kn.debug.print"
    with pytest.warns(UserWarning, match=told):
        made.save(tmp_path / "f.kaun")
    with pytest.warns(UserWarning, match=told):
        made.export(tmp_path / "exported")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kn.compile(nx.exp, kn.spec(3)).save(tmp_path / "f.kaun")


def test_every_stage_has_a_text_and_the_graphs_parse():
    step = kn.compile(kn.value_and_grad(lambda w, x: nx.sum(nx.tanh(x @ w))), kn.spec((7, 3)), kn.spec((4, 7)))
    assert list(step.stages) == [
        "traced", "differentiated", "simplified", "fused", "scheduled", "llvm", "assembly",
    ]  # fmt: skip
    for name in ("traced", "differentiated", "simplified"):
        text = step.stages[name]
        assert print_graph(parse_graph(text)) == text
    assert "backward" in step.stages["differentiated"] and "backward" not in step.stages["traced"]
    assert "contract" in step.stages["scheduled"] and "define void" in step.stages["llvm"]
    assert "ret" in step.stages["assembly"]
    with pytest.raises(KeyError, match="expected one of traced"):
        step.stages["linked"]


def test_costs_are_counted_from_the_shapes():
    product = kn.compile(nx.matmul, kn.spec((16, 32)), kn.spec((32, 8)))
    assert len(product.kernels) == 1
    assert product.cost.flops == 2 * 16 * 32 * 8
    assert product.cost.bytes == 4 * (16 * 32 + 32 * 8 + 16 * 8)
    assert (product.memory.inputs, product.memory.outputs) == (4 * (16 * 32 + 32 * 8), 4 * 16 * 8)
    assert product.memory.arena >= product.memory.lower_bound == 0
    assert "inputs 3.1 kB + outputs 512 B (and 0 B in place) + arena 0 B" in repr(product.memory)
    assert "1 kernels" in repr(product)
