"""Texts as token ids, continued together: one pass of the model gives each of them its next token."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from transformer.inference.backend import InferenceBackend
from transformer.inference.finite import expect_finite
from transformer.inference.sampling import SamplingOptions, sample


def window_start(length: int, context_length: int) -> int:
    """Where the window begins through which the model sees a text of `length` tokens.

    Within the context it sees all. Past it the window jumps ahead by half a context whenever it is full: the tokens
    that stay are read again, at positions from 0, once for every half context of new tokens, so that a token costs
    the same on average however long the text is. The model sees between a half and a whole context.
    """
    if length <= context_length:
        return 0
    jump = max(1, context_length // 2)
    return math.ceil((length - context_length) / jump) * jump


class Decoder:
    """Texts that grow by a token each, every time they are asked to.

    Args:
        prompts: token ids, at least one for each text.
        eos_token_ids: token ids with which a text ends, held back until `options.min_tokens`.
        excluded: token ids that are never sampled.
        pinned: number of tokens at the beginning of the texts that stay in the window when it moves on. At most half
            the context, or none stays.

    Attributes:
        tokens: of each text so far, the prompt included.
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
        self._starts = [-1] * len(prompts)  # of the windows that were read; -1: none yet
        self._last: torch.Tensor | None = None  # (B,), where the tokens sampled last still are
        # The ids in each window, for the repetition penalty; behind them stand some of them again.
        self._seen = torch.zeros(len(prompts), capacity, dtype=torch.long, device=model.device)

    @torch.inference_mode()
    def next(self) -> list[int]:
        """Sample the next token of each text, and append it.

        Raises:
            CheckpointError: if the model's scores are not finite numbers.
        """
        for text, tokens in enumerate(self.tokens):
            if self._window_start(len(tokens)) != self._starts[text]:
                self._read(text)
        last = torch.tensor([tokens[-1] for tokens in self.tokens]) if self._last is None else self._last
        last = last.to(self._model.device)
        logits = self._model.decode(last, self._cache)
        expect_finite(logits)
        if len(self._excluded):
            logits.index_fill_(-1, self._excluded, -math.inf)
        if self._new < self._options.min_tokens:
            logits[:, self._eos_token_ids] = -math.inf
        seen = self._note(last) if self._options.repetition_penalty != 1.0 else None
        self._last = sample(logits, self._options, seen, self._random)
        self._new += 1
        sampled = self._last.tolist()
        for tokens, token in zip(self.tokens, sampled, strict=True):
            tokens.append(token)
        return sampled

    def drop(self, text: int) -> None:
        """Continue without this text; the last one takes its number."""
        self._cache.drop(text)
        self.tokens[text], self._starts[text] = self.tokens[-1], self._starts[-1]
        self.tokens.pop()
        self._starts.pop()
        self._seen[text] = self._seen[len(self.tokens)]
        self._last = None

    def _window_start(self, length: int) -> int:
        """`window_start` of what follows the pinned tokens."""
        return window_start(length - self._pinned, self._context - self._pinned)

    def _read(self, text: int) -> None:
        """Read the window of a text again, all but its last token, which the next step reads."""
        tokens = self.tokens[text]
        start = self._starts[text] = self._window_start(len(tokens))
        window = tokens[: self._pinned] + tokens[self._pinned + start : -1] if start else tokens[:-1]
        if text and tokens == self.tokens[0]:
            self._cache.copy(0, text)  # several texts begin with one prompt, which is read once
        else:
            self._model.prefill(window, self._cache, text)
        self._seen[text] = tokens[-1]
        self._seen[text, : len(window)] = torch.tensor(window, dtype=torch.long)

    def _note(self, last: torch.Tensor) -> torch.Tensor:
        """(B, n): the ids in the windows, with those that were just read."""
        columns = torch.tensor([length - 1 for length in self._cache.lengths], device=last.device)
        seen = self._seen[: len(last)].scatter_(1, columns[:, None], last[:, None])
        return seen[:, : max(self._cache.lengths)]
