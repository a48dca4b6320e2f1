"""Sampling the next token: pure functions on logits.

Dimensions: V vocabulary; "..." any leading dimensions
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from transformer.errors import ConfigError


@dataclass(frozen=True)
class SamplingOptions:
    """Settings of text generation.

    Raises:
        ConfigError: if a value is out of its range.
    """

    max_tokens: int = 256  # at most this many new tokens
    temperature: float = 0.8  # up to GREEDY: always the most likely token
    top_k: int = 50  # only the k most likely tokens; 0: off
    top_p: float = 0.95  # only the most likely tokens with this total probability; 1: off
    min_p: float = 0.0  # only tokens at least this fraction as likely as the most likely one; 0: off
    repetition_penalty: float = 1.0  # makes tokens that occurred before less likely; 1: off
    min_tokens: int = 0  # no end-of-text token before
    stop: tuple[str, ...] = ()  # the text ends before the first of these strings
    seed: int | None = None  # the same seed gives the same text; None: a random seed

    def __post_init__(self) -> None:
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if not low <= value <= high:  # False for NaN, too
                raise ConfigError(f"{name} must be between {low} and {high}, not {value}.")
        if not 0 < self.repetition_penalty <= sys.float_info.max:
            raise ConfigError(f"repetition_penalty must be more than 0, not {self.repetition_penalty}.")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be a whole number from 0 to 2^63 - 1, not {self.seed}.")
        if self.min_tokens > self.max_tokens:
            raise ConfigError(f"min_tokens {self.min_tokens} is more than max_tokens {self.max_tokens}.")
        if any(not stop for stop in self.stop):
            raise ConfigError("a stop sequence is empty: every text would end at once.")


MODEL_SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")  # that generation_config.json can set


def combine_settings(model: Mapping[str, float], user: Mapping[str, Any]) -> tuple[SamplingOptions, str]:
    """Settings of the user, else of the model, else the defaults; and a log line that says where each is from.

    Args:
        model: some of MODEL_SETTINGS.
        user: arguments of `SamplingOptions`.

    Raises:
        ConfigError: if a value is out of its range.
    """
    options = SamplingOptions(**{**model, **user})
    said = {"user": user, "model": model}
    sources = {name: next((who for who, of in said.items() if name in of), "default") for name in MODEL_SETTINGS}
    values = (f"{name} {getattr(options, name):g} ({source})" for name, source in sources.items())
    return options, f"sampling: {', '.join(values)}"


GREEDY = 1e-3  # at this temperature a difference of 0.1 in logits is a factor of e^-100 in probability
FEW = 1000  # tokens, whose total probability nearly always exceeds top_p
_RANGES = [
    ("max_tokens", 1, 2**31),
    ("min_tokens", 0, 2**31),
    ("temperature", 0, 100),
    ("top_k", 0, 2**31),
    ("top_p", 0, 1),
    ("min_p", 0, 1),
]
# The defaults of the command line and of the HTTP API, written to the generation_config.json of new models, which
# `generate()` of transformers reads, too.
DEFAULT_SAMPLING = SamplingOptions(repetition_penalty=1.1)


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide the positive logits of `seen` token ids (..., n) by `penalty` and multiply the negative ones (CTRL, Keskar
    et al., 2019, 4.1). A finite logit stays finite."""
    scores = logits.gather(-1, seen)
    most = torch.finfo(logits.dtype).max
    penalized = torch.where(scores > 0, scores / penalty, scores * penalty).clamp(-most, most)
    return logits.scatter(-1, seen, torch.where(scores.isinf(), scores, penalized))


def keep_top_p(ordered: Tensor, p: float, total: Tensor | None = None) -> Tensor:
    """Nucleus sampling (Holtzman et al., 2020): keep the fewest tokens whose probabilities sum to `p`, at least one.

    Args:
        ordered: logits in descending order. Those of other tokens become -inf.
        total: logsumexp over the whole vocabulary, (..., 1), if `ordered` is only a part of it.
    """
    if p >= 1.0:
        return ordered
    probabilities = ordered.softmax(dim=-1) if total is None else (ordered - total).exp()
    before = probabilities.cumsum(dim=-1) - probabilities  # total of the more likely tokens
    drop = before >= p
    drop[..., 0] = False
    return ordered.masked_fill(drop, -math.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Logits of tokens less than `p` times as likely as the most likely one become -inf (Nguyen et al., 2024)."""
    if p <= 0.0:
        return logits
    return logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True) + math.log(p), -math.inf)


def sample(logits: Tensor, options: SamplingOptions, seen: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """Sample the next token of each sequence; returns token ids (...).

    The whole vocabulary is scanned once, for the most likely tokens. The other filters see only those.

    Args:
        logits: (..., V), any floating type; -inf for tokens that must not be sampled.
        seen: token ids that occurred, (..., n), for the repetition penalty.
        generator: source of randomness.
    """
    if options.repetition_penalty != 1.0 and seen is not None:
        logits = penalize_repetition(logits, seen, options.repetition_penalty)
    if options.temperature <= GREEDY:
        return logits.argmax(dim=-1)
    vocabulary = logits.shape[-1]
    count = min(options.top_k or vocabulary, vocabulary)
    total = None
    if count == vocabulary:
        logits = _scaled(logits, options.temperature)
        if options.top_p >= 1.0:
            probabilities = keep_min_p(logits, options.min_p).softmax(dim=-1)
            return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)
        ordered, ids, total = _most_likely(logits, options.top_p)
    else:
        ordered, ids = logits.topk(count)
        ordered = _scaled(ordered, options.temperature)
    ordered = keep_top_p(ordered, options.top_p, total)
    probabilities = keep_min_p(ordered, options.min_p).softmax(dim=-1)
    return ids.gather(-1, torch.multinomial(probabilities, 1, generator=generator)).squeeze(-1)


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """(logits - max) / temperature. Subtracting the maximum keeps the result from overflowing to +inf."""
    logits = logits.float()
    return (logits - logits.amax(dim=-1, keepdim=True)) / temperature


def _most_likely(logits: Tensor, p: float) -> tuple[Tensor, Tensor, Tensor]:
    """The most likely tokens in descending order: enough of them for a total probability of `p`.

    On a CPU, sorting the whole vocabulary takes several times as long as a decode step of a small model, so FEW tokens
    are tried first. On a GPU sorting is fast, and checking whether FEW suffice would need a synchronization.

    Returns:
        Their logits and ids, and the `total` of `keep_top_p`.
    """
    total = logits.logsumexp(dim=-1, keepdim=True)
    few = FEW if logits.device.type == "cpu" else logits.shape[-1]
    ordered, ids = logits.topk(min(few, logits.shape[-1]))
    if ids.shape[-1] < logits.shape[-1] and not bool(((ordered - total).exp().sum(dim=-1) > p).all()):
        ordered, ids = logits.topk(logits.shape[-1])
    return ordered, ids, total
