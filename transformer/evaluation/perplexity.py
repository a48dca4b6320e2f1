"""How well a model predicts a text: negative log-likelihood, in several units.

Dimensions: B batch · T window
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from transformer.data.batches import IGNORE_INDEX
from transformer.data.document import Document
from transformer.data.tokenizer import Tokenizer
from transformer.errors import CheckpointError, ConfigError, CorpusError
from transformer.evaluation.eval_mode import eval_mode
from transformer.model import ModelConfig


class Scores(Protocol):
    """What can be evaluated: a `Transformer` or an inference backend."""

    config: ModelConfig

    @property
    def device(self) -> torch.device: ...

    def __call__(self, tokens_BT: Tensor, /) -> Tensor: ...


Window = tuple[Tensor, Tensor]  # inputs (T,) and their targets (T,)


def perplexity(nats: float) -> float:
    """exp(nats), of nats per unit; infinite if that is too large for a float."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


@dataclass(frozen=True)
class Evaluation:
    """Summed negative log-likelihood of texts, and their sizes.

    nats: the sum over all tokens. tokens: of the model's tokenizer, after detokenization. words: of the original texts,
    split at white space. harness_words: words as counted by lm-evaluation-harness, which counts another one where a
    text starts, and where it ends, with white space. n_bytes: UTF-8 bytes of the original texts; of documents, those in
    their files. context, stride: in tokens; see `evaluate`.
    """

    nats: float
    tokens: int
    words: int
    n_bytes: int
    documents: int
    context: int
    stride: int
    harness_words: int = 0

    @property
    def token_perplexity(self) -> float:
        return perplexity(self.nats / self.tokens)

    @property
    def word_perplexity(self) -> float:
        return perplexity(self.nats / self.words) if self.words else math.inf  # if all text is white space

    @property
    def harness_word_perplexity(self) -> float:
        return perplexity(self.nats / self.harness_words) if self.harness_words else math.inf

    @property
    def byte_perplexity(self) -> float:
        return perplexity(self.nats / self.n_bytes)

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.n_bytes


@torch.inference_mode()
def evaluate(
    model: Scores,
    tokenizer: Tokenizer,
    texts: Iterable[str | Document],
    context: int | None = None,
    stride: int | None = None,
    batch_size: int = 8,
    detokenize: Callable[[str], str] | None = None,
) -> Evaluation:
    """Score every token of every text once, in sliding windows within each text.

    The first token of each text follows the token that the tokenizer adds before a prompt, or the end-of-text token.
    With a stride equal to the context, and `detokenize.wikitext` on pages of WikiText, results are those of the task
    `wikitext` of lm-evaluation-harness, with `harness_words` as words. (Run it with `add_bos_token=False`: version
    0.4.13 otherwise scores the token that our tokenizer adds as part of the text.)

    Args:
        texts: read one at a time; memory grows with the longest one only.
        context: tokens in a window; None: the model's context length.
        stride: tokens between the starts of windows. A token is scored in the first window that has it, so that it has
            at least `context - stride` tokens before it, except in the first window. None: half the context.
        batch_size: windows in a batch.
        detokenize: applied to each text before the model reads it; words and bytes are counted before.

    Raises:
        ConfigError: if not 1 <= stride <= context <= the model's context length.
        CorpusError: if there is no text.
        CheckpointError: if the model's scores are NaN or infinite.
    """
    longest = model.config.context_length
    context = longest if context is None else context
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= stride <= context <= longest:
        raise ConfigError(f"expected 1 <= stride <= context <= {longest}, got stride {stride}, context {context}.")
    counts = Counter[str]()

    def rows() -> Iterator[Window]:
        for given in texts:
            text = given.text if isinstance(given, Document) else given
            ids = _ids(tokenizer, detokenize(text) if detokenize else text)
            counts["tokens"] += len(ids) - 1
            counts["words"] += len(text.split())
            counts["harness_words"] += len(re.split(r"\s+", text))
            counts["n_bytes"] += given.n_bytes if isinstance(given, Document) else len(text.encode())
            counts["documents"] += 1
            yield from windows(ids, context, stride)

    remaining, nats = rows(), 0.0
    with eval_mode(model):
        while batch := list(itertools.islice(remaining, batch_size)):
            nats += _score(model, batch)
    if not counts["tokens"]:
        raise CorpusError("there is no text to evaluate.")
    return Evaluation(nats, **counts, context=context, stride=stride)


def windows(ids: Tensor, context: int, stride: int) -> Iterator[Window]:
    """The windows of a document of token ids (N,); targets that an earlier window has scored are IGNORE_INDEX."""
    scored = 1
    while scored < len(ids):
        stop = min(context + 1 if scored == 1 else scored + stride, len(ids))  # one past the last target
        start = max(0, stop - 1 - context)  # the last window is full too
        inputs, targets = ids[start : stop - 1], ids[start + 1 : stop].clone()
        targets[: scored - start - 1] = IGNORE_INDEX
        yield inputs, targets
        scored = stop


def _ids(tokenizer: Tokenizer, text: str) -> Tensor:
    """The token before a text and the tokens of the text, (N,); a tensor needs a fifth of the memory of a list."""
    return torch.tensor([tokenizer.encode_prompt("")[0], *tokenizer.encode_documents([text])[0]])


def _score(model: Scores, batch: list[Window]) -> float:
    """Summed negative log-likelihood of the windows' targets, in nats. Shorter windows are padded on the right."""
    device = model.device
    inputs_BT = pad_sequence([inputs for inputs, _ in batch], batch_first=True).to(device)
    targets_BT = pad_sequence([targets for _, targets in batch], batch_first=True, padding_value=IGNORE_INDEX).to(
        device
    )
    logits = model(inputs_BT).float().flatten(0, 1)
    nats = float(F.cross_entropy(logits, targets_BT.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"))
    if not math.isfinite(nats):
        raise CheckpointError("the model's scores are not finite numbers: its weights are damaged or too large.")
    return nats
