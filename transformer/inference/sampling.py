"""Sampling the next token: pure functions on logits.

Dimensions: V vocabulary; "..." stands for as many dimensions as there are, the texts of a batch or none.
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
    """How a text is continued.

    Raises:
        ConfigError: if a value is out of its range.
    """

    max_tokens: int = 256  # at most this many new tokens
    temperature: float = 0.8  # 0, and whatever is not above GREEDY: always the likeliest token
    top_k: int = 50  # only the k likeliest tokens; 0: off
    top_p: float = 0.95  # only the likeliest tokens that together have this probability; 1: off
    min_p: float = 0.0  # only tokens at least this fraction as likely as the likeliest; 0: off
    repetition_penalty: float = 1.0  # tokens seen before are this much less likely; 1: off
    min_tokens: int = 0  # the end-of-text token is held back until then
    stop: tuple[str, ...] = ()  # the text ends before the first of these strings
    seed: int | None = None  # the same seed gives the same text; None: a new one each time

    def __post_init__(self) -> None:
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if not low <= value <= high:  # nor is NaN
                raise ConfigError(f"{name} must be between {low} and {high}, not {value}.")
        if not 0 < self.repetition_penalty <= sys.float_info.max:
            raise ConfigError(f"repetition_penalty must be more than 0, not {self.repetition_penalty}.")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be a whole number from 0 to 2^63 - 1, not {self.seed}.")
        if self.min_tokens > self.max_tokens:
            raise ConfigError(f"min_tokens {self.min_tokens} is more than max_tokens {self.max_tokens}.")
        if any(not stop for stop in self.stop):
            raise ConfigError("a stop sequence is empty: every text would end at once.")


MODEL_SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")  # that a model can have of its own


def combine_settings(model: Mapping[str, float], user: Mapping[str, Any]) -> tuple[SamplingOptions, str]:
    """What the user says, else what the model says, else the default; and where each value is from, in words.

    Args:
        model: some of MODEL_SETTINGS. user: arguments of `SamplingOptions`.

    Raises:
        ConfigError: if a value is out of its range.
    """
    options = SamplingOptions(**{**model, **user})
    said = {"user": user, "model": model}
    sources = {name: next((who for who, of in said.items() if name in of), "default") for name in MODEL_SETTINGS}
    values = (f"{name} {getattr(options, name):g} ({source})" for name, source in sources.items())
    return options, f"sampling: {', '.join(values)}"


GREEDY = 1e-3  # a temperature at which a token 0.1 nats less likely than the likeliest has a chance of e^-100
FEW = 1000  # tokens that nearly always have the probability that is asked for
_RANGES = [
    ("max_tokens", 1, 2**31),
    ("min_tokens", 0, 2**31),
    ("temperature", 0, 100),
    ("top_k", 0, 2**31),
    ("top_p", 0, 1),
    ("min_p", 0, 1),
]
# What a user gets who sets nothing: on the command line, over HTTP, and with `generate()` of transformers, which reads
# the generation_config.json that is saved with a model.
DEFAULT_SAMPLING = SamplingOptions(repetition_penalty=1.1)


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide the positive logits of `seen` token ids (..., n) by `penalty` and multiply the negative ones (CTRL, Keskar
    et al., 2019, 4.1). A finite logit stays finite."""
    scores = logits.gather(-1, seen)
    most = torch.finfo(logits.dtype).max
    penalized = torch.where(scores > 0, scores / penalty, scores * penalty).clamp(-most, most)
    return logits.scatter(-1, seen, torch.where(scores.isinf(), scores, penalized))


def keep_top_p(ordered: Tensor, p: float, total: Tensor | None = None) -> Tensor:
    """Nucleus sampling (Holtzman et al., 2020): the fewest tokens whose probabilities sum to `p`, never none.

    Args:
        ordered: logits from the largest to the smallest. Those left out become -inf.
        total: the logarithm of the sum of all exponentials, (..., 1), if these are not all logits.
    """
    if p >= 1.0:
        return ordered
    probabilities = ordered.softmax(dim=-1) if total is None else (ordered - total).exp()
    before = probabilities.cumsum(dim=-1) - probabilities  # of the tokens that are likelier
    drop = before >= p
    drop[..., 0] = False
    return ordered.masked_fill(drop, -math.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Tokens less than `p` times as likely as the likeliest become -inf (Nguyen et al., 2024)."""
    if p <= 0.0:
        return logits
    return logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True) + math.log(p), -math.inf)


def sample(logits: Tensor, options: SamplingOptions, seen: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """The id of the next token of each text, (...).

    All the vocabulary is looked at once, for the likeliest tokens; what follows is about those alone.

    Args:
        logits: (..., V), any floating type; -inf where a token may not come.
        seen: ids that stand in the text already, (..., n), for the repetition penalty.
        generator: the source of randomness.
    """
    if options.repetition_penalty != 1.0 and seen is not None:
        logits = penalize_repetition(logits, seen, options.repetition_penalty)
    if options.temperature <= GREEDY:
        return logits.argmax(dim=-1)
    vocabulary = logits.shape[-1]
    count = min(options.top_k or vocabulary, vocabulary)
    total = None
    if count == vocabulary:
        logits = _cooled(logits, options.temperature)
        if options.top_p >= 1.0:
            probabilities = keep_min_p(logits, options.min_p).softmax(dim=-1)
            return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)
        ordered, ids, total = _likeliest(logits, options.top_p)
    else:
        ordered, ids = logits.topk(count)
        ordered = _cooled(ordered, options.temperature)
    ordered = keep_top_p(ordered, options.top_p, total)
    probabilities = keep_min_p(ordered, options.min_p).softmax(dim=-1)
    return ids.gather(-1, torch.multinomial(probabilities, 1, generator=generator)).squeeze(-1)


def _cooled(logits: Tensor, temperature: float) -> Tensor:
    """Logits less the largest of them, divided by the temperature: none can become infinite but to be left out."""
    logits = logits.float()
    return (logits - logits.amax(dim=-1, keepdim=True)) / temperature


def _likeliest(logits: Tensor, p: float) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens that surely have the probability `p` together, from the likeliest on, few if few have it.

    On a CPU, to put a whole vocabulary in order takes several times as long as a step of a small model. A GPU does it
    at once, and would have to wait for the question whether few suffice.

    Returns:
        Their logits and ids, and the total that `keep_top_p` needs.
    """
    total = logits.logsumexp(dim=-1, keepdim=True)
    few = FEW if logits.device.type == "cpu" else logits.shape[-1]
    ordered, ids = logits.topk(min(few, logits.shape[-1]))
    if ids.shape[-1] < logits.shape[-1] and not bool(((ordered - total).exp().sum(dim=-1) > p).all()):
        ordered, ids = logits.topk(logits.shape[-1])
    return ordered, ids, total
