"""The decode loop: continues a batch of sequences of token ids, one token each per step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from transformer.inference.backend import InferenceBackend
from transformer.inference.finite import expect_finite
from transformer.inference.sampling import SamplingOptions, sample


def window_start(length: int, context_length: int) -> int:
    """The first token that the model sees of a sequence of `length` tokens.

    A sequence within the context is seen whole. Beyond it, the window moves ahead by half a context whenever it is
    full, and its tokens are processed again at positions from 0. This happens once per half context of new tokens, so
    the average cost of a token does not depend on the length. The model sees between half a context and a whole one.
    """
    if length <= context_length:
        return 0
    jump = max(1, context_length // 2)
    return math.ceil((length - context_length) / jump) * jump


class Decoder:
    """A batch of sequences, each of which grows by one token per call of `next`.

    Args:
        prompts: token ids of each sequence, at least one.
        eos_token_ids: token ids that end a sequence; they are not sampled before `options.min_tokens`.
        excluded: token ids that are never sampled.
        pinned: number of tokens at the start of each sequence that stay in the window when it moves. If it is more than
            half the context, none stay.

    Attributes:
        tokens: token ids of each sequence so far, the prompt included.
    """

    def __init__(
        self,
        model: InferenceBackend,
        prompts: Sequence[Sequence[int]],
        options: SamplingOptions,
        eos_token_ids: Sequence[int],
        excluded: Sequence[int] = (),
        pinned: int = 0,
    ) -> None:
        self._model, self._options, self._eos_token_ids = model, options, list(eos_token_ids)
        self._random = torch.Generator(model.device)
        if options.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(options.seed)
        self.tokens = [list(prompt) for prompt in prompts]
        self._new = 0
        self._excluded = torch.tensor(excluded, dtype=torch.long, device=model.device)
        self._context = model.config.context_length
        self._pinned = pinned if pinned <= self._context // 2 else 0
        capacity = min(self._context, max(map(len, prompts)) + options.max_tokens)
        self._cache = model.new_cache(len(prompts), capacity)
        self._starts = [-1] * len(prompts)  # of the window of each sequence in the cache; -1: not in the cache yet
        self._last: torch.Tensor | None = None  # (B,), the tokens sampled last, on the device
        # The token ids in each window, for the repetition penalty; the rest of a row repeats some of them.
        self._seen = torch.zeros(len(prompts), capacity, dtype=torch.long, device=model.device)

    @torch.inference_mode()
    def next(self) -> list[int]:
        """Sample the next token of each sequence, and append it.

        Raises:
            CheckpointError: if a logit is not finite.
        """
        for sequence, tokens in enumerate(self.tokens):
            if self._window_start(len(tokens)) != self._starts[sequence]:
                self._prefill(sequence)
        last = torch.tensor([tokens[-1] for tokens in self.tokens]) if self._last is None else self._last
        last = last.to(self._model.device)
        logits = self._model.decode(last, self._cache)
        expect_finite(logits)
        if len(self._excluded):
            logits.index_fill_(-1, self._excluded, -math.inf)
        if self._new < self._options.min_tokens:
            logits[:, self._eos_token_ids] = -math.inf
        seen = self._add_seen(last) if self._options.repetition_penalty != 1.0 else None
        self._last = sample(logits, self._options, seen, self._random)
        self._new += 1
        sampled = self._last.tolist()
        for tokens, token in zip(self.tokens, sampled, strict=True):
            tokens.append(token)
        return sampled

    def drop(self, sequence: int) -> None:
        """Remove a finished sequence. The last sequence takes its index."""
        self._cache.drop(sequence)
        self.tokens[sequence], self._starts[sequence] = self.tokens[-1], self._starts[-1]
        self.tokens.pop()
        self._starts.pop()
        self._seen[sequence] = self._seen[len(self.tokens)]
        self._last = None

    def _window_start(self, length: int) -> int:
        """`window_start` of the tokens after the pinned ones."""
        return window_start(length - self._pinned, self._context - self._pinned)

    def _prefill(self, sequence: int) -> None:
        """Prefill the window of a sequence, except for its last token, which the next decode step takes."""
        tokens = self.tokens[sequence]
        start = self._starts[sequence] = self._window_start(len(tokens))
        window = tokens[: self._pinned] + tokens[self._pinned + start : -1] if start else tokens[:-1]
        if sequence and tokens == self.tokens[0]:
            self._cache.copy(0, sequence)  # several outputs of one prompt, which is prefilled once
        else:
            self._model.prefill(window, self._cache, sequence)
        self._seen[sequence] = tokens[-1]
        self._seen[sequence, : len(window)] = torch.tensor(window, dtype=torch.long)

    def _add_seen(self, last: torch.Tensor) -> torch.Tensor:
        """Add the tokens that were just decoded; returns the token ids in each window, (B, n)."""
        columns = torch.tensor([length - 1 for length in self._cache.lengths], device=last.device)
        seen = self._seen[: len(last)].scatter_(1, columns[:, None], last[:, None])
        return seen[:, : max(self._cache.lengths)]
