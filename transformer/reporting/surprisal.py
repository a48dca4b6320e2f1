"""The surprisal of each token of a text, and the most likely tokens in its place.

Dimensions: N tokens that are scored · T window · V vocabulary · K alternatives
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from transformer.data.batches import IGNORE_INDEX
from transformer.evaluation.eval_mode import eval_mode
from transformer.evaluation.perplexity import windows
from transformer.inference.finite import expect_finite
from transformer.model import Transformer


@dataclass(frozen=True)
class Surprisal:
    """The scores of each token but the first one.

    nats: (N,) negative log-probability. rank: (N,) among all tokens, from 1. likeliest: (N, K) ids of the most likely
    tokens, in order. probabilities: (N, K) theirs.
    """

    nats: Tensor
    rank: Tensor
    likeliest: Tensor
    probabilities: Tensor


@torch.inference_mode()
def surprisal_of(model: Transformer, tokens_N: Tensor, alternatives: int = 5) -> Surprisal:
    """Score every token of a text but the first, in windows that overlap by half a context, as in the evaluation.

    Args:
        tokens_N: token ids, one more than are scored.
        alternatives: K.

    Raises:
        CheckpointError: if the model's scores are NaN or infinite.
    """
    context = model.config.context_length
    device = next(model.parameters()).device
    found: list[tuple[Tensor, ...]] = []
    with eval_mode(model):
        for inputs_T, targets_T in windows(tokens_N, context, max(1, context // 2)):
            scored = targets_T != IGNORE_INDEX
            hidden = model.hidden_states(inputs_T[None].to(device))[0, scored.to(device)]
            logits = model.head(hidden).float().cpu()  # (n, V)
            expect_finite(logits)
            log_probabilities = logits.log_softmax(-1)
            own = log_probabilities.gather(1, targets_T[scored, None])  # (n, 1)
            top = log_probabilities.topk(min(alternatives, logits.shape[1]))
            found.append((-own[:, 0], (log_probabilities > own).sum(1) + 1, top.indices, top.values.exp()))
    return Surprisal(*(torch.cat(column) for column in zip(*found, strict=True)))
