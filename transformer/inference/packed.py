"""A `Transformer` arranged for serving: the same numbers, as few operations for one token as can be.

The architecture is explained in `transformer.model`, and a test holds this file equal to it for every preset. What
differs: weights are packed (`linear.py`), the projections that share an input are one matrix product, queries and keys
are turned together, and texts of different lengths are read side by side (`memory.py`).

Dimensions: B batch · T new tokens · S tokens attended to · D d_model · H heads · K key-value heads · E width of a
            head's queries and keys · V of its values · C context_length
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer.inference.linear import Precision, Product, pack_linear
from transformer.inference.memory import Memory
from transformer.inference.served import ServedTransformer
from transformer.model import Transformer
from transformer.model.attention import MultiHeadAttention, causal_mask
from transformer.model.layers import DecoderLayer, FeedForward

Function = Callable[[Tensor], Tensor]
Pack = Callable[[Tensor, Tensor | None], Product]
Rotation = tuple[Tensor, Tensor] | None  # cosine and sine, each broadcastable to (B, T, H, E)
# Layer, query (B, H, T, E), key (B, K, T, E), value (B, K, T, V) -> heads (B, H, T, V)
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class PackedTransformer(ServedTransformer):
    """The model by PyTorch's operations, on any device.

    Args:
        model: what is packed. Its embeddings are shared, all other weights are copied.
        precision: of the matrix products; everything else is computed in fp32.
        pack: what makes the products, in place of `pack_linear`.
    """

    def __init__(self, model: Transformer, precision: Precision, pack: Pack | None = None) -> None:
        super().__init__(model, precision)
        pack = pack or partial(pack_linear, precision=precision)
        config = model.config
        self.embedding = model.token_embedding.weight.detach()
        self.memory_dtype = torch.float32 if self.device.type == "cpu" or precision == "fp32" else torch.bfloat16
        self.scale = math.sqrt(config.d_model) if config.scale_embeddings else None
        positions: Any = model.position_embedding
        self.table_CD: Tensor | None = None  # added to the embeddings
        if config.positions != "rotary":
            self.table_CD = positions.table_CD if config.positions == "sinusoidal" else positions.weight.detach()
        layers: Any = model.layers
        rotary = layers[0].attention.rotary
        self.rotary = None if rotary is None else (rotary.cosine_CE[:, None], rotary.sine_CE[:, None])  # (C, 1, E)
        self.layers = [_Layer(layer, i, pack) for i, layer in enumerate(layers)]
        self.norm = _norm(model.final_norm)
        self.head = pack(model.head.weight, model.head.bias)

    @torch.inference_mode()
    def __call__(self, tokens_BT: Tensor) -> Tensor:
        mask = None
        if self.config.pad_token_id is not None:
            mask = causal_mask(tokens_BT.shape[1], real=tokens_BT != self.config.pad_token_id, device=self.device)
        return self.head(self._hidden(tokens_BT, slice(tokens_BT.shape[1]), partial(_attend_all, mask)))

    def remember(self, batch_size: int, capacity: int) -> Memory:
        config = self.config

        def zeros(width: int) -> list[Tensor]:
            shape = (batch_size, config.kv_heads, capacity, width)
            return [torch.zeros(shape, device=self.device, dtype=self.memory_dtype) for _ in self.layers]

        real = None
        if config.pad_token_id is not None:
            real = torch.ones(batch_size, capacity, device=self.device, dtype=torch.bool)
        return Memory(zeros(config.key_dim), zeros(config.value_dim), real)

    @torch.inference_mode()
    def read(self, tokens: Sequence[int], memory: Memory, text: int) -> None:
        memory.lengths[text] = length = len(tokens)
        if not tokens:
            return
        tokens_BT = torch.tensor([tokens], device=self.device)
        mask = None
        if memory.real is not None:
            memory.real[text, :length] = tokens_BT[0] != self.config.pad_token_id
            mask = causal_mask(length, real=memory.real[text : text + 1, :length], device=self.device)

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            memory.keys[layer][text, :, :length] = key[0]
            memory.values[layer][text, :, :length] = value[0]
            return _attend_all(mask, layer, query, key, value)

        self._hidden(tokens_BT, slice(length), attend)

    @torch.inference_mode()
    def step(self, tokens_B: Tensor, memory: Memory) -> Tensor:
        lengths = memory.lengths
        if memory.real is None and lengths.count(lengths[0]) == len(lengths):
            logits = self._even_step(tokens_B, memory, lengths[0])
        else:
            positions = torch.tensor(lengths, device=self.device)
            logits = self.uneven_step(tokens_B, positions, memory, max(lengths) + 1)
        memory.lengths = [length + 1 for length in lengths]
        return logits

    def _even_step(self, tokens_B: Tensor, memory: Memory, length: int) -> Tensor:
        """A step of texts of the same length: all of the memory before it counts, and no mask is needed."""

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = memory.keys[layer], memory.values[layer]
            keys.narrow(2, length, 1).copy_(key)
            values.narrow(2, length, 1).copy_(value)
            return _attend_one(query, keys.narrow(2, 0, length + 1), values.narrow(2, 0, length + 1))

        return self.head(self._hidden(tokens_B[:, None], slice(length, length + 1), attend)[:, 0])

    def uneven_step(self, tokens_B: Tensor, positions_B: Tensor, memory: Memory, limit: int) -> Tensor:
        """A step of texts of different lengths, which are given as a tensor; no text has `limit` tokens before it.

        Nothing in it depends on a number that changes from token to token if `limit` is the capacity.
        """
        rows = torch.arange(len(tokens_B), device=self.device)
        mask = torch.arange(limit, device=self.device) <= positions_B[:, None]  # (B, S)
        if memory.real is not None:
            memory.real[rows, positions_B] = tokens_B != self.config.pad_token_id
            mask = mask & memory.real[:, :limit]
        mask = mask[:, None, None]  # (B, 1, 1, S)

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = memory.keys[layer], memory.values[layer]
            keys[rows, :, positions_B] = key[:, :, 0].to(keys.dtype)
            values[rows, :, positions_B] = value[:, :, 0].to(values.dtype)
            return _attend_one(query, keys[:, :, :limit], values[:, :, :limit], mask)

        return self.head(self._hidden(tokens_B[:, None], positions_B[:, None], attend)[:, 0])

    def _hidden(self, tokens_BT: Tensor, positions: Tensor | slice, attend: Attend) -> Tensor:
        """The residual stream after the last layer, (B, T, D). positions: (B, 1), or a slice of T."""
        x_BTD = F.embedding(tokens_BT, self.embedding)
        if self.scale is not None:
            x_BTD = x_BTD * self.scale
        if self.table_CD is not None:
            x_BTD = x_BTD + self.table_CD[positions]
        rotation = None if self.rotary is None else (self.rotary[0][positions], self.rotary[1][positions])
        for layer in self.layers:
            x_BTD = layer(x_BTD, rotation, attend)
        return self.norm(x_BTD)


class _Layer:
    """`DecoderLayer`, in evaluation mode."""

    def __init__(self, layer: DecoderLayer, index: int, pack: Pack) -> None:
        self.norm_first = layer.norm_first
        self.attention = _Attention(layer.attention, index, pack)
        self.attention_norm = _norm(layer.attention_norm)
        self.feed_forward = _feed_forward(layer.feed_forward, pack)
        self.feed_forward_norm = _norm(layer.feed_forward_norm)

    def __call__(self, x_BTD: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        if self.norm_first:
            x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rotation, attend)
            return x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD))
        x_BTD = self.attention_norm(x_BTD + self.attention(x_BTD, rotation, attend))
        return self.feed_forward_norm(x_BTD + self.feed_forward(x_BTD))


class _Attention:
    """`MultiHeadAttention`, with one product for queries, keys and values."""

    def __init__(self, attention: MultiHeadAttention, index: int, pack: Pack) -> None:
        self.index, self.heads = index, attention.heads
        self.n_heads, self.n_kv_heads = attention.n_heads, attention.n_kv_heads
        self.project = _fused([attention.query, attention.key, attention.value], pack)
        self.key_dim = attention.query.out_features // self.n_heads
        self.turned = (self.n_heads + self.n_kv_heads) * self.key_dim  # queries and keys come first
        self.norm: Function | None = None
        if attention.qk_norm:
            query, key = attention.query_norm, attention.key_norm
            weight = torch.cat([query.weight.expand(self.n_heads, -1), key.weight.expand(self.n_kv_heads, -1)])
            self.norm = _rms_norm(weight.detach(), query.eps)
        if self.heads == "concatenate":
            self.output = pack(attention.output.weight, attention.output.bias)

    def __call__(self, x_BTD: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        batch, new, _ = x_BTD.shape
        projected = self.project(x_BTD)
        both = projected[..., : self.turned].view(batch, new, -1, self.key_dim)  # (B, T, H + K, E)
        value = projected[..., self.turned :].view(batch, new, self.n_kv_heads, -1)  # (B, T, K, V)
        if self.norm is not None:
            both = self.norm(both)
        if rotation is not None:
            cosine, sine = rotation
            both = torch.addcmul(both * cosine, both.roll(self.key_dim // 2, dims=-1), sine)
        both = both.transpose(1, 2)  # (B, H + K, T, E)
        heads = attend(self.index, both[:, : self.n_heads], both[:, self.n_heads :], value.transpose(1, 2))
        if self.heads == "average":
            return heads.mean(dim=1)
        if self.heads == "sum":
            return heads.sum(dim=1)
        return self.output(heads.transpose(1, 2).reshape(batch, new, -1))  # (B, T, H·V) -> (B, T, D)


def _attend_all(mask: Tensor | None, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The tokens of whole texts attend to those before them in the same pass; the layer does not matter."""
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None and query.shape[2] > 1,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _attend_one(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """One token of each text, (B, H, 1, E), attends to keys (B, K, S, E) and values (B, K, S, V) in the memory.

    Query heads that share a key-value head take the place of query tokens, so that each key is read once.
    """
    batch, n_heads, _, width = query.shape
    grouped = query.reshape(batch, keys.shape[1], -1, width).to(keys.dtype)  # (B, K, H / K, E)
    heads = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask)
    return heads.reshape(batch, n_heads, 1, -1).float()


def _fused(parts: list[nn.Linear], pack: Pack) -> Function:
    """The outputs of several linear layers with one input, one after the other, by one product."""
    bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts])
    return pack(torch.cat([part.weight for part in parts]), bias)


def _feed_forward(module: FeedForward, pack: Pack) -> Function:
    down = pack(module.down.weight, module.down.bias)
    if module.activation == "swiglu":
        gate_and_up = _fused([module.gate, module.up], pack)

        def gated(x_BTD: Tensor) -> Tensor:
            gate, up = gate_and_up(x_BTD).chunk(2, dim=-1)
            return down(F.silu(gate) * up)

        return gated
    up = pack(module.up.weight, module.up.bias)
    activation = partial(F.gelu, approximate="tanh") if module.activation == "gelu" else F.relu
    return lambda x_BTD: down(activation(up(x_BTD)))


def _norm(module: nn.Module) -> Function:
    if isinstance(module, nn.LayerNorm):
        width, weight, bias = module.normalized_shape, module.weight.detach(), module.bias.detach()
        return lambda x: F.layer_norm(x, width, weight, bias, module.eps)
    if isinstance(module, nn.RMSNorm):
        return _rms_norm(module.weight.detach(), module.eps)
    return lambda x: x  # after post-norm layers the stream is normalised already


def _rms_norm(weight: Tensor, eps: float | None) -> Function:
    """x w / sqrt(mean(x²) + eps) as x w' / sqrt(|x|² + E eps): `F.rms_norm` takes twice as long for one row."""
    width = weight.shape[-1]
    scaled = weight * math.sqrt(width)
    eps = torch.finfo(torch.float32).eps if eps is None else eps
    floor = torch.tensor(math.sqrt(width * eps), device=weight.device)
    return lambda x: x * scaled / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), floor)
