"""How often two computations of a model would write the same token."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from transformer.data.tokenizer import Tokenizer
from transformer.evaluation.perplexity import Scores


@dataclass(frozen=True)
class Agreement:
    """places: of texts, after which the next token is chosen. same: at how many of them both find one likeliest."""

    same: int
    places: int


@torch.inference_mode()
def agreement(one: Scores, other: Scores, tokenizer: Tokenizer, texts: Iterable[str], documents: int = 50) -> Agreement:
    """Compare the likeliest next tokens at the beginnings of the first documents, as long as the context."""
    same = places = 0
    for text in itertools.islice(texts, documents):
        tokens = torch.tensor([tokenizer.encode_prompt(text)[: one.config.context_length]], device=one.device)
        likeliest = (model(tokens).argmax(dim=-1) for model in (one, other))
        same += int(torch.eq(*likeliest).sum())
        places += tokens.shape[1]
    return Agreement(same, places)
