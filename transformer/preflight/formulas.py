"""The parts of the network written a second time, from the papers, in fp64: what the model's own are compared with.

They are computed on the CPU from a module's parameters, without kernels, caches or precision settings. A variant is a
known mistake: where the model gives what a variant gives, the mistake has a name.

Dimensions: B batch · T window · D d_model · H heads · K key-value heads · E head_dim · F d_feed_forward
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer.model import ModelConfig
from transformer.model.config import GATED

# The choices that these formulas know. A model with any other is not compared.
_SIZES = "vocab_size context_length d_model n_layers n_heads n_kv_heads head_dim d_feed_forward"
_CHOICES = (
    "positions rope_theta rope_layers rope_local_theta norm norm_placement norm_eps activation qk_norm joint_qk_norm "
    "bias attention_output_bias feed_forward_bias head_bias scale_embeddings tie_embeddings dropout "
    "query_pre_attn_scalar sliding_window sliding_window_layers"
)
_KNOWN = {*_SIZES.split(), *_CHOICES.split()}


def unknown_choice(config: ModelConfig) -> str:
    """A choice of the architecture that these formulas do not know, which is not at its default; or an empty string."""
    if type(config) is not ModelConfig:
        return type(config).__name__
    for field in dataclasses.fields(config):
        if field.name not in _KNOWN and getattr(config, field.name) != field.default:
            return field.name
    return ""


def norm(x: Tensor, module: nn.Module, config: ModelConfig) -> Tensor:
    """LayerNorm: (x - mean) / sqrt(variance + eps) * weight + bias. RMSNorm: x / sqrt(mean square + eps) * weight."""
    if config.norm == "layer":
        x = x - x.mean(dim=-1, keepdim=True)
    x = x / (x.square().mean(dim=-1, keepdim=True) + config.norm_eps).sqrt() * _double(module.weight)
    return x if getattr(module, "bias", None) is None else x + _double(module.bias)


def added_positions(model: nn.Module, config: ModelConfig, positions: Tensor) -> Tensor:
    """(B, T, D) what is added to the embeddings at `positions` (B, T)."""
    if config.positions == "learned":
        return _double(model.position_embedding.weight)[positions]  # type: ignore[union-attr]
    even = torch.arange(0, config.d_model, 2, dtype=torch.float64)
    angles = positions[..., None] / 10_000 ** (even / config.d_model)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def rotate(x: Tensor, positions: Tensor, theta: float, sign: int = 1) -> Tensor:
    """RoPE: pairs (x_i, x_{i + E/2}) as complex numbers, times exp(i position theta^(-2i/E)); x is (B, H, T, E)."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    turn = torch.polar(torch.ones((), dtype=torch.float64), sign * positions[:, None, :, None] * frequencies)
    turned = torch.complex(x[..., :half].contiguous(), x[..., half:].contiguous()) * turn
    return torch.cat([turned.real, turned.imag], dim=-1)


def attention(
    x: Tensor,
    module: nn.Module,
    config: ModelConfig,
    positions: Tensor,
    mask: Tensor,
    theta: float | None,
    rotated: str = "queries and keys",
    normalised: str = "queries and keys",
    strided_groups: bool = False,
    mixed_heads: bool = False,
    softmax_dim: int = -1,
) -> Tensor:
    """(B, T, D) softmax(Q K^T / sqrt(d_k)) V of every head, joined.

    Args:
        mask: (B, T, T). theta: base of the rotary frequencies; None: this layer does not rotate. What follows are
            mistakes.
    """
    n_heads, n_kv, batch, length = config.n_heads, config.kv_heads, x.shape[0], x.shape[1]

    def heads(name: str, count: int) -> Tensor:
        return linear(x, getattr(module, name)).view(batch, length, count, -1).transpose(1, 2)  # (B, count, T, ·)

    query, key, value = heads("query", n_heads), heads("key", n_kv), heads("value", n_kv)
    if config.qk_norm:
        if "queries" in normalised:
            query = _norm_of_heads(query, module.query_norm, config)  # type: ignore[arg-type]
        if "keys" in normalised:
            key = _norm_of_heads(key, module.key_norm, config)  # type: ignore[arg-type]
    if theta is not None:
        query = rotate(query, positions, theta) if "queries" in rotated else query
        key = rotate(key, positions, theta) if "keys" in rotated else key
    group = torch.arange(n_heads) % n_kv if strided_groups else torch.arange(n_heads) // (n_heads // n_kv)
    key, value = key[:, group], value[:, group]
    scores = query @ key.transpose(-2, -1) / math.sqrt(config.query_pre_attn_scalar or config.key_dim)
    weights = scores.masked_fill(~mask[:, None], -math.inf).softmax(dim=softmax_dim).nan_to_num()
    found = weights.masked_fill(~mask[:, None], 0.0) @ value  # (B, H, T, ·)
    joined = found.reshape(batch, length, -1) if mixed_heads else found.transpose(1, 2).flatten(2)
    return linear(joined, module.output)  # type: ignore[arg-type]


def _norm_of_heads(x: Tensor, module: nn.Module, config: ModelConfig) -> Tensor:
    """RMSNorm of queries or keys (B, H, T, E), of each head or of all heads of a token together."""
    rms = dataclasses.replace(config, norm="rms")
    if not config.joint_qk_norm:
        return norm(x, module, rms)
    batch, heads, length, width = x.shape
    joined = x.transpose(1, 2).reshape(batch, length, heads * width)
    return norm(joined, module, rms).view(batch, length, heads, width).transpose(1, 2)


# Of each placement: the norm of what enters a sub-layer, of what it gives, and of its sum with the residual stream.
NORMS = {
    "pre": ("{}_norm", "", ""),
    "post": ("", "", "{}_norm"),
    "reordered": ("", "{}_norm", ""),
    "sandwich": ("{}_norm", "{}_output_norm", ""),
}
PLACEMENTS = {
    "pre": "sublayer(norm(x)) + x",
    "post": "norm(x + sublayer(x))",
    "reordered": "norm(sublayer(x)) + x",
    "sandwich": "norm(sublayer(norm(x))) + x",
}


def sub_layer_input(layer: nn.Module, config: ModelConfig, kind: str, x: Tensor) -> Tensor:
    """What enters "attention" or "feed_forward", of the residual stream x."""
    return _normed(layer, config, NORMS[config.norm_placement][0].format(kind), x)


def sub_layer_sum(layer: nn.Module, config: ModelConfig, kind: str, x: Tensor | float, given: Tensor) -> Tensor:
    """The residual stream after a sub-layer that gave `given`; x: before it, or 0 without a residual connection."""
    _, after, of_sum = (name.format(kind) for name in NORMS[config.norm_placement])
    return _normed(layer, config, of_sum, x + _normed(layer, config, after, given))


def _normed(layer: nn.Module, config: ModelConfig, name: str, x: Tensor) -> Tensor:
    return norm(x, getattr(layer, name), config) if name else x


def _gelu(x: Tensor) -> Tensor:
    """GPT-2's approximation."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda x: x.clamp(min=0),
    "silu": F.silu,
    "swiglu": F.silu,
    "gelu": _gelu,
    "geglu": _gelu,
    "the exact GELU": F.gelu,
    "no activation": lambda x: x,
}


def feed_forward(
    x: Tensor, module: nn.Module, config: ModelConfig, activation: str | None = None, gated: bool | None = None
) -> Tensor:
    """(B, T, D) the two layers with the configured activation and gate, or others."""
    hidden = linear(x, module.up)  # type: ignore[arg-type]
    act = ACTIVATIONS[activation or config.activation]
    if config.activation in GATED if gated is None else gated:
        return linear(hidden * act(linear(x, module.gate)), module.down)  # type: ignore[arg-type]
    return linear(act(hidden), module.down)  # type: ignore[arg-type]


def linear(x: Tensor, module: nn.Module) -> Tensor:
    """x W^T + b."""
    product = x @ _double(module.weight).T
    bias = getattr(module, "bias", None)
    return product if bias is None else product + _double(bias)


def _double(parameter: object) -> Tensor:
    assert isinstance(parameter, Tensor)
    return parameter.detach().cpu().double()
