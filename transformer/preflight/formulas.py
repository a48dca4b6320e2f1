"""The parts of the network written a second time, from the papers: what the model's own parts are compared with.

They are computed without kernels, caches or precision settings, from the parameters of a copy of the model in fp64 on
the CPU. Arguments such as `rotated` select a known mistake, so that a model that makes it can be told so.

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
from transformer.model.attention import MultiHeadAttention
from transformer.model.config import GATED
from transformer.model.layers import DecoderLayer, FeedForward

# The options of the architecture that these formulas cover. A model with any other is not compared.
_SIZES = "vocab_size context_length d_model n_layers n_heads n_kv_heads head_dim d_feed_forward"
_CHOICES = (
    "positions rope_theta rope_layers rope_local_theta norm norm_placement norm_eps activation qk_norm joint_qk_norm "
    "bias attention_output_bias feed_forward_bias head_bias scale_embeddings tie_embeddings dropout "
    "query_pre_attn_scalar sliding_window sliding_window_layers"
)
_COVERED = {*_SIZES.split(), *_CHOICES.split()}


def unknown_choice(config: ModelConfig) -> str:
    """An option of the architecture that has no formula here and is not at its default; or an empty string."""
    if type(config) is not ModelConfig:
        return type(config).__name__
    for field in dataclasses.fields(config):
        if field.name not in _COVERED and getattr(config, field.name) != field.default:
            return field.name
    return ""


def norm(x: Tensor, module: nn.Module, config: ModelConfig) -> Tensor:
    """LayerNorm: (x - mean) / sqrt(variance + eps) * weight + bias. RMSNorm: x / sqrt(mean square + eps) * weight."""
    if config.norm == "layer":
        x = x - x.mean(dim=-1, keepdim=True)
    parameters = dict(module.named_parameters())
    x = x / (x.square().mean(dim=-1, keepdim=True) + config.norm_eps).sqrt() * parameters["weight"]
    return x + parameters["bias"] if "bias" in parameters else x


def sinusoids(positions: Tensor, d_model: int) -> Tensor:
    """(B, T, D) the vectors of `positions` (B, T): sine and cosine of position / 10000^(2i/D)."""
    even = torch.arange(0, d_model, 2, dtype=torch.float64)
    angles = positions[..., None] / 10_000 ** (even / d_model)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def rotate(x: Tensor, positions: Tensor, theta: float, sign: int = 1) -> Tensor:
    """RoPE: pairs (x_i, x_{i + E/2}) as complex numbers, times exp(i position theta^(-2i/E)); x is (B, H, T, E)."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    rotation = torch.polar(torch.ones((), dtype=torch.float64), sign * positions[:, None, :, None] * frequencies)
    rotated = torch.complex(x[..., :half].contiguous(), x[..., half:].contiguous()) * rotation
    return torch.cat([rotated.real, rotated.imag], dim=-1)


def attention(
    x: Tensor,
    module: MultiHeadAttention,
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
        mask: (B, T, T). theta: base of the rotary frequencies; None: this layer does not rotate. The arguments after it
            are known mistakes.
    """
    n_heads, n_kv = config.n_heads, config.kv_heads
    query, key, value = (
        linear(x, projection).unflatten(2, (count, -1)).transpose(1, 2)  # (B, count, T, ·)
        for projection, count in ((module.query, n_heads), (module.key, n_kv), (module.value, n_kv))
    )
    if config.qk_norm:
        query = _norm_of_heads(query, module.query_norm, config) if "queries" in normalised else query
        key = _norm_of_heads(key, module.key_norm, config) if "keys" in normalised else key
    if theta is not None:
        query = rotate(query, positions, theta) if "queries" in rotated else query
        key = rotate(key, positions, theta) if "keys" in rotated else key
    group = torch.arange(n_heads) % n_kv if strided_groups else torch.arange(n_heads) // (n_heads // n_kv)
    key, value = key[:, group], value[:, group]
    scores = query @ key.transpose(-2, -1) / math.sqrt(config.query_pre_attn_scalar or config.key_dim)
    weights = scores.masked_fill(~mask[:, None], -math.inf).softmax(dim=softmax_dim).nan_to_num()
    heads = weights.masked_fill(~mask[:, None], 0.0) @ value  # (B, H, T, ·)
    joined = heads.reshape(*x.shape[:2], -1) if mixed_heads else heads.transpose(1, 2).flatten(2)
    return linear(joined, module.output)


def _norm_of_heads(x: Tensor, module: nn.Module, config: ModelConfig) -> Tensor:
    """RMSNorm of queries or keys (B, H, T, E), of each head or of all heads of a token together."""
    rms = dataclasses.replace(config, norm="rms")
    if not config.joint_qk_norm:
        return norm(x, module, rms)
    joined = x.transpose(1, 2).flatten(2)  # (B, T, H·E)
    return norm(joined, module, rms).unflatten(2, (x.shape[1], -1)).transpose(1, 2)


# By placement: the norm of a sub-layer's input, of its output, and of the sum with the residual stream.
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


def sub_layer_input(layer: DecoderLayer, config: ModelConfig, kind: str, x: Tensor) -> Tensor:
    """The input of "attention" or "feed_forward", given the residual stream x."""
    return _normed(layer, config, NORMS[config.norm_placement][0].format(kind), x)


def sub_layer_sum(layer: DecoderLayer, config: ModelConfig, kind: str, x: Tensor | float, output: Tensor) -> Tensor:
    """The residual stream after a sub-layer with this output; x: before it, or 0 without a residual connection."""
    _, of_output, of_sum = (name.format(kind) for name in NORMS[config.norm_placement])
    return _normed(layer, config, of_sum, x + _normed(layer, config, of_output, output))


def _normed(layer: DecoderLayer, config: ModelConfig, name: str, x: Tensor) -> Tensor:
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
    x: Tensor, module: FeedForward, config: ModelConfig, activation: str | None = None, gated: bool | None = None
) -> Tensor:
    """(B, T, D) the two layers with the configured activation and gate, or others."""
    activate, hidden = ACTIVATIONS[activation or config.activation], linear(x, module.up)
    if config.activation in GATED if gated is None else gated:
        return linear(hidden * activate(linear(x, module.gate)), module.down)
    return linear(activate(hidden), module.down)


def linear(x: Tensor, module: nn.Linear) -> Tensor:
    """x W^T + b."""
    product = x @ module.weight.T
    return product if module.bias is None else product + module.bias
