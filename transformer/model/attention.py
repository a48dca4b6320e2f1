"""Attention: the formula, the mask, many heads, and the memory of past keys and values.

Dimensions: B batch · T new tokens · S all tokens so far (past + T) · D d_model · H heads · K key-value heads
            E head_dim of queries and keys · V width of one head's values · C capacity of the cache
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer.errors import ContextLengthError
from transformer.model.config import ModelConfig
from transformer.model.linear import Linear
from transformer.model.positions import Rotary

_BLOCK = (128, 256)  # queries in a block of `causal_attention`, at least and at most


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d_k)) V (Attention Is All You Need, 3.2.1), written out to be read.

    `scaled_dot_product_attention` of PyTorch computes the same without holding the (T, S) weights; that kernel is
    what runs, unless `causal_attention` is faster, and a test holds them equal.

    Args:
        query: (B, H, T, E). key: (B, H, S, E). value: (B, H, S, V).
        mask: bool, broadcastable to (B, H, T, S); True where a query may look at a key.

    Returns:
        (B, H, T, V). A query that may look at nothing gets zeros.
    """
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])  # (B, H, T, S)
    scores = scores.float().masked_fill(~mask, -math.inf)
    weights = scores.softmax(dim=-1).masked_fill(~mask, 0.0)  # the second fill: a row of -inf alone is NaN
    return weights.type_as(value) @ value  # (B, H, T, V)


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`attention` from each token to itself and those before it, a block of queries at a time.

    What is after a block is not even multiplied. Compiled, on a CPU in bf16, forward and backward take half the time of
    PyTorch's kernel (see experiments/LOG.md); in fp32 they take longer.

    Args:
        query: (B, H, T, E). key: (B, K, T, E), value: (B, K, T, V): each serves H / K query heads.

    Returns:
        (B, H, T, V).
    """
    group, length = query.shape[1] // key.shape[1], query.shape[2]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    size = min(max(length // 2, _BLOCK[0]), _BLOCK[1])
    blocks = []
    for start in range(0, length, size):
        stop = min(start + size, length)
        mask = causal_mask(stop - start, start, device=query.device)
        blocks.append(attention(query[:, :, start:stop], key[:, :, :stop], value[:, :, :stop], mask))
    return torch.cat(blocks, dim=2)


def causal_mask(new: int, past: int = 0, real: Tensor | None = None, device: torch.device | None = None) -> Tensor:
    """Which of the `past + new` tokens each of the `new` ones may look at: itself and those before it (3.2.3).

    Args:
        real: (B, S) bool, False at padding, which nobody looks at.

    Returns:
        Bool, (T, S), or (B, 1, T, S) if `real` is given.
    """
    causal = torch.ones(new, past + new, dtype=torch.bool, device=device).tril(diagonal=past)  # (T, S)
    return causal if real is None else causal & real[:, None, None, :]  # (B, 1, T, S)


class MultiHeadAttention(nn.Module):
    """h attention functions side by side, each on its own projection of the input (3.2.2).

    The paper concatenates the heads and projects the result back to d_model. Grouped-query attention lets several
    query heads share one key-value head. The original project's heads have d_model-wide values that are averaged
    (at first: summed), with no projection after.
    """

    def __init__(self, config: ModelConfig, rotary: Rotary | None) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads = config.n_heads, config.kv_heads
        self.heads = config.heads
        self.query = Linear(config.d_model, config.n_heads * config.key_dim, bias=config.bias)
        self.key = Linear(config.d_model, config.kv_heads * config.key_dim, bias=config.bias)
        self.value = Linear(config.d_model, config.kv_heads * config.value_dim, bias=config.bias)
        if config.heads == "concatenate":
            self.output = Linear(config.n_heads * config.value_dim, config.d_model, bias=config.bias)
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            self.query_norm = nn.RMSNorm(config.key_dim, eps=config.norm_eps)
            self.key_norm = nn.RMSNorm(config.key_dim, eps=config.norm_eps)
        self.rotary = rotary

    def forward(
        self, x_BTD: Tensor, positions: Tensor, mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        """Attend from the new tokens to all tokens so far.

        Args:
            x_BTD: the residual stream at the new tokens, (B, T, D).
            positions: of the new tokens, (T,) or (B, T).
            mask: bool, broadcastable to (B, H, T, S); None: causal, nothing padded (and no past, unless T is 1).
            cache: this layer's past; the new keys and values are appended to it.

        Returns:
            (B, T, D).
        """
        batch, new, _ = x_BTD.shape
        query = self.query(x_BTD).view(batch, new, self.n_heads, -1).transpose(1, 2)  # (B, H, T, E)
        key = self.key(x_BTD).view(batch, new, self.n_kv_heads, -1).transpose(1, 2)  # (B, K, T, E)
        value = self.value(x_BTD).view(batch, new, self.n_kv_heads, -1).transpose(1, 2)  # (B, K, T, V)
        if self.qk_norm:
            # In fp32 also where the projections came out in bf16.
            query = self.query_norm(query.float()).type_as(value)
            key = self.key_norm(key.float()).type_as(value)
        if self.rotary is not None:
            query, key = self.rotary(query, positions), self.rotary(key, positions)
        if cache is not None:
            key, value = cache.append(key, value)  # (B, K, S, E), (B, K, S, V)

        if mask is None and cache is None and _trains_in_bf16_on_cpu(query):
            heads = causal_attention(query, key, value)  # (B, H, T, V)
        else:
            heads = F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask,
                is_causal=mask is None and new > 1,
                enable_gqa=self.n_kv_heads != self.n_heads,
            )  # (B, H, T, V)

        if self.heads == "average":
            return heads.mean(dim=1)
        if self.heads == "sum":
            return heads.sum(dim=1)
        return self.output(heads.transpose(1, 2).flatten(2))  # (B, T, H·V) -> (B, T, D)


def _trains_in_bf16_on_cpu(query: Tensor) -> bool:
    """Whether `causal_attention` is the faster one."""
    return torch.is_grad_enabled() and query.dtype == torch.bfloat16 and query.device.type == "cpu"


class LayerCache:
    """The keys and values of one layer, in memory that is allocated once.

    Args:
        keys: (B, K, C, E), values: (B, K, C, V): the memory; what it holds at first does not matter.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self.length = 0

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new keys (B, K, T, E) and values (B, K, T, V) behind the past; views of all so far are returned."""
        start, self.length = self.length, self.length + key.shape[2]
        self.keys[:, :, start : self.length] = key
        self.values[:, :, start : self.length] = value
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]


class KeyValueCache:
    """What a model remembers of the tokens it has read, so that each is computed once.

    Args:
        batch_size: B. capacity: C, in tokens; None: the context length.

    Raises:
        ContextLengthError: if the capacity is beyond the context length.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int = 1,
        capacity: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        capacity = config.context_length if capacity is None else capacity
        if capacity > config.context_length:
            raise ContextLengthError(
                f"a cache of {capacity} tokens was asked for, but the model's context holds {config.context_length}."
            )
        self.capacity = capacity

        def memory(width: int) -> Tensor:
            return torch.empty(batch_size, config.kv_heads, capacity, width, device=device, dtype=dtype)

        self.layers = [LayerCache(memory(config.key_dim), memory(config.value_dim)) for _ in range(config.n_layers)]
        self.real: Tensor | None = None  # (B, length) bool, once anything was padded

    @property
    def length(self) -> int:
        """Tokens read so far, padding included."""
        return self.layers[0].length

    def clear(self) -> None:
        """Forget every token; the memory stays."""
        self.real = None
        for layer in self.layers:
            layer.length = 0
