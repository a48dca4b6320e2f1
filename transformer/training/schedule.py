"""The progress of a run, its budget, and the learning rate schedule.

The learning rate is a function of the fraction of the budget that is spent, so that the schedule ends when the run
ends, whether the budget is in steps, tokens, time or money.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, get_args

from transformer.errors import ConfigError

Schedule = Literal["cosine", "linear", "wsd"]


@dataclass
class Progress:
    """The progress of a run; part of its checkpoints.

    tokens: targets so far. seconds: duration of the run, without pauses between a stop and a resume.
    training_seconds: duration of the steps alone. best_loss: the lowest validation loss, in nats per token, at
    best_step. validations_since_best: how many followed it without a lower loss.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    training_seconds: float = 0.0
    best_loss: float = math.inf
    best_step: int = 0
    validations_since_best: int = 0

    def state_dict(self) -> dict[str, float]:
        """The fields under their names in checkpoints."""
        fields = dataclasses.asdict(self)
        fields["waited"] = fields.pop("validations_since_best")
        return fields

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        for name, value in state_dict.items():
            setattr(self, "validations_since_best" if name == "waited" else name, value)


@dataclass(frozen=True)
class Budget:
    """The limits of a run, which ends at the first that is reached. None: no limit."""

    steps: int | None = None
    tokens: int | None = None
    seconds: float | None = None

    def spent(self, progress: Progress) -> float:
        """The fraction of the budget that is spent, in [0, 1]: the largest of those of its limits."""
        used = ((progress.step, self.steps), (progress.tokens, self.tokens), (progress.seconds, self.seconds))
        return min(1.0, max((amount / limit for amount, limit in used if limit), default=0.0))


def learning_rate(schedule: str, progress: float, warmup_ratio: float, decay_ratio: float, final: float) -> float:
    """The learning rate as a fraction of its peak, at `progress` through the run; both are in [0, 1].

    It increases linearly during the first `warmup_ratio` of the run. Then, cosine: it decreases to `final` along half
    a cosine. linear: it decreases linearly to `final`. wsd (warmup, stable, decay; Hu et al., 2024): it is constant,
    and decreases linearly to `final` in the last `decay_ratio` of the run; a checkpoint from before the decay can be
    resumed with a larger budget.

    Raises:
        ConfigError: if the schedule is unknown.
    """
    if schedule not in get_args(Schedule):
        raise ConfigError(f"schedule must be one of {', '.join(get_args(Schedule))}, not {schedule!r}.")
    if progress < warmup_ratio:
        return progress / warmup_ratio
    start = max(warmup_ratio, 1.0 - decay_ratio) if schedule == "wsd" else warmup_ratio
    decayed = min(1.0, max(0.0, (progress - start) / (1.0 - start))) if start < 1.0 else 0.0
    remaining = 0.5 * (1.0 + math.cos(math.pi * decayed)) if schedule == "cosine" else 1.0 - decayed
    return final + (1.0 - final) * remaining
