"""The attention weights of a model, which its attention kernel does not return.

Dimensions: T tokens · L layers · H heads
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from transformer.evaluation.eval_mode import eval_mode
from transformer.inference.finite import expect_finite
from transformer.model import Transformer
from transformer.model.attention import MultiHeadAttention, attention_weights, causal_mask


@torch.inference_mode()
def weights_of(model: Transformer, tokens_T: Tensor) -> Tensor:
    """The attention weights of every head of every layer, (L, H, T, T); rows sum to 1.

    Hooks project the input of each attention layer to queries and keys a second time.

    Args:
        tokens_T: token ids.

    Raises:
        ContextLengthError: if there are more tokens than the model has positions for.
        CheckpointError: if the weights are NaN or infinite.
    """
    found: list[Tensor] = []

    def record(module: MultiHeadAttention, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        values = inspect.signature(module.forward).bind(*arguments, **named).arguments
        query, key, _ = module.project(values["x_BTD"], values.get("rotation"))
        key = key.repeat_interleave(module.n_heads // module.n_kv_heads, dim=1)  # (1, K, T, E) -> (1, H, T, E)
        mask = values.get("mask")
        if mask is None:
            mask = causal_mask(query.shape[2], device=query.device, window=module.window)
        found.append(attention_weights(query, key, mask)[0])

    layers = [module for module in model.modules() if isinstance(module, MultiHeadAttention)]
    hooks = [layer.register_forward_pre_hook(record, with_kwargs=True) for layer in layers]
    try:
        with eval_mode(model):
            model.hidden_states(tokens_T[None])
    finally:
        for hook in hooks:
            hook.remove()
    weights = torch.stack(found)
    expect_finite(weights)
    return weights
