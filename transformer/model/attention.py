"""Attention: the formula, the mask, and many heads.

Dimensions: B batch · T new tokens · S all tokens so far (past + T) · D d_model · H heads · K key-value heads
            E head_dim of queries and keys · V width of one head's values
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer.model.config import ModelConfig
from transformer.model.linear import Linear
from transformer.model.positions import Rotation, apply_rope

# Writes new keys and values to a cache; returns all keys and values to attend to.
Update = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
_BLOCK = (128, 256)  # least and largest number of queries in a block of `causal_attention`


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d_k)) V (Attention Is All You Need, 3.2.1), written out.

    The model uses PyTorch's `scaled_dot_product_attention`, which computes the same without storing the (T, S) weights,
    except where `causal_attention` is faster. A test compares them.

    Args:
        query: (B, H, T, E).
        key: (B, H, S, E).
        value: (B, H, S, V).
        mask: bool, broadcastable to (B, H, T, S); True where a query attends to a key.

    Returns:
        (B, H, T, V). A query that attends to nothing gets zeros.
    """
    return attention_weights(query, key, mask).type_as(value) @ value  # (B, H, T, V)


def attention_weights(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    """The softmax in the formula above, (B, H, T, S): the weight of each value in the result of each query."""
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])  # (B, H, T, S)
    scores = scores.float().masked_fill(~mask, -math.inf)
    return scores.softmax(dim=-1).masked_fill(~mask, 0.0)  # the softmax of a row of -inf is NaN


def causal_attention(query: Tensor, key: Tensor, value: Tensor, window: int | None = None) -> Tensor:
    """Causal `attention`, computed for one block of queries at a time.

    Keys after a block, or before the window of its first query, are skipped. Compiled, on a CPU in bf16, forward and
    backward take half the time of PyTorch's kernel (see experiments/LOG.md); in fp32 they take longer.

    Args:
        query: (B, H, T, E).
        key: (B, K, T, E), each shared by H / K query heads.
        value: (B, K, T, V).
        window: as in `causal_mask`.

    Returns:
        (B, H, T, V).
    """
    group, length = query.shape[1] // key.shape[1], query.shape[2]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    size = min(max(length // 2, _BLOCK[0]), _BLOCK[1])
    blocks = []
    for start in range(0, length, size):
        stop = min(start + size, length)
        first = 0 if window is None else max(start - window + 1, 0)  # the first key that the block attends to
        mask = causal_mask(stop - start, start - first, device=query.device, window=window)
        blocks.append(attention(query[:, :, start:stop], key[:, :, first:stop], value[:, :, first:stop], mask))
    return torch.cat(blocks, dim=2)


def causal_mask(
    new: int,
    past: int = 0,
    attention_mask: Tensor | None = None,
    device: torch.device | None = None,
    window: int | None = None,
) -> Tensor:
    """The causal mask: each of the `new` tokens attends to itself and to the tokens before it (3.2.3).

    Args:
        past: number of tokens in the cache, S = past + new.
        attention_mask: (B, S) bool, False at padding, which no query attends to.
        window: tokens that a query attends to, its own included (Mistral 7B, Jiang et al., 2023); None: all.

    Returns:
        Bool (T, S), or (B, 1, T, S) if `attention_mask` is given.
    """
    causal = torch.ones(new, past + new, dtype=torch.bool, device=device).tril(diagonal=past)  # (T, S)
    if window is not None:
        causal = causal.triu(diagonal=past - window + 1)
    return causal if attention_mask is None else causal & attention_mask[:, None, None, :]  # (B, 1, T, S)


class JointRMSNorm(nn.RMSNorm):
    """RMSNorm over all heads of a token together (OLMo 2, Walsh et al., 2025, 3.3)."""

    def forward(self, x: Tensor) -> Tensor:
        joined = x.transpose(1, 2).flatten(2)  # (B, H, T, E) -> (B, T, H·E)
        return super().forward(joined).unflatten(2, (x.shape[1], -1)).transpose(1, 2)


class MultiHeadAttention(nn.Module):
    """Multi-head attention (3.2.2): each head attends with its own projections of the input.

    The results of the heads are concatenated and projected to d_model. In grouped-query attention several query heads
    share one key-value head.

    Args:
        window: tokens that a query attends to, its own included; None: all.
    """

    def __init__(self, config: ModelConfig, window: int | None = None) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.window = config.n_heads, config.kv_heads, window
        self.query = Linear(config.d_model, config.n_heads * config.key_dim, bias=config.bias)
        self.key = Linear(config.d_model, config.kv_heads * config.key_dim, bias=config.bias)
        self.value = Linear(config.d_model, config.kv_heads * config.key_dim, bias=config.bias)
        self.output = Linear(config.n_heads * config.key_dim, config.d_model, bias=bool(config.attention_output_bias))
        self.fused: nn.Module | None = None  # replaces `project` in a quantized model
        # Kernels divide scores by sqrt(head_dim); for another configured number queries are scaled here.
        self.query_scale = math.sqrt(config.key_dim / (config.query_pre_attn_scalar or config.key_dim))
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            make_norm = partial(JointRMSNorm if config.joint_qk_norm else nn.RMSNorm, eps=config.norm_eps)
            self.query_norm = make_norm(config.key_dim * (config.n_heads if config.joint_qk_norm else 1))
            self.key_norm = make_norm(config.key_dim * (config.kv_heads if config.joint_qk_norm else 1))

    def forward(
        self,
        x_BTD: Tensor,
        rotation: Rotation | None = None,
        mask: Tensor | None = None,
        update: Update | None = None,
    ) -> Tensor:
        """Attend from the new tokens to all tokens so far.

        Args:
            x_BTD: the residual stream at the new tokens, (B, T, D).
            rotation: cosine and sine of the positions of the new tokens; None: no RoPE.
            mask: bool, broadcastable to (B, H, T, S), including the window; None: causal within the window, without
                padding (and without past, unless T is 1).
            update: writes the keys and values of the new tokens to the cache; None: no cache.

        Returns:
            (B, T, D).
        """
        query, key, value = self.project(x_BTD, rotation)
        if update is not None:
            key, value = update(key, value)  # (B, K, S, E), (B, K, S, V)
        return self.merge_heads(self.attend(query, key, value, mask, update is not None))

    def project(self, x_BTD: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, E), keys (B, K, T, E) and values (B, K, T, V) of the new tokens, after QK-norm and RoPE."""
        if self.fused is not None:
            return self.fused(x_BTD, rotation)
        batch, new, _ = x_BTD.shape
        query = self.query(x_BTD).view(batch, new, self.n_heads, -1).transpose(1, 2)  # (B, H, T, E)
        key = self.key(x_BTD).view(batch, new, self.n_kv_heads, -1).transpose(1, 2)  # (B, K, T, E)
        value = self.value(x_BTD).view(batch, new, self.n_kv_heads, -1).transpose(1, 2)  # (B, K, T, V)
        if self.qk_norm:
            # In fp32, also if the projections are in bf16.
            query = self.query_norm(query.float()).type_as(value)
            key = self.key_norm(key.float()).type_as(value)
        if self.query_scale != 1.0:
            query = query * self.query_scale
        if rotation is not None:
            query, key = apply_rope(query, rotation), apply_rope(key, rotation)
        return query, key, value

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, cached: bool) -> Tensor:
        """Attention of every head, (B, H, T, V). cached: the keys and values are those of a cache."""
        window = self.window if mask is None and self.window is not None and self.window < key.shape[2] else None
        if cached and query.shape[2] == 1:  # the cache holds the window only
            return _attend_one(query, key, value, mask)
        if window is not None or (mask is None and not cached and _trains_in_bf16_on_cpu(query)):
            return causal_attention(query, key, value, window)
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None and query.shape[2] > 1,
            enable_gqa=self.n_kv_heads != self.n_heads,
        )

    def merge_heads(self, heads: Tensor) -> Tensor:
        """Concatenate the results of the heads (B, H, T, V), and project them to (B, T, D)."""
        return self.output(heads.transpose(1, 2).flatten(2))  # (B, T, H·V) -> (B, T, D)


def _attend_one(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """One query token per sequence, (B, H, 1, E), attends to keys (B, K, S, E) and values (B, K, S, V) in the cache.

    The query heads of one key-value head are passed to the kernel as query tokens, so that it reads each key once.
    """
    batch, n_heads, _, width = query.shape
    grouped = query.reshape(batch, keys.shape[1], -1, width).to(keys.dtype)  # (B, K, H / K, E)
    heads = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask)
    return heads.reshape(batch, n_heads, 1, -1).type_as(query)


def _trains_in_bf16_on_cpu(query: Tensor) -> bool:
    """Whether `causal_attention` is faster than PyTorch's kernel."""
    return torch.is_grad_enabled() and query.dtype == torch.bfloat16 and query.device.type == "cpu"
