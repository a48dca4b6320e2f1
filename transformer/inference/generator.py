"""Text generation: streams one continuation, or makes a batch of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from transformer.data.tokenizer import Tokenizer
from transformer.device import serving_precision
from transformer.errors import CheckpointError
from transformer.inference.backend import InferenceBackend
from transformer.inference.decoder import Decoder
from transformer.inference.sampling import SamplingOptions
from transformer.inference.select_backend import select_backend
from transformer.inference.stopping import StopBuffer
from transformer.inference.torch_backend import CompiledBackend
from transformer.model import Transformer

StopReason = Literal["length", "end_of_text", "stop_sequence"]


class Generator:
    """Generates text with a model. It keeps no state between calls.

    Args:
        model: a `Transformer`, for which a backend is selected, or a backend. Later changes of the weights have no
            effect.
        precision: of the weights, "fp32", "bf16" or "int8"; "auto": the fastest on this machine.

    Raises:
        ConfigError: if this machine cannot compute in that precision.
    """

    def __init__(self, model: Transformer | InferenceBackend, tokenizer: Tokenizer, precision: str = "fp32") -> None:
        self.model = select_backend(model, precision) if isinstance(model, Transformer) else model
        self.tokenizer = tokenizer
        self.excluded = tokenizer.ids_without_token(self.model.config.vocab_size)  # are never sampled

    def generate(
        self, prompt: str | Sequence[int], options: SamplingOptions | None = None, pinned: int = 0
    ) -> Generation:
        """Continue a prompt, which is text or token ids. Iterating over the result yields the text in pieces.

        If the sequence is longer than the context, the model sees the part that `window_start` describes.

        Args:
            pinned: number of tokens at the start of the prompt that always stay in that part.
        """
        return Generation(self, prompt, options or SamplingOptions(), pinned)

    def generate_batch(self, prompts: Sequence[str], options: SamplingOptions | None = None) -> list[Completion]:
        """Continue several prompts, or one prompt several times, as one batch, which is faster than one by one.

        Greedy texts are equal to those of `generate`. Otherwise the sequences take turns drawing from one random
        generator, so a text depends on the batch.
        """
        if not prompts:
            return []
        options = options or SamplingOptions()
        texts = [_Continuation(self.model, self.tokenizer, prompt, options) for prompt in prompts]
        prompt_ids = [text.prompt for text in texts]
        decoder = Decoder(self.model, prompt_ids, options, texts[0].eos_token_ids, self.excluded)
        growing, pieces = list(enumerate(texts)), [""] * len(texts)
        while growing:
            for (number, text), token in zip(growing, decoder.next(), strict=True):
                pieces[number] += text.add(token)
            for place in reversed(range(len(growing))):
                if growing[place][1].stop_reason is not None:
                    decoder.drop(place)
                    growing[place] = growing[-1]
                    growing.pop()
        return [
            Completion(piece, len(text.prompt), text.completion_tokens, text.stop_reason or "length")
            for piece, text in zip(pieces, texts, strict=True)
        ]


@dataclass(frozen=True)
class Completion:
    """A finished continuation, without its prompt. The end-of-text token is not counted."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    stop_reason: StopReason


class Generation:
    """A continuation in progress. Iterate over it for the text.

    Attributes:
        prompt_tokens, completion_tokens: numbers of tokens so far; the end-of-text token is not counted.
        stop_reason: why the text ended; None until then.
        seconds_to_first_token: from the call of `generate`, prefill included; None until then.
    """

    def __init__(
        self, generator: Generator, prompt: str | Sequence[int], options: SamplingOptions, pinned: int = 0
    ) -> None:
        self._begin = time.perf_counter()
        self._text = text = _Continuation(generator.model, generator.tokenizer, prompt, options)
        model, excluded = generator.model, generator.excluded
        self._decoder = Decoder(model, [text.prompt], options, text.eos_token_ids, excluded, pinned)
        self.seconds_to_first_token: float | None = None
        self._seconds = 0.0

    @property
    def token_ids(self) -> list[int]:
        """Prompt and continuation so far."""
        return self._decoder.tokens[0]

    @property
    def prompt_tokens(self) -> int:
        return len(self._text.prompt)

    @property
    def completion_tokens(self) -> int:
        return self._text.completion_tokens

    @property
    def stop_reason(self) -> StopReason | None:
        return self._text.stop_reason

    @property
    def tokens_per_second(self) -> float:
        """New tokens per second after the first one; 0 before the second."""
        decoding = self._seconds - (self.seconds_to_first_token or 0.0)
        return (self.completion_tokens - 1) / decoding if self.completion_tokens > 1 and decoding > 0 else 0.0

    def __iter__(self) -> Iterator[str]:
        while self.stop_reason is None:
            (token,) = self._decoder.next()
            piece = self._text.add(token)
            self._seconds = time.perf_counter() - self._begin
            if self.completion_tokens and self.seconds_to_first_token is None:
                self.seconds_to_first_token = self._seconds
            if piece:
                yield piece


class _Continuation:
    """Decodes the tokens of one continuation to pieces of text, and decides when it ends.

    Raises:
        CheckpointError: if the prompt has token ids beyond the vocabulary of the model.
    """

    def __init__(
        self, model: InferenceBackend, tokenizer: Tokenizer, prompt: str | Sequence[int], options: SamplingOptions
    ) -> None:
        self.prompt = tokenizer.encode_prompt(prompt) if isinstance(prompt, str) else list(prompt)
        known = model.config.vocab_size
        if max(self.prompt) >= known:
            raise CheckpointError(f"the prompt has token {max(self.prompt):,}, and the model knows {known:,} tokens.")
        self.eos_token_ids = [id for id in sorted(tokenizer.end_ids) if id < known]
        self._max_tokens = options.max_tokens
        self._decoder, self._stops = tokenizer.stream(self.prompt), StopBuffer(options.stop)
        self.completion_tokens = 0
        self.stop_reason: StopReason | None = None

    def add(self, token: int) -> str:
        """Add a token; returns the text that is final now, which may be empty."""
        if token in self.eos_token_ids:
            return self._end("end_of_text")
        self.completion_tokens += 1
        piece = self._stops.add(self._decoder.add(token))
        if self._stops.found:
            self.stop_reason = "stop_sequence"
        elif self.completion_tokens == self._max_tokens:
            piece += self._end("length")
        elif self._stops.would_end(self._decoder.held(self._stops.longest)):
            piece += self._stops.add(self._decoder.finish())
            self.stop_reason = "stop_sequence" if self._stops.found else None
        return piece

    def _end(self, reason: StopReason) -> str:
        """End the text; returns the rest of it, up to a stop sequence if there is one."""
        piece = self._stops.add(self._decoder.finish())
        self.stop_reason = "stop_sequence" if self._stops.found else reason
        return piece if self._stops.found else piece + self._stops.finish()


def serve(model: Transformer, tokenizer: Tokenizer, precision: str = "auto") -> Generator:
    """A generator for a long-running process. On CUDA it is compiled and warmed up here.

    On a CPU and on MPS nothing is compiled: on a CPU the kernels of the libraries are faster. Errors are those of
    `Generator`.
    """
    if model.device.type != "cuda":
        return Generator(model, tokenizer, precision)
    generator = Generator(CompiledBackend(model, serving_precision(model.device, precision)), tokenizer)
    "".join(generator.generate("", SamplingOptions(max_tokens=4, min_tokens=4)))
    return generator
