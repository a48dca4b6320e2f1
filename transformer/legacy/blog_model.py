"""The model of the blog post that this project grew from.

It differs from the model in `transformer.model` in two ways. The values of every head have the width d_model, and the
heads are averaged (in earlier versions summed), without an output projection. And one token id may be padding, which
no token attends to, but which is counted in positions.

Dimensions: B batch · T new tokens · S tokens attended to · D d_model · H heads · C capacity of the cache
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from transformer.errors import ConfigError
from transformer.model import PRESETS, KVCache, ModelConfig, Transformer
from transformer.model.attention import MultiHeadAttention, causal_mask
from transformer.model.linear import Linear
from transformer.model.transformer import check_capacity

Heads = Literal["average", "sum"]
PRESET = "blog"


@dataclass(frozen=True)
class BlogConfig(ModelConfig):
    """The config of a `BlogTransformer`: that of `ModelConfig`, how heads are combined, and the padding id.

    Summed heads were the project's first mistake: without scaling they are much larger than the residual stream.
    """

    head_bias: bool = True
    tie_embeddings: bool = False
    heads: Heads = "average"
    pad_token_id: int | None = None  # None: no token is padding

    def _check(self) -> None:
        super()._check()
        if self.heads not in ("average", "sum"):
            raise ConfigError(f"heads must be average or sum, not {self.heads!r}.")
        if self.kv_heads != self.n_heads:
            raise ConfigError(f"heads={self.heads!r} has no grouped-query form: n_kv_heads must equal n_heads.")
        if self.sliding_window is not None:
            raise ConfigError(f"heads={self.heads!r} has no sliding_window: leave it out.")
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ConfigError(f"pad_token_id must be one of {self.vocab_size} tokens, not {self.pad_token_id!r}.")


def preset_config(name: str, **overrides: Any) -> ModelConfig:
    """The config of a preset, one of PRESETS or "blog", with some fields overridden.

    Raises:
        ConfigError: if there is no such preset, or the config is invalid.
    """
    if name == PRESET:
        return BlogConfig(**overrides)
    if name not in PRESETS:
        raise ConfigError(f"there is no preset {name!r}; choose one of {', '.join((*PRESETS, PRESET))}.")
    return ModelConfig.preset(name, **overrides)


def saved_config(fields: dict[str, Any]) -> ModelConfig:
    """The config of a model without an architecture of the Hub, from its saved fields.

    Raises:
        ConfigError, TypeError: if the fields are invalid.
    """
    fields = dict(fields)
    if fields.get("heads", "concatenate") == "concatenate" and fields.get("pad_token_id") is None:
        fields.pop("heads", None)
        fields.pop("pad_token_id", None)
        return ModelConfig(**fields)
    return BlogConfig(**fields)


def model_class(config: ModelConfig) -> type[Transformer]:
    """The class of model for a config."""
    return BlogTransformer if isinstance(config, BlogConfig) else Transformer


class JoinedHeads(MultiHeadAttention):
    """Attention whose heads are averaged or summed; their values have the width d_model."""

    def __init__(self, config: BlogConfig) -> None:
        super().__init__(config)
        del self.output
        self.value = Linear(config.d_model, config.n_heads * config.d_model, bias=config.bias)
        self.heads = config.heads

    def merge_heads(self, heads: Tensor) -> Tensor:
        return heads.mean(dim=1) if self.heads == "average" else heads.sum(dim=1)  # (B, H, T, D) -> (B, T, D)


class PaddedKVCache(KVCache):
    """A `KVCache` with an attention mask (B, C), False at padding."""

    has_equal_lengths = False  # decoding always needs the mask

    def __init__(self, keys: list[Tensor], values: list[Tensor], capacity: int) -> None:
        super().__init__(keys, values, capacity)
        self.mask_BC = torch.ones(len(keys[0]), capacity, dtype=torch.bool, device=keys[0].device)

    def tensors(self) -> list[Tensor]:
        return [*super().tensors(), self.mask_BC]

    def drop(self, sequence: int) -> None:
        super().drop(sequence)
        self.mask_BC = self.mask_BC[: len(self.lengths)]


class BlogTransformer(Transformer):
    """The blog's model, with the interface of `Transformer`."""

    config: BlogConfig
    config_class = BlogConfig

    def __init__(self, config: BlogConfig, initialize: bool = True) -> None:
        super().__init__(config, initialize=False)
        for layer in self.layers:
            layer.attention = JoinedHeads(config)
        if initialize:
            self.init_weights()

    def hidden_states(
        self, tokens_BT: Tensor, attention_mask_BT: Tensor | None = None, segment_ids_BT: Tensor | None = None
    ) -> Tensor:
        if attention_mask_BT is None:
            attention_mask_BT = self._padding_mask(tokens_BT)
        return super().hidden_states(tokens_BT, attention_mask_BT, segment_ids_BT)

    def new_cache(self, batch_size: int, capacity: int, dtype: torch.dtype | None = None) -> KVCache:
        cache = super().new_cache(batch_size, capacity, dtype)
        shape = (batch_size, self.config.n_heads, capacity, self.config.d_model)
        values = [torch.zeros(shape, device=keys.device, dtype=keys.dtype) for keys in cache.keys]
        kind = KVCache if self.config.pad_token_id is None else PaddedKVCache
        return kind(cache.keys, values, capacity)

    @torch.inference_mode()
    def prefill(self, tokens: Sequence[int], cache: KVCache, sequence: int) -> None:
        if not isinstance(cache, PaddedKVCache) or not tokens:
            return super().prefill(tokens, cache, sequence)
        length = len(tokens)
        check_capacity(length, cache)
        cache.lengths[sequence] = length
        tokens_BT = torch.tensor([tokens], device=self.device)
        attention_mask_BT = self._padding_mask(tokens_BT)
        assert attention_mask_BT is not None  # the cache is padded only if there is a padding id
        cache.mask_BC[sequence, :length] = attention_mask_BT[0]
        updates = [partial(cache.update_sequence, i, sequence) for i in range(len(self.layers))]
        self._forward(tokens_BT, slice(length), causal_mask(length, 0, attention_mask_BT, self.device), updates)

    def decode_at(self, tokens_B: Tensor, positions_B: Tensor, cache: KVCache, limit: int) -> Tensor:
        if not isinstance(cache, PaddedKVCache):
            return super().decode_at(tokens_B, positions_B, cache, limit)
        rows = torch.arange(len(tokens_B), device=self.device)
        cache.mask_BC[rows, positions_B] = tokens_B != self.config.pad_token_id
        seen_BS = torch.arange(limit, device=self.device) <= positions_B[:, None]
        mask = (seen_BS & cache.mask_BC[:, :limit])[:, None, None]  # (B, 1, 1, S)
        updates = [partial(cache.update_rows, i, rows, positions_B, limit) for i in range(len(self.layers))]
        return self.head(self._forward(tokens_B[:, None], positions_B[:, None], mask, updates)[:, 0])

    def _padding_mask(self, tokens_BT: Tensor) -> Tensor | None:
        """(B, T), False at padding; None if there is no padding id."""
        return None if self.config.pad_token_id is None else tokens_BT != self.config.pad_token_id

    def _positions(self, length: int, attention_mask_BT: Tensor | None, device: torch.device) -> Tensor:
        """Positions count padding, if it is a token."""
        return super()._positions(length, None if self.config.pad_token_id is not None else attention_mask_BT, device)
