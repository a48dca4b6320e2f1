"""How well a model predicts a text, in units that say what they count.

Dimensions: B batch · T window
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from transformer.errors import ConfigError, CorpusError
from transformer.model import Transformer
from transformer.text.batches import IGNORE
from transformer.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Evaluation:
    """Summed negative log-likelihood of texts, and what was counted in them.

    nats: the sum over all tokens. tokens: of the model's tokenizer. words: as lm-evaluation-harness counts them for
    WikiText, pieces between white space. n_bytes: of UTF-8. context, stride: in tokens; see `evaluate`.
    """

    nats: float
    tokens: int
    words: int
    n_bytes: int
    documents: int
    context: int
    stride: int

    @property
    def token_perplexity(self) -> float:
        return math.exp(self.nats / self.tokens)

    @property
    def word_perplexity(self) -> float:
        return math.exp(self.nats / self.words)

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.n_bytes


@torch.inference_mode()
def evaluate(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: Iterable[str],
    context: int | None = None,
    stride: int | None = None,
    batch_size: int = 8,
) -> Evaluation:
    """Score every token of every text once, each text alone, beginning after the end-of-text token.

    Args:
        context: tokens in a window; None: the model's context length.
        stride: tokens by which the window moves on. A token is scored in the first window that holds it, so all but
            the first window's tokens see at least `context - stride` tokens before them. None: half the context.

    Raises:
        ConfigError: if context or stride do not fit the model or each other.
        CorpusError: if there is no text.
    """
    context = context or model.config.context_length
    stride = stride or max(1, context // 2)
    if not 1 <= stride <= context <= model.config.context_length:
        raise ConfigError(
            f"expected 1 <= stride <= context <= {model.config.context_length}, got stride {stride}, context {context}."
        )
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    nats, tokens, words, n_bytes, documents = 0.0, 0, 0, 0, 0
    rows: list[tuple[Tensor, Tensor]] = []
    for text in texts:
        ids = [tokenizer.end_of_text_id, *tokenizer.encode_documents([text])[0]]
        tokens += len(ids) - 1
        words += len(re.split(r"\s+", text))
        n_bytes += len(text.encode())
        documents += 1
        for row in windows(ids, context, stride):
            rows.append(row)
            if len(rows) == batch_size:
                nats += _score(model, rows, device)
                rows = []
    if rows:
        nats += _score(model, rows, device)
    if not tokens:
        raise CorpusError("there is no text to evaluate.")
    model.train(training)
    return Evaluation(nats, tokens, words, n_bytes, documents, context, stride)


def windows(ids: list[int], context: int, stride: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(inputs, targets) of each window over a document, (T,) each; targets that were scored before are IGNORE."""
    all_ids = torch.tensor(ids)
    scored = 1  # the first token is given
    while scored < len(ids):
        stop = min(context + 1 if scored == 1 else scored + stride, len(ids))  # one past the last target
        start = max(0, stop - 1 - context)
        inputs, targets = all_ids[start : stop - 1], all_ids[start + 1 : stop].clone()
        targets[: scored - start - 1] = IGNORE
        yield inputs, targets
        scored = stop


def _score(model: Transformer, rows: list[tuple[Tensor, Tensor]], device: torch.device) -> float:
    """Summed nats of the targets of these windows; shorter ones are filled up on the right, where no one looks."""
    inputs = torch.nn.utils.rnn.pad_sequence([row[0] for row in rows], batch_first=True).to(device)
    targets = torch.nn.utils.rnn.pad_sequence([row[1] for row in rows], batch_first=True, padding_value=IGNORE)
    logits = model(inputs).float().flatten(0, 1)
    return float(F.cross_entropy(logits, targets.to(device).flatten(), ignore_index=IGNORE, reduction="sum"))
