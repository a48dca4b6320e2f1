"""A small model of the same architecture as the run's, with weights that let every part of it be seen.

At the beginning of a run scores and sub-layers are so small that a wrong factor hardly changes anything, and in a large
model a look takes long. What is a matter of the code, not of the weights, is therefore checked on this model.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from transformer.data.batches import IGNORE_INDEX, Batch
from transformer.model import ModelConfig, Transformer

WINDOW = 300  # long enough for an attention kernel that works in blocks of 128 or 256


def small_config(config: ModelConfig, vocab_size: int, context_length: int) -> ModelConfig:
    """The architecture with few, narrow layers: every choice the same, every size smaller."""
    n_kv_heads = min(config.kv_heads, 2)
    group = min(config.n_heads // config.kv_heads, 2)
    n_heads, head_dim = n_kv_heads * group, min(config.key_dim, 16)
    # What fits together in the model fits together here: not every format knows other sizes.
    width = n_heads * head_dim if config.d_model == config.n_heads * config.key_dim else min(config.d_model, 32)
    is_fourfold = config.feed_forward_dim == 4 * config.d_model
    context_length = min(config.context_length, context_length)
    layers = _layers(config)
    return replace(
        config,
        # A model of another kind may give meaning to ids of its own vocabulary.
        vocab_size=vocab_size if type(config) is ModelConfig else config.vocab_size,
        context_length=context_length,
        d_model=width,
        n_layers=len(layers),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        d_feed_forward=4 * width if is_fourfold else min(config.feed_forward_dim, 2 * width),
        dropout=0.0,
        sliding_window=max(1, context_length // 4) if config.has_window else config.sliding_window,
        sliding_window_layers=None if config.sliding_window is None else tuple(map(config.is_local, layers)),
        rope_layers=None if config.rope_layers is None else tuple(map(config.rotates, layers)),
    )


def _layers(config: ModelConfig) -> list[int]:
    """The first layer of each kind, and at least two layers if there are two."""
    first: dict[tuple[bool, bool], int] = {}
    for layer in range(config.n_layers):
        first.setdefault((config.is_local(layer), config.rotates(layer)), layer)
    return sorted(first.values()) if len(first) > 1 else list(range(min(config.n_layers, 2)))


def small_model(model: Transformer, vocab_size: int, context_length: int, seed: int = 0) -> Transformer:
    """A small model like this one, whose weights are drawn so that each part of it changes the result."""
    small = type(model)(small_config(model.config, vocab_size, context_length))
    config, chance = small.config, torch.Generator().manual_seed(seed)

    def draw(parameter: Tensor, std: float, mean: float = 0.0) -> None:
        parameter.copy_(mean + std * torch.randn(parameter.shape, generator=chance))

    embedding = config.d_model**-0.5 if config.scale_embeddings else 0.5
    with torch.no_grad():
        for name, parameter in small.named_parameters():
            if "embedding" in name:
                draw(parameter, embedding if name.startswith("token") else 1.0)
            elif parameter.dim() > 1:
                draw(parameter, 1.2 / math.sqrt(parameter.shape[1]))
            elif name.endswith("bias"):
                draw(parameter, 0.3)
            else:
                draw(parameter, 0.2, 1.0)
    small.token_embedding.weight.requires_grad_(model.token_embedding.weight.requires_grad)
    return small


def batch_of(config: ModelConfig, rows: int, length: int, seed: int = 0, every: int = 1, **document: Any) -> Batch:
    """(rows, length) random tokens, each `every`-th target learned; one document in a row."""
    chance = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, config.vocab_size, (rows, length + 1), generator=chance)
    targets = tokens[:, 1:].clone()
    targets[:, torch.arange(length) % every != 0] = IGNORE_INDEX
    return Batch(tokens[:, :-1].contiguous(), targets, document.get("document", torch.zeros(rows, length).long()))
