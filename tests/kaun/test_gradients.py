"""Derivatives of Python functions over trees: structure, composition, and clear errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest

from kaun import nx, ptree
from kaun.gradients import grad, gradcheck, stop_gradient, value_and_grad, vjp


def array(*numbers: float) -> Any:
    return nx.asarray(np.array(numbers, np.float64))


def test_the_gradient_has_the_structure_and_dtypes_of_the_argument() -> None:
    class Pair(NamedTuple):
        left: Any
        right: Any

    params = {
        "w": nx.asarray(np.ones((2, 3), np.float32)),
        "rest": [array(1, 2), Pair(array(3), nx.asarray(np.ones((), np.float64)))],
    }

    def loss(p: Any) -> Any:
        return nx.sum(p["w"]) * 2 + nx.sum(p["rest"][0] * array(5, 6)) + p["rest"][1].right * 4

    grads = grad(loss)(params)
    assert isinstance(grads, ptree.Dict) and isinstance(grads["rest"][1], Pair)
    assert [(leaf.dtype.name, leaf.shape) for leaf in ptree.leaves(grads)] == [
        ("float32", (2, 3)), ("float64", (2,)), ("float64", (1,)), ("float64", ()),
    ]  # fmt: skip
    assert [leaf.tolist() for leaf in ptree.leaves(grads)] == [[[2.0] * 3] * 2, [5.0, 6.0], [0.0], 4.0]


def test_value_and_grad_returns_both_and_passes_other_arguments_on() -> None:
    def f(x: Any, scale: Any, *, power: float) -> Any:
        return nx.sum(x**power) * scale

    value, gradient = value_and_grad(f)(array(1, 2), 10, power=2)
    assert value.item() == 50
    assert gradient.tolist() == [20, 40]


def test_several_argnums_give_a_tuple_and_negative_ones_count_from_the_end() -> None:
    f = lambda x, y: nx.sum(x * y * y)  # noqa: E731
    first, second = grad(f, argnums=(0, 1))(array(2), array(3))
    assert (first.item(), second.item()) == (9, 12)
    assert grad(f, argnums=-1)(array(2), array(3)).item() == 12
    with pytest.raises(ValueError, match=r"kn\.grad: argnums 2 do not index the 2 positional arguments"):
        grad(f, argnums=2)(array(2), array(3))


def test_python_numbers_are_differentiated() -> None:
    assert grad(lambda x: x**3)(2.0).item() == 12


def test_aux_comes_back_with_values_in_whatever_holds_it() -> None:
    @dataclass(frozen=True)
    class State:
        mean: Any
        name: str

    def f(x: Any) -> Any:
        return nx.sum(x * x), (State(x * 10, "s"), {"n": None, "y": [x + 1]})

    (value, (state, rest)), gradient = value_and_grad(f, has_aux=True)(array(1, 2))
    assert (value.item(), gradient.tolist()) == (5, [2, 4])
    assert (state.mean.tolist(), state.name) == ([10, 20], "s")
    assert rest["n"] is None and rest["y"][0].tolist() == [2, 3]
    gradient, aux = grad(f, has_aux=True)(array(1, 2))
    assert gradient.tolist() == [2, 4] and aux[0].mean.tolist() == [10, 20]


def test_two_leaves_that_are_one_tensor_have_their_own_gradients() -> None:
    x = array(3)
    first, second = grad(lambda pair: nx.sum(pair[0] * pair[0] * pair[1]))((x, x))
    assert (first.item(), second.item()) == (18, 9)


def test_a_captured_tensor_is_a_constant_even_if_it_is_the_argument() -> None:
    x = array(3)
    assert grad(lambda y: nx.sum(x * y))(x).item() == 3


def test_derivatives_of_derivatives() -> None:
    f = lambda x: nx.sum(nx.sin(x))  # noqa: E731
    third = grad(lambda x: nx.sum(grad(lambda x: nx.sum(grad(f)(x)))(x)))(array(0.3, 1.0))
    np.testing.assert_allclose(third.numpy(), -np.cos([0.3, 1.0]), rtol=1e-14)


def test_nested_derivatives_do_not_confuse_their_variables() -> None:
    """d/dx (x d/dy (x + y)) = 1.

    Siskind and Pearlmutter, Perturbation confusion and referential transparency (2005).
    """
    assert grad(lambda x: x * grad(lambda y: x + y)(1.0))(1.0).item() == 1
    assert grad(lambda x: x * grad(lambda y: x * y)(1.0))(3.0).item() == 6


def test_vjp_gives_outputs_and_a_pullback_that_can_be_called_again() -> None:
    outputs, pullback = vjp(lambda x, y: {"product": x * y, "sum": x + y}, array(2, 3), array(5, 7))
    assert outputs["product"].tolist() == [10, 21]
    for scale in (1, 10):
        dx, dy = pullback({"product": array(scale, 0), "sum": array(0, scale)})
        assert (dx.tolist(), dy.tolist()) == ([5 * scale, scale], [2 * scale, scale])


def test_vjp_of_a_linear_map_is_its_transpose() -> None:
    matrix = np.random.default_rng(0).normal(size=(3, 4))
    _, pullback = vjp(lambda x: nx.asarray(matrix) @ x, nx.asarray(np.zeros(4)))
    cotangent = np.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(pullback(nx.asarray(cotangent))[0].numpy(), matrix.T @ cotangent)


def test_vjp_rejects_cotangents_that_do_not_fit() -> None:
    _, pullback = vjp(lambda x: (x, x), array(1, 2))
    with pytest.raises(ValueError, match=r"kn\.vjp: the cotangents and the output of f differ at"):
        pullback(array(1, 2))
    with pytest.raises(ValueError, match=r"kn\.vjp: got a cotangent float64\[1\] at 1 for an output of shape \[2\]"):
        pullback((array(1, 2), array(1)))


def test_stop_gradient_takes_trees_and_stops() -> None:
    assert grad(lambda p: nx.sum(p["a"] * stop_gradient(p)["a"]))({"a": array(2, 3)})["a"].tolist() == [2, 3]
    assert stop_gradient(1.5).item() == 1.5


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: grad(lambda x: x)(x), ValueError, r"kn\.grad: f returned float64\[2\], expected a scalar"),
        (lambda x: grad(lambda x: 3.0)(x), TypeError, r"kn\.grad: f returned float, expected a float tensor"),
        (lambda x: grad(lambda x: nx.argmax(x))(x), TypeError, r"kn\.grad: f returned int64\[\], expected a float"),
        (lambda x: grad(nx.sum)(nx.asarray([1, 2])), TypeError, r"kn\.grad: got int64\[2\]; only floats"),
        (lambda x: grad(nx.sum)(1), TypeError, r"kn\.grad: got int64\[\]; only floats"),
        (
            lambda x: value_and_grad(lambda p: nx.sum(p["a"][0]))({"a": (x, nx.asarray([True]))}),
            TypeError, r"kn\.value_and_grad: got bool\[1\] at a\.1; only floats",
        ),
        (lambda x: grad(nx.sum, has_aux=True)(x), TypeError, r"f returned float64\[\], expected \(scalar, aux\)"),
        (lambda x: grad(lambda x: x if float(x[0]) > 0 else -x)(x), ValueError, "traced"),
        (lambda x: vjp(lambda x: (x, nx.argmax(x)), x), TypeError, r"kn\.vjp: f returned int64\[\] at 1"),
    ],
)  # fmt: skip
def test_errors_say_what_was_given_and_expected(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(array(1, 2))


def test_branching_on_values_that_do_not_depend_on_the_argument_is_fine() -> None:
    threshold = array(0.5)
    assert grad(lambda x: nx.sum(x * x) if float(threshold) > 0 else nx.sum(x))(array(3)).item() == 6


def test_gradcheck_accepts_right_gradients_of_any_outputs_and_holds_integers_fixed() -> None:
    rng = np.random.default_rng(0)
    assert gradcheck(lambda p, x: nx.tanh(x @ p["w"] + p["b"]), {"w": rng.normal(size=(3, 2)), "b": rng.normal(size=2)},
                     rng.normal(size=(4, 3)).astype(np.float32))  # fmt: skip
    assert gradcheck(lambda x, i: (nx.take(x, i, axis=0), nx.sum(x)), rng.normal(size=(3, 2)), np.array([0, 2, 2]))
    assert gradcheck(lambda i: nx.asarray(1.0), np.array([1]))


def test_gradcheck_finds_a_wrong_gradient_and_says_where() -> None:
    with pytest.raises(ValueError, match=r"kn\.gradcheck: at argument 0\.a, entry \(0,\): the gradient is"):
        gradcheck(lambda p: p["a"] * stop_gradient(p["a"]), {"a": array(1, 2)})
