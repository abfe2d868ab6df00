"""Layers: data that says how to make parameters and how to apply them.

A `Layer` is two functions. `init(dtype=)` makes its variables, `apply(params, state, x, dtype=, training=, ctx=)` gives
its output and its new state. Your own layer is just that; `sequential`, `compose` and `residual` build larger ones.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from kaun import fn, nx, ptree
from kaun import init as initializers
from kaun.compiler.ir import source
from kaun.compiler.ir.dtypes import DType, float32
from kaun.compiler.ir.dtypes import of as dtype_of
from kaun.context import Context
from kaun.described import Described, block, described, made_at, remember
from kaun.fn.windows import Extents, Padding, extents
from kaun.init import Initializer
from kaun.nx import Tensor
from kaun.nx.errors import describe, invalid_type, invalid_value, located
from kaun.ptree import Tree


@dataclass(frozen=True, repr=False)
class Vars:
    """A layer's variables: `params` is trained, `state` changes in the forward pass (running statistics), both trees;
    `dtype` is that of the parameters and of the computation."""

    params: Tree
    state: Tree
    dtype: DType

    def __post_init__(self) -> None:
        # Lists and mappings are taken, tuples and Dicts are kept.
        object.__setattr__(self, "params", ptree.as_tree(self.params))
        object.__setattr__(self, "state", ptree.as_tree(self.state))
        object.__setattr__(self, "dtype", dtype_of(self.dtype))

    def __repr__(self) -> str:
        parts = [f"params={ptree.text(self.params)}", f"state={ptree.text(self.state)}", f"dtype={self.dtype}"]
        return block("Vars(", parts, ")")

    def with_params(self, params: Tree) -> Vars:
        """These variables with other parameters."""
        return dataclasses.replace(self, params=params)

    def with_state(self, state: Tree) -> Vars:
        """These variables with another state."""
        return dataclasses.replace(self, state=state)


class Init(Protocol):
    """Makes a layer's variables in a dtype; random initialisers draw from the RNG scope."""

    def __call__(self, *, dtype: DType) -> Vars: ...


class Apply(Protocol):
    """Gives a layer's output and its new state (the old one if it has none to change). Pure."""

    def __call__(
        self, params: Tree, state: Tree, x: Any, /, *, dtype: DType, training: bool, ctx: Context | None
    ) -> tuple[Any, Tree]: ...


@dataclass(frozen=True, repr=False)
class Layer(Described):
    """`init(*, dtype) -> Vars` and `apply(params, state, x, *, dtype, training, ctx) -> (y, state)`, both pure."""

    init: Init
    apply: Apply

    def __call__(self, *args: Any, **keywords: Any) -> NoReturn:
        """TypeError: a layer holds no parameters, so it cannot be called like a function."""
        raise TypeError(
            "layer.Layer: a layer is not called; apply it to its variables and an input with "
            "`y, vars = kn.layer.apply(model, vars, x, training=...)`, or use `kn.train.predict(trainer, st, x)`"
        )


def init(model: Layer, *, dtype: DType = float32) -> Vars:
    """Fresh variables in `dtype`, computed. Random initialisers draw from the RNG scope. Traced where that is.

    TypeError for a dtype that is not a float.
    """
    dtype = dtype_of(dtype)
    if not dtype.is_float:
        raise TypeError(f"layer.init: got dtype {dtype}, expected a float dtype")
    if not isinstance(model, Layer):
        raise TypeError(f"layer.init: got model {type(model).__name__}, expected a Layer")
    made = _made(model, model.init(dtype=dtype))
    leaves = [*ptree.leaves(made.params), *ptree.leaves(made.state)]
    if not any(map(nx.is_traced, leaves)):
        nx.realize(*leaves)
    return made


def apply(model: Layer, vars: Vars, x: Any, *, training: bool, ctx: Context | None = None) -> tuple[Any, Vars]:
    """(y, vars): the output and the variables with their new state; the parameters are as they were.

    Floats are converted to the variables' dtype first; integers (indices) and bools are left alone. Tuples and mappings
    are handed to the model as such, for layers of your own that take several tensors; lists are arrays. `training`
    switches dropout and batch statistics on. ValueError or TypeError, naming the layer's path and the shapes, for an
    input or parameters that do not fit.
    """
    if not isinstance(model, Layer) or not isinstance(vars, Vars):
        raise TypeError(
            f"layer.apply: got {type(model).__name__} and {type(vars).__name__}, expected a Layer and its Vars "
            "(from `kn.layer.init`, or `st.vars` of a training state)"
        )
    x = _input(x, vars.dtype)
    with source.layer("", made_at(model)):
        given = model.apply(vars.params, vars.state, x, dtype=vars.dtype, training=training, ctx=ctx)
    y, state = _pair(model, given)
    return y, vars.with_state(state)


# What a user's own layer returns is checked; layers call these with it, so that an error has no frame of them.


def _made(layer: Layer, made: object) -> Vars:
    if not isinstance(made, Vars):
        raise TypeError(
            f"layer.init: the init of {layer!r} returned {type(made).__name__}, expected Vars(params, state, dtype)"
        )
    return made


def _pair(layer: Layer, given: object) -> tuple[Any, Tree]:
    if not isinstance(given, tuple) or len(given) != 2:
        raise invalid_type(
            "layer.apply", f"the apply of {layer!r} returned {_kind_of(given)}, expected a pair (y, state)"
        )
    return given


def _input(x: Any, dtype: DType) -> Any:
    if isinstance(x, tuple):
        return tuple(_input(part, dtype) for part in x)
    if isinstance(x, Mapping):
        return ptree.Dict({name: _input(part, dtype) for name, part in x.items()})
    tensor = nx.asarray(x)
    return nx.astype(tensor, dtype) if tensor.dtype.is_float else tensor


# --- parameters ------------------------------------------------------------------------------------------------------


def checked_parameters(function: str, params: Tree, *shapes: tuple[str, tuple[int, ...]]) -> list[Tensor]:
    """The named entries of a layer's parameters (or state), whose shapes must be these.

    ValueError in the name of `function` ("layer.linear") that gives the path of the entry.
    """
    found = []
    for name, shape in shapes:
        path = f"{source.layer_path()}.{name}".lstrip(".")
        if not isinstance(params, Mapping) or name not in params:
            raise invalid_value(function, f"no entry `{path}` in the layer's variables")
        entry = nx.asarray(params[name])
        if entry.shape != shape:
            raise invalid_value(function, f"got `{path}` of shape {list(entry.shape)}, expected {list(shape)}")
        found.append(entry)
    return found


def check_counts(function: str, **values: int) -> None:
    """ValueError in the name of `function` unless every value is a positive int."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{function}: got {name}={value!r}, expected a positive int")


def _stateless(f: Callable[[Tensor], Tensor]) -> Layer:
    """The layer without variables that applies `f`."""

    def init(*, dtype: DType) -> Vars:
        return Vars((), (), dtype)

    def apply(
        params: Tree, state: Tree, x: Any, /, *, dtype: DType, training: bool, ctx: Context | None
    ) -> tuple[Any, Tree]:
        return f(x), state

    return Layer(init, apply)


# --- affine and convolutional ----------------------------------------------------------------------------------------


def _affine(
    function: str,
    weight_shape: tuple[int, ...],
    out_features: int,
    weight_init: Initializer,
    bias_init: Initializer,
    forward: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Layer:
    """The layer with a `weight` and a `bias` (out_features,) that applies `forward(x, weight, bias)`."""

    def init(*, dtype: DType) -> Vars:
        weight, bias = weight_init(weight_shape, dtype), bias_init((out_features,), dtype)
        return Vars(ptree.Dict(weight=weight, bias=bias), (), dtype)

    def apply(
        params: Tree, state: Tree, x: Any, /, *, dtype: DType, training: bool, ctx: Context | None
    ) -> tuple[Tensor, Tree]:
        shapes = ("weight", weight_shape), ("bias", (out_features,))
        weight, bias = checked_parameters(f"layer.{function}", params, *shapes)
        return forward(x, weight, bias), state

    return Layer(init, apply)


@described
def linear(
    *,
    in_features: int,
    out_features: int,
    weight_init: Initializer = initializers.glorot_uniform,
    bias_init: Initializer = initializers.zeros,
) -> Layer:
    """y = x @ weight + bias: x (..., in_features), y (..., out_features).

    Parameters: weight (in_features, out_features), bias (out_features,).
    """
    check_counts("layer.linear", in_features=in_features, out_features=out_features)

    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if x.ndim < 1 or x.shape[-1] != in_features:
            raise invalid_value(
                "layer.linear",
                f"got x {describe(x._node)}, expected (..., {in_features}) for weight {list(weight.shape)}",
            )
        return fn.linear(x, weight, bias)

    return _affine("linear", (in_features, out_features), out_features, weight_init, bias_init, forward)


@described
def conv1d(
    *,
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    stride: int = 1,
    dilation: int = 1,
    padding: Padding = "same",
    weight_init: Initializer = initializers.glorot_uniform,
    bias_init: Initializer = initializers.zeros,
) -> Layer:
    """`fn.conv1d`: x (N, in_channels, L), y (N, out_channels, L'). `padding` is "same", "valid" or "causal".

    Parameters: weight (out_channels, in_channels, kernel_size), bias (out_channels,).
    """
    check_counts("layer.conv1d", in_channels=in_channels, out_channels=out_channels)
    (size,) = extents("layer.conv1d", "kernel_size", kernel_size, 1)

    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return fn.conv1d(x, weight, bias, stride=stride, dilation=dilation, padding=padding)

    return _affine("conv1d", (out_channels, in_channels, size), out_channels, weight_init, bias_init, forward)


@described
def conv2d(
    *,
    in_channels: int,
    out_channels: int,
    kernel_size: Extents = (3, 3),
    stride: Extents = (1, 1),
    dilation: Extents = (1, 1),
    padding: Padding = "same",
    groups: int = 1,
    weight_init: Initializer = initializers.glorot_uniform,
    bias_init: Initializer = initializers.zeros,
) -> Layer:
    """`fn.conv2d`: x (N, in_channels, H, W), y (N, out_channels, H', W').

    Parameters: weight (out_channels, in_channels / groups, KH, KW), bias (out_channels,). With padding "same",
    H' = ceil(H / stride). ValueError if the groups do not divide both numbers of channels.
    """
    check_counts("layer.conv2d", in_channels=in_channels, out_channels=out_channels, groups=groups)
    if in_channels % groups or out_channels % groups:
        raise ValueError(
            f"layer.conv2d: got groups={groups}, expected a divisor of in_channels={in_channels} and "
            f"out_channels={out_channels}"
        )
    sizes = extents("layer.conv2d", "kernel_size", kernel_size, 2)

    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return fn.conv2d(x, weight, bias, stride=stride, dilation=dilation, padding=padding, groups=groups)

    shape = (out_channels, in_channels // groups, *sizes)
    return _affine("conv2d", shape, out_channels, weight_init, bias_init, forward)


@described
def embedding(
    *,
    vocab_size: int,
    embed_dim: int,
    scale: bool = True,
    embedding_init: Initializer | None = None,
) -> Layer:
    """y[..., :] = embedding[x[...], :], times sqrt(embed_dim) with `scale`; x (...) of integers, y (..., embed_dim).

    Parameters: embedding (vocab_size, embed_dim), drawn with standard deviation 1 / sqrt(embed_dim), so that scaled
    entries have variance 1.
    """
    check_counts("layer.embedding", vocab_size=vocab_size, embed_dim=embed_dim)
    shape = (vocab_size, embed_dim)
    draw = embedding_init or functools.partial(initializers.normal, stddev=embed_dim**-0.5)

    def init(*, dtype: DType) -> Vars:
        return Vars(ptree.Dict(embedding=draw(shape, dtype)), (), dtype)

    def apply(
        params: Tree, state: Tree, x: Any, /, *, dtype: DType, training: bool, ctx: Context | None
    ) -> tuple[Tensor, Tree]:
        (table,) = checked_parameters("layer.embedding", params, ("embedding", shape))
        if not x.dtype.is_integer:
            raise invalid_type("layer.embedding", f"got x {describe(x._node)}, expected integers")
        return fn.embedding(x, table, scale=scale), state

    return Layer(init, apply)


# --- normalisation and dropout ---------------------------------------------------------------------------------------


@described
def layer_norm(*, dim: int, eps: float = 1e-5) -> Layer:
    """`fn.layer_norm` over the last axis, of extent `dim`. Parameters: gamma (dim,) of ones, beta (dim,) of zeros."""
    check_counts("layer.layer_norm", dim=dim)

    def init(*, dtype: DType) -> Vars:
        return Vars(ptree.Dict(gamma=nx.ones((dim,), dtype=dtype), beta=nx.zeros((dim,), dtype=dtype)), (), dtype)

    def apply(
        params: Tree, state: Tree, x: Any, /, *, dtype: DType, training: bool, ctx: Context | None
    ) -> tuple[Tensor, Tree]:
        gamma, beta = checked_parameters("layer.layer_norm", params, ("gamma", (dim,)), ("beta", (dim,)))
        _features("layer_norm", x, -1, dim)
        return fn.layer_norm(x, gamma=gamma, beta=beta, eps=eps), state

    return Layer(init, apply)


@described
def rms_norm(*, dim: int, eps: float = 1e-6) -> Layer:
    """`fn.rms_norm` over the last axis, of extent `dim`. Parameters: scale (dim,) of ones."""
    check_counts("layer.rms_norm", dim=dim)

    def init(*, dtype: DType) -> Vars:
        return Vars(ptree.Dict(scale=nx.ones((dim,), dtype=dtype)), (), dtype)

    def apply(
        params: Tree, state: Tree, x: Any, /, *, dtype: DType, training: bool, ctx: Context | None
    ) -> tuple[Tensor, Tree]:
        (scale,) = checked_parameters("layer.rms_norm", params, ("scale", (dim,)))
        _features("rms_norm", x, -1, dim)
        return fn.rms_norm(x, scale=scale, eps=eps), state

    return Layer(init, apply)


@described
def batch_norm(*, num_features: int, momentum: float = 0.99, eps: float = 1e-5) -> Layer:
    """`fn.batch_norm`: statistics over the batch when training, running ones otherwise.

    x is (N, C), (N, C, L) or (N, C, H, W) with C = num_features: statistics are over axes (0), (0, 2) or (0, 2, 3).
    Parameters: scale (C,) of ones, bias (C,) of zeros. State: running_mean (C,) from zeros and running_var (C,) from
    ones, each updated when training as momentum * old + (1 - momentum) * batch with the biased batch variance, as in
    Flax (PyTorch writes 1 - momentum for momentum and stores the unbiased variance). The state is at least float32.
    """
    check_counts("layer.batch_norm", num_features=num_features)
    if not 0.0 <= momentum <= 1.0:
        raise ValueError(f"layer.batch_norm: got momentum={momentum}, expected 0 <= momentum <= 1")
    shape = (num_features,)

    def init(*, dtype: DType) -> Vars:
        params = ptree.Dict(scale=nx.ones(shape, dtype=dtype), bias=nx.zeros(shape, dtype=dtype))
        wide = dtype.compute
        state = ptree.Dict(running_mean=nx.zeros(shape, dtype=wide), running_var=nx.ones(shape, dtype=wide))
        return Vars(params, state, dtype)

    def apply(
        params: Tree, state: Tree, x: Any, /, *, dtype: DType, training: bool, ctx: Context | None
    ) -> tuple[Tensor, Tree]:
        scale, bias = checked_parameters("layer.batch_norm", params, ("scale", shape), ("bias", shape))
        running_mean, running_var = checked_parameters(
            "layer.batch_norm", state, ("running_mean", shape), ("running_var", shape)
        )
        if x.ndim not in (2, 3, 4):
            raise invalid_value("layer.batch_norm", f"got x {describe(x._node)}, expected 2, 3 or 4 axes")
        _features("batch_norm", x, 1, num_features)
        if not training:
            return fn.batch_norm(x, scale=scale, bias=bias, mean=running_mean, variance=running_var, eps=eps), state
        mean, variance = fn.batch_statistics(x)
        updated = ptree.Dict(
            running_mean=_moved(running_mean, mean, momentum), running_var=_moved(running_var, variance, momentum)
        )
        return fn.batch_norm(x, scale=scale, bias=bias, mean=mean, variance=variance, eps=eps), updated

    return Layer(init, apply)


def _moved(old: Tensor, batch: Tensor, momentum: float) -> Tensor:
    return momentum * old + (1.0 - momentum) * nx.astype(batch, old.dtype)


def _features(function: str, x: Tensor, axis: int, count: int) -> None:
    if x.ndim == 0 or x.shape[axis] != count:
        raise invalid_value(f"layer.{function}", f"got x {describe(x._node)}, expected extent {count} in axis {axis}")


@described
def dropout(*, rate: float) -> Layer:
    """`fn.dropout` when training, the identity otherwise. ValueError unless 0 <= rate < 1."""
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"layer.dropout: got rate={rate}, expected 0 <= rate < 1")

    def apply(
        params: Tree, state: Tree, x: Any, /, *, dtype: DType, training: bool, ctx: Context | None
    ) -> tuple[Tensor, Tree]:
        return (fn.dropout(x, rate=rate) if training else x), state

    return dataclasses.replace(_stateless(lambda x: x), apply=apply)


# --- without parameters ----------------------------------------------------------------------------------------------


@described
def relu() -> Layer:
    """`fn.relu`: max(x, 0)."""
    return _stateless(fn.relu)


@described
def gelu(*, approximate: str = "none") -> Layer:
    """`fn.gelu`: exact, or with `approximate="tanh"`."""
    if approximate not in ("none", "tanh"):
        raise ValueError(f"layer.gelu: got approximate={approximate!r}, expected 'none' or 'tanh'")
    return _stateless(functools.partial(fn.gelu, approximate=approximate))


@described
def silu() -> Layer:
    """`fn.silu`: x * sigmoid(x)."""
    return _stateless(fn.silu)


@described
def tanh() -> Layer:
    """`fn.tanh`."""
    return _stateless(fn.tanh)


@described
def sigmoid() -> Layer:
    """`fn.sigmoid`: 1 / (1 + exp(-x))."""
    return _stateless(fn.sigmoid)


@described
def softmax(*, axis: int = -1) -> Layer:
    """`fn.softmax` along `axis`."""
    return _stateless(functools.partial(fn.softmax, axis=axis))


@described
def leaky_relu(*, negative_slope: float = 0.01) -> Layer:
    """`fn.leaky_relu`: x for x >= 0, negative_slope * x below."""
    return _stateless(functools.partial(fn.leaky_relu, negative_slope=negative_slope))


@described
def elu(*, alpha: float = 1.0) -> Layer:
    """`fn.elu`: x for x > 0, alpha * (exp(x) - 1) below."""
    return _stateless(functools.partial(fn.elu, alpha=alpha))


@described
def max_pool2d(*, kernel_size: Extents, stride: Extents | None = None, padding: Padding = "valid") -> Layer:
    """`fn.max_pool2d` of x (N, C, H, W); the stride is the kernel size unless given."""
    return _stateless(functools.partial(fn.max_pool2d, kernel_size=kernel_size, stride=stride, padding=padding))


@described
def avg_pool2d(*, kernel_size: Extents, stride: Extents | None = None, padding: Padding = "valid") -> Layer:
    """`fn.avg_pool2d` of x (N, C, H, W); the stride is the kernel size unless given."""
    return _stateless(functools.partial(fn.avg_pool2d, kernel_size=kernel_size, stride=stride, padding=padding))


@described
def flatten() -> Layer:
    """x (N, ...) to (N, M): all axes but the first become one."""

    def flat(x: Tensor) -> Tensor:
        if x.ndim == 0:
            raise invalid_value("layer.flatten", f"got x {describe(x._node)}, expected a batch axis")
        size = 1
        for extent in x.shape[1:]:
            size *= extent
        return nx.reshape(x, (x.shape[0], size))

    return _stateless(flat)


# --- composition -----------------------------------------------------------------------------------------------------


def sequential(layers: Sequence[Layer]) -> Layer:
    """Each layer applied to the output of the one before. Parameters and state are tuples: paths `0.weight`, `2.bias`.

    Of no layers, the identity.
    """
    children = tuple(layers)
    _check_layers("sequential", children)

    def init(*, dtype: DType) -> Vars:
        made = [_made(child, child.init(dtype=dtype)) for child in children]
        return Vars(tuple(one.params for one in made), tuple(one.state for one in made), dtype)

    def apply(
        params: Tree, state: Tree, x: Any, /, *, dtype: DType, training: bool, ctx: Context | None
    ) -> tuple[Any, Tree]:
        for name, tree in (("parameters", params), ("state", state)):
            if not isinstance(tree, (tuple, list)) or len(tree) != len(children):
                raise ValueError(
                    located(f"layer.sequential: got {name} {_kind_of(tree)}, expected a tuple of {len(children)}")
                )
        states = []
        for position, child in enumerate(children):
            with source.layer(str(position), made_at(child)):
                variables = params[position], state[position]
                given = child.apply(*variables, x, dtype=dtype, training=training, ctx=ctx)
                x, new_state = _pair(child, given)
            states.append(new_state)
        return x, tuple(states)

    return remember(Layer(init, apply), "sequential", children)


@described
def compose(left: Layer, right: Layer) -> Layer:
    """`right` applied to the output of `left`; what goes between may be of another type, such as indices to floats.

    Parameters and state are Dicts with keys `left` and `right`: paths `left.embedding`, `right.0.weight`.
    """
    children = {"left": left, "right": right}
    _check_layers("compose", tuple(children.values()))

    def init(*, dtype: DType) -> Vars:
        made = {name: _made(child, child.init(dtype=dtype)) for name, child in children.items()}
        return Vars(
            ptree.Dict({name: one.params for name, one in made.items()}),
            ptree.Dict({name: one.state for name, one in made.items()}),
            dtype,
        )

    def apply(
        params: Tree, state: Tree, x: Any, /, *, dtype: DType, training: bool, ctx: Context | None
    ) -> tuple[Any, Tree]:
        for what, tree in (("parameters", params), ("state", state)):
            if not isinstance(tree, Mapping) or set(tree) != set(children):
                raise ValueError(
                    located(f"layer.compose: got {what} {_kind_of(tree)}, expected a Dict with keys left and right")
                )
        states = {}
        for name, child in children.items():
            with source.layer(name, made_at(child)):
                variables = params[name], state[name]
                given = child.apply(*variables, x, dtype=dtype, training=training, ctx=ctx)
                x, states[name] = _pair(child, given)
        return x, ptree.Dict(states)

    return Layer(init, apply)


@described
def residual(inner: Layer) -> Layer:
    """x + inner(x), for an inner layer that keeps the shape. Parameters and state are those of `inner`.

    ValueError if the shapes differ. He et al., Deep residual learning, arXiv:1512.03385.
    """
    _check_layers("residual", (inner,))

    def apply(
        params: Tree, state: Tree, x: Any, /, *, dtype: DType, training: bool, ctx: Context | None
    ) -> tuple[Tensor, Tree]:
        with source.layer("", made_at(inner)):
            y, new_state = _pair(inner, inner.apply(params, state, x, dtype=dtype, training=training, ctx=ctx))
        if y.shape != x.shape:
            raise invalid_value(
                "layer.residual", f"got {describe(y._node)} from the inner layer, expected the input's {list(x.shape)}"
            )
        return x + y, new_state

    return Layer(inner.init, apply)


def _check_layers(function: str, children: Sequence[object]) -> None:
    for position, child in enumerate(children):
        if not isinstance(child, Layer):
            raise TypeError(
                f"layer.{function}: got {type(child).__name__} at position {position}, expected a Layer "
                "(layers are made by calling their constructor: relu(), not relu)"
            )


def _kind_of(tree: Tree) -> str:
    """What a tree is at its top, for messages."""
    if isinstance(tree, (tuple, list)):
        return f"a tuple of {len(tree)}"
    return f"a Dict with keys {list(tree)}" if isinstance(tree, Mapping) else f"a {type(tree).__name__}"
