"""How often two versions of a model have the same most likely next token."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from transformer.data.tokenizer import Tokenizer
from transformer.evaluation.perplexity import Scores


@dataclass(frozen=True)
class Agreement:
    """places: number of compared positions. same: those where both models have the same most likely next token."""

    same: int
    places: int


@torch.inference_mode()
def agreement(one: Scores, other: Scores, tokenizer: Tokenizer, texts: Iterable[str], documents: int = 50) -> Agreement:
    """Compare the most likely next tokens at each position of the first documents, within the context.

    Args:
        documents: number of texts to compare.
    """
    same = places = 0
    for text in itertools.islice(texts, documents):
        tokens = torch.tensor([tokenizer.encode_prompt(text)[: one.config.context_length]], device=one.device)
        likeliest = (model(tokens).argmax(dim=-1) for model in (one, other))
        same += int(torch.eq(*likeliest).sum())
        places += tokens.shape[1]
    return Agreement(same, places)
