"""Attention layers: multi-head self-attention with grouped heads, causal and padding masks, and rotary positions."""

from __future__ import annotations

from typing import Any

from kaun import fn, nx, ptree
from kaun import init as initializers
from kaun.compiler.ir.dtypes import DType, bool_
from kaun.context import Context
from kaun.described import described
from kaun.fn.attention import rope
from kaun.init import Initializer
from kaun.layer import Layer, Vars, check_counts, checked_parameters
from kaun.nx import Tensor
from kaun.nx.errors import describe, invalid_type, invalid_value
from kaun.ptree import Tree

__all__ = ["MASK", "multi_head_attention", "rope"]

MASK = "attention_mask"
"""The name in the context under which `multi_head_attention` finds its padding mask."""

_rotated = rope  # `rope` is also the name of an option below.


@described
def multi_head_attention(
    *,
    embed_dim: int,
    num_heads: int,
    num_kv_heads: int | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    rope: bool = False,
    rope_theta: float = 10000.0,
    weight_init: Initializer = initializers.glorot_uniform,
) -> Layer:
    """Self-attention over x (B, T, embed_dim): y = concat over heads of attention(x Wq, x Wk, x Wv) @ Wo, of x's shape.

    Parameters, without biases, for a head dimension D = embed_dim / num_heads: q_proj (embed_dim, num_heads * D),
    k_proj and v_proj (embed_dim, num_kv_heads * D), out_proj (num_heads * D, embed_dim). With fewer `num_kv_heads`,
    groups of query heads share keys and values. `is_causal` hides later positions; `rope` rotates queries and keys
    (see `rope`); `dropout` drops attention weights when training, with keys from the RNG scope. If the context holds
    "attention_mask" (B, T), bool or integer, positions where it is False or 0 are not seen.

    ValueError unless num_heads divides embed_dim, num_kv_heads divides num_heads, D is even with `rope`, and
    0 <= dropout < 1; and for an input or a mask of another shape. See `fn.dot_product_attention`.
    """
    kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    check_counts("attention.multi_head_attention", embed_dim=embed_dim, num_heads=num_heads, num_kv_heads=kv_heads)
    _check_options(embed_dim, num_heads, kv_heads, dropout, rope)
    dim = embed_dim // num_heads
    shapes = {
        "q_proj": (embed_dim, num_heads * dim),
        "k_proj": (embed_dim, kv_heads * dim),
        "v_proj": (embed_dim, kv_heads * dim),
        "out_proj": (num_heads * dim, embed_dim),
    }

    def init(*, dtype: DType) -> Vars:
        return Vars(ptree.Dict({name: weight_init(shape, dtype) for name, shape in shapes.items()}), (), dtype)

    def heads(x: Tensor, weight: Tensor, count: int) -> Tensor:
        """x @ weight, as (B, count, T, D)."""
        return nx.permute_dims(nx.reshape(x @ weight, (*x.shape[:2], count, dim)), (0, 2, 1, 3))

    def apply(
        params: Tree, state: Tree, x: Any, /, *, dtype: DType, training: bool, ctx: Context | None
    ) -> tuple[Tensor, Tree]:
        q_proj, k_proj, v_proj, out_proj = checked_parameters("attention.multi_head_attention", params, *shapes.items())
        if x.ndim != 3 or x.shape[-1] != embed_dim:
            raise invalid_value(
                "attention.multi_head_attention", f"got x {describe(x._node)}, expected (B, T, {embed_dim})"
            )
        q, k, v = heads(x, q_proj, num_heads), heads(x, k_proj, kv_heads), heads(x, v_proj, kv_heads)
        if rope:
            q, k = _rotated(q, theta=rope_theta), _rotated(k, theta=rope_theta)
        y = fn.dot_product_attention(
            q, k, v, mask=_padding(ctx, x), is_causal=is_causal, dropout=dropout if training else 0.0
        )
        return nx.reshape(nx.permute_dims(y, (0, 2, 1, 3)), (*x.shape[:2], num_heads * dim)) @ out_proj, state

    return Layer(init, apply)


def _check_options(embed_dim: int, num_heads: int, kv_heads: int, dropout: float, rope: bool) -> None:
    name = "attention.multi_head_attention"
    if embed_dim % num_heads:
        raise ValueError(f"{name}: got num_heads={num_heads}, expected a divisor of embed_dim={embed_dim}")
    if num_heads % kv_heads:
        raise ValueError(f"{name}: got num_kv_heads={kv_heads}, expected a divisor of num_heads={num_heads}")
    if rope and (embed_dim // num_heads) % 2:
        raise ValueError(
            f"{name}: got a head dimension of {embed_dim // num_heads}, expected an even one for rotary positions"
        )
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"{name}: got dropout={dropout}, expected 0 <= dropout < 1")


def _padding(ctx: Context | None, x: Tensor) -> Tensor | None:
    """The context's mask as (B, 1, 1, T), if there is one."""
    if ctx is None or MASK not in ctx:
        return None
    mask = ctx[MASK]
    if mask.shape != x.shape[:2]:
        raise invalid_value(
            "attention.multi_head_attention",
            f"got the mask {describe(mask._node)} in the context, expected shape {list(x.shape[:2])}",
        )
    if mask.dtype.is_float:
        raise invalid_type(
            "attention.multi_head_attention", f"got the mask {describe(mask._node)} in the context, expected bools or "
            "integers"
        )
    seen = mask if mask.dtype is bool_ else mask != 0
    return nx.reshape(seen, (x.shape[0], 1, 1, x.shape[1]))
