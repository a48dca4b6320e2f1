"""The decode loop: a prompt in, pieces of text out, one pass of the model for each new token."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Literal

import torch

from transformer.errors import CheckpointError
from transformer.inference.sampling import SamplingOptions, choose
from transformer.inference.stopping import StopBuffer
from transformer.model import KeyValueCache, Transformer
from transformer.text.tokenizer import Tokenizer

StopReason = Literal["length", "end_of_text", "stop_sequence"]


def window_start(length: int, context_length: int) -> int:
    """Where the window begins through which the model sees a text of `length` tokens.

    Within the context it sees all. Past it the window jumps ahead by half a context whenever it is full: the tokens
    that stay are read anew, at positions from 0, once for every half context of new tokens, so that a token costs
    the same on average however long the text is. The model sees between a half and a whole context.
    """
    if length <= context_length:
        return 0
    jump = max(1, context_length // 2)
    return math.ceil((length - context_length) / jump) * jump


class Generator:
    """Continues texts with a model. It holds no state between texts."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer

    def generate(self, prompt: str | Sequence[int], options: SamplingOptions | None = None) -> Generation:
        """Continue `prompt`, a text or its tokens. Iterate over the result for the pieces of text that follow it.

        A prompt beyond the context, and a text that grows beyond it, are seen through the window of `window_start`.
        """
        return Generation(self.model, self.tokenizer, prompt, options or SamplingOptions())


class Generation:
    """One text in the making, and what is known of it so far.

    Attributes:
        prompt_tokens, completion_tokens: how many; the end-of-text token is not counted.
        stop_reason: why the text ended; None before.
        seconds_to_first_token: since `generate` was called, reading the prompt included; None before.
    """

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer, prompt: str | Sequence[int], options: SamplingOptions
    ) -> None:
        self._begin = time.perf_counter()
        self._model, self._tokenizer, self._options = model, tokenizer, options
        self._device = next(model.parameters()).device
        self._tokens = tokenizer.encode_prompt(prompt) if isinstance(prompt, str) else list(prompt)
        known = model.config.vocab_size
        if max(self._tokens) >= known:
            raise CheckpointError(f"the prompt has token {max(self._tokens):,}, and the model knows {known:,} tokens.")
        self._ends = [id for id in sorted(tokenizer.end_ids) if id < known]
        self.prompt_tokens = len(self._tokens)
        self.completion_tokens = 0
        self.stop_reason: StopReason | None = None
        self.seconds_to_first_token: float | None = None
        self._seconds = 0.0

    @property
    def tokens_per_second(self) -> float:
        """New tokens per second after the first one; 0 before the second."""
        decoding = self._seconds - (self.seconds_to_first_token or 0.0)
        return (self.completion_tokens - 1) / decoding if self.completion_tokens > 1 and decoding > 0 else 0.0

    def __iter__(self) -> Iterator[str]:
        decoder, stops = self._tokenizer.stream(self._tokens), StopBuffer(self._options.stop)
        for token in self._new_tokens():
            piece = stops.add(decoder.add(token))
            if piece:
                yield piece
            if stops.found:
                self.stop_reason = "stop_sequence"
                return
        if rest := stops.finish():
            yield rest

    def _new_tokens(self) -> Iterator[int]:
        """The ids of the new tokens, until the text ends."""
        options = self._options
        random = torch.Generator(self._device)
        if options.seed is None:
            random.seed()
        else:
            random.manual_seed(options.seed)
        context_length = self._model.config.context_length
        capacity = min(context_length, self.prompt_tokens + options.max_tokens)
        dtype = next(self._model.parameters()).dtype
        cache = KeyValueCache(self._model.config, capacity=capacity, device=self._device, dtype=dtype)
        start = 0
        for _ in range(options.max_tokens):
            shifted = window_start(len(self._tokens), context_length)
            if shifted != start:
                cache.clear()
                start = shifted
            token = self._next_token(self._tokens[start:], cache, random)
            self._seconds = time.perf_counter() - self._begin
            if token in self._ends:
                self.stop_reason = "end_of_text"
                return
            self._tokens.append(token)
            self.completion_tokens += 1
            if self.seconds_to_first_token is None:
                self.seconds_to_first_token = self._seconds
            yield token
        self.stop_reason = "length"

    @torch.inference_mode()
    def _next_token(self, window: list[int], cache: KeyValueCache, random: torch.Generator) -> int:
        """Choose what follows `window`, of which the first `cache.length` tokens have been read."""
        tokens = torch.tensor([window], device=self._device)
        hidden = self._model.hidden_states(tokens[:, cache.length :], cache=cache)
        logits = self._model.head(hidden[0, -1])  # (V,)
        if self.completion_tokens < self._options.min_tokens:
            logits[self._ends] = -math.inf
        return choose(logits, self._options, tokens[0], random)
