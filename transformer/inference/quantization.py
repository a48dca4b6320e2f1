"""Quantization: a copy of the model for inference, with quantized and fused linear layers.

`quantize` replaces modules by others of the same interface; the forward pass stays that of `transformer.model`. The new
modules need fewer operations: projections of the same input are one matrix product, queries and keys are normalized and
rotated together, and there is no dropout.

Dimensions: B batch · T new tokens · D d_model · H heads · K key-value heads · E width of a head · F d_feed_forward
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer.errors import ConfigError
from transformer.inference.quantized_linear import Precision, quantize_linear
from transformer.inference.weight_memory import UnchangedMappings, give_back_freed_memory, mapped_again
from transformer.model import Transformer
from transformer.model.attention import JointRMSNorm, MultiHeadAttention
from transformer.model.layers import FeedForward
from transformer.model.positions import Rotation

MakeLinear = Callable[[Tensor, Tensor | None], nn.Module]


def quantize(model: Transformer, precision: Precision, make_linear: MakeLinear | None = None) -> Transformer:
    """A copy of `model` for inference, in evaluation mode. Its embeddings and norms are shared with the model.

    Args:
        precision: of the weights of linear layers; everything else is computed in fp32.
        make_linear: makes the linear layer from a weight (out, in) and a bias; None: `quantize_linear`.

    Raises:
        ConfigError: if the model has another norm than LayerNorm or RMSNorm, or this machine does not support int8.
    """
    make_linear = make_linear or partial(quantize_linear, precision=precision)
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    files = UnchangedMappings(model.parameters())
    quantized: Any = copy.deepcopy(model, shared).eval()  # Any: modules are replaced by others
    quantized.dropout = nn.Identity()
    if model.token_embedding.weight.dtype != torch.float32:
        quantized.token_embedding = FloatEmbedding(model.token_embedding.weight)
    else:
        quantized.token_embedding.weight = nn.Parameter(mapped_again(model.token_embedding.weight), requires_grad=False)
    quantized.final_norm = _norm(quantized.final_norm)
    quantized.head = _linear([quantized.head], make_linear)
    files.give_back(model.head.weight)
    for layer, original in zip(quantized.layers, model.layers, strict=True):
        layer.dropout = nn.Identity()
        layer.attention_norm, layer.feed_forward_norm = _norm(layer.attention_norm), _norm(layer.feed_forward_norm)
        if layer.norm_placement == "sandwich":
            layer.attention_output_norm = _norm(layer.attention_output_norm)
            layer.feed_forward_output_norm = _norm(layer.feed_forward_output_norm)
        _fuse_attention(layer.attention, make_linear)
        _fuse_feed_forward(layer.feed_forward, make_linear)
        for parameter in original.parameters():
            files.give_back(parameter)
        give_back_freed_memory()  # or the temporaries of packing would add up from layer to layer
    return quantized


def bind_forward_methods(model: Transformer) -> None:
    """Replace the submodules of every module by their `forward` methods, and its tensors by plain attributes.

    `nn.Module.__getattr__` searches three dictionaries and `nn.Module.__call__` looks for hooks, which takes a tenth of
    the time of a decode step of a small model. Hooks are not called afterwards.
    """
    embedding, layers = model.token_embedding, list(model.layers)
    for module in list(model.modules()):
        vars(module).update(module._parameters | module._buffers)
        vars(module).update({name: child.forward for name, child in module.named_children()})
    vars(model).update(token_embedding=embedding, layers=[layer.forward for layer in layers])  # with their attributes


class FusedProjection(nn.Module):
    """`MultiHeadAttention.project` with one product for queries, keys and values."""

    scale: Tensor | None  # (H + K, 1)

    def __init__(self, attention: MultiHeadAttention, make_linear: MakeLinear) -> None:
        super().__init__()
        self.linear = _linear([attention.query, attention.key, attention.value], make_linear)
        self.n_heads, self.n_kv_heads = attention.n_heads, attention.n_kv_heads
        self.key_dim = attention.query.out_features // self.n_heads
        self.rotated = (self.n_heads + self.n_kv_heads) * self.key_dim  # queries and keys come first
        scale = torch.ones(self.n_heads + self.n_kv_heads, 1, device=attention.query.weight.device)
        scale[: self.n_heads] = attention.query_scale
        self.register_buffer("scale", None if attention.query_scale == 1.0 else scale, persistent=False)
        self.norm: nn.Module | None = None
        if attention.qk_norm and isinstance(attention.query_norm, JointRMSNorm):
            self.norm = FastJointNorm(attention.query_norm, attention.key_norm)
        elif attention.qk_norm:
            query, key = attention.query_norm, attention.key_norm
            weight = torch.cat([query.weight.expand(self.n_heads, -1), key.weight.expand(self.n_kv_heads, -1)])
            self.norm = FastRMSNorm(weight.detach(), query.eps)

    def forward(self, x_BTD: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        batch, new, _ = x_BTD.shape
        projected = self.linear(x_BTD)
        both = projected[..., : self.rotated].view(batch, new, -1, self.key_dim)  # (B, T, H + K, E)
        value = projected[..., self.rotated :].view(batch, new, self.n_kv_heads, -1)  # (B, T, K, V)
        if self.norm is not None:
            both = self.norm(both)
        if self.scale is not None:
            both = both * self.scale
        if rotation is not None:
            cosine, sine = rotation  # (T, E) or (B, 1, T, E), for heads before tokens; here tokens come first
            if new > 1:
                cosine, sine = (t.unsqueeze(1) if t.dim() == 2 else t.transpose(1, 2) for t in (cosine, sine))
            both = torch.addcmul(both * cosine, both.roll(self.key_dim // 2, dims=-1), sine)
        both = both.transpose(1, 2)  # (B, H + K, T, E)
        return both[:, : self.n_heads], both[:, self.n_heads :], value.transpose(1, 2)


class FusedGateAndUp(nn.Module):
    """`FeedForward.gate_and_up` with one product."""

    def __init__(self, feed_forward: FeedForward, make_linear: MakeLinear) -> None:
        super().__init__()
        self.linear = _linear([feed_forward.gate, feed_forward.up], make_linear)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        gate_BTF, up_BTF = self.linear(x_BTD).chunk(2, dim=-1)
        return gate_BTF, up_BTF


class FloatEmbedding(nn.Embedding):
    """An embedding stored in another dtype, with outputs in fp32."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight.shape[0], weight.shape[1], _weight=mapped_again(weight), _freeze=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.weight).float()


class FastRMSNorm(nn.Module):
    """RMSNorm, x w / sqrt(mean(x²) + eps), as x w' / sqrt(|x|² + E eps): twice as fast as `F.rms_norm` for one row."""

    scaled: Tensor
    floor: Tensor

    def __init__(self, weight: Tensor, eps: float | None) -> None:
        super().__init__()
        width = weight.shape[-1]
        eps = torch.finfo(torch.float32).eps if eps is None else eps
        self.register_buffer("scaled", weight * math.sqrt(width), persistent=False)
        self.register_buffer("floor", torch.tensor(math.sqrt(width * eps), device=weight.device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scaled / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), self.floor)


class FastJointNorm(nn.Module):
    """RMSNorm over all queries of a token and over all its keys, in one tensor (B, T, H + K, E)."""

    def __init__(self, query: nn.RMSNorm, key: nn.RMSNorm) -> None:
        super().__init__()
        self.widths = [len(query.weight), len(key.weight)]
        self.query = FastRMSNorm(query.weight.detach(), query.eps)
        self.key = FastRMSNorm(key.weight.detach(), key.eps)

    def forward(self, both: Tensor) -> Tensor:
        query, key = both.flatten(2).split(self.widths, dim=-1)
        return torch.cat([self.query(query), self.key(key)], dim=-1).view(both.shape)


def _fuse_attention(attention: Any, make_linear: MakeLinear) -> None:
    projection = FusedProjection(attention, make_linear)
    for name in ("query", "key", "value", *(("query_norm", "key_norm") if attention.qk_norm else ())):
        delattr(attention, name)
    attention.fused = projection
    if hasattr(attention, "output"):
        attention.output = _linear([attention.output], make_linear)


def _fuse_feed_forward(feed_forward: Any, make_linear: MakeLinear) -> None:
    if feed_forward.is_gated:
        both = FusedGateAndUp(feed_forward, make_linear)
        del feed_forward.gate, feed_forward.up
        feed_forward.fused = both
    else:
        feed_forward.up = _linear([feed_forward.up], make_linear)
    feed_forward.down = _linear([feed_forward.down], make_linear)


def _linear(parts: list[nn.Linear], make_linear: MakeLinear) -> nn.Module:
    """Several linear layers of the same input as one, with their outputs concatenated."""
    if len(parts) == 1:
        return make_linear(parts[0].weight, parts[0].bias)
    bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts])
    return make_linear(torch.cat([part.weight for part in parts]), bias)


def _norm(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.RMSNorm):
        return FastRMSNorm(module.weight.detach(), module.eps)
    if isinstance(module, nn.LayerNorm | nn.Identity):  # Identity: post-norm layers have no final norm
        return module
    raise ConfigError(f"inference knows LayerNorm and RMSNorm, not {type(module).__name__}.")
