"""The perplexity as the original project reported it, and the perplexity of the text alone, for the same weights.

The original put 128 padding tokens before every line that was not empty and the end token after it (all with the same
id), moved a window of 128 tokens over these by one token at a time, and averaged the loss over all targets of a line.
For a line of m <= 128 tokens, including its end, 1 - (m + 1) / 256 of the targets are padding: 66 % for 87 tokens. A
model learns within minutes that padding follows padding, so that the loss of a fraction s of the targets is 0, and

    ppl_reported = exp((1 - s) · L)        L: nats per real target, so that ppl_reported = ppl_real ^ (1 - s)

A reported 3 at s = 0.66 is 3 ^ (1 / 0.34) = 25 per real token.

Dimensions: B windows at once · T block
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from transformer.data.tokenizer import Tokenizer
from transformer.errors import CorpusError
from transformer.evaluation.eval_mode import eval_mode
from transformer.model import Transformer

BLOCK = 128  # tokens in a window, and padding tokens before a line
_AT_ONCE = 32  # windows


@dataclass(frozen=True)
class PaddedEvaluation:
    """Means over the targets of a line, averaged over the lines.

    share: s, the fraction of the targets that is padding. padding_nats, real_nats: the contributions of padding and of
    all other targets to the mean loss, which is their sum.
    """

    share: float
    padding_nats: float
    real_nats: float
    lines: int

    @property
    def reported_perplexity(self) -> float:
        """Of all targets, as the original reported it."""
        return math.exp(self.padding_nats + self.real_nats)

    @property
    def real_perplexity(self) -> float:
        """Of the targets that are text or the end of a line, in the same windows."""
        return math.exp(self.real_nats / (1 - self.share))

    @property
    def if_padding_is_free(self) -> float:
        """The reported perplexity of a model that predicts padding perfectly: exp((1 - s) L)."""
        return math.exp(self.real_nats)


def padded_lines(texts: Iterable[str], tokenizer: Tokenizer, block: int = BLOCK) -> Iterator[torch.Tensor]:
    """For each line with text, (block + m,) ids: a block of padding, the line, and its end."""
    fill = tokenizer.end_of_text_id
    for text in texts:
        lines = [line for line in text.splitlines() if line.strip()]
        for ids in tokenizer.encode_documents(lines) if lines else []:
            yield torch.tensor([fill] * block + ids + [fill])


def padding_shares(lengths: np.ndarray, block: int = BLOCK) -> np.ndarray:
    """The fraction of targets that is padding, for lines of these lengths, including their end.

    Window k of m has the targets k + 1 to k + block, of which those before `block` are padding: block - 1 - k, or none.
    """
    windows = np.minimum(lengths, block).astype(np.float64)  # those with padding in them, about
    return (windows * (block - 1) - windows * (windows - 1) / 2) / (block * lengths)


@torch.inference_mode()
def evaluate_padded(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: Iterable[str],
    block: int = BLOCK,
    stride: int = 1,
    every: int = 1,
) -> PaddedEvaluation:
    """Evaluate a model as the original did.

    Args:
        stride: tokens from one window to the next; 1, as in the original, takes 128 times as long as the text.
        every: evaluate every n-th line only.

    Raises:
        CorpusError: if there is no text.
    """
    sums, n_lines = np.zeros(3), 0
    with eval_mode(model):
        for number, ids in enumerate(padded_lines(texts, tokenizer, block)):
            if number % every:
                continue
            windows = ids.unfold(0, block + 1, stride)  # (windows, block + 1)
            is_padding = (torch.arange(len(ids)) < block).unfold(0, block + 1, stride)[:, 1:]
            lost = torch.cat([_lost(model, part.to(model.device)).cpu() for part in windows.split(_AT_ONCE)])
            means = [is_padding.double().mean(), (lost * is_padding).mean(), (lost * ~is_padding).mean()]
            sums, n_lines = sums + np.array([float(mean) for mean in means]), n_lines + 1
    if not n_lines:
        raise CorpusError("there is no text to evaluate.")
    share, padding_nats, real_nats = (sums / n_lines).tolist()
    return PaddedEvaluation(share, padding_nats, real_nats, n_lines)


def _lost(model: Transformer, windows_BT: torch.Tensor) -> torch.Tensor:
    """(B, T), the loss of each target in nats, for windows of T + 1 ids."""
    logits = model(windows_BT[:, :-1]).float().flatten(0, 1)
    return F.cross_entropy(logits, windows_BT[:, 1:].flatten(), reduction="none").view(len(windows_BT), -1).double()
