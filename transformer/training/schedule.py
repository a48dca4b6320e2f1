"""How far a run is, and the learning rate that belongs there: pure functions of what has been spent.

The schedule follows the budget of which most is spent, so that it ends where the run ends, whether that is after steps,
tokens, minutes or money.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from transformer.errors import ConfigError

Schedule = Literal["cosine", "linear", "wsd"]


@dataclass
class Progress:
    """How far a run is; part of its checkpoints.

    tokens: targets learned from. seconds: since it began, pauses between a stop and a resume left out.
    training_seconds: those spent in steps, the first of which compiles. best_loss: nats per validation token, at
    best_step. waited: validations since then.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    training_seconds: float = 0.0
    best_loss: float = math.inf
    best_step: int = 0
    waited: int = 0


@dataclass(frozen=True)
class Budget:
    """When a run ends: at whichever comes first. None: no such end."""

    steps: int | None = None
    tokens: int | None = None
    seconds: float | None = None

    def spent(self, progress: Progress) -> float:
        """The part of the budget that is spent, in [0, 1]."""
        used = ((progress.step, self.steps), (progress.tokens, self.tokens), (progress.seconds, self.seconds))
        return min(1.0, max((amount / limit for amount, limit in used if limit), default=0.0))


def learning_rate(schedule: str, progress: float, warmup_ratio: float, decay_ratio: float, final: float) -> float:
    """The learning rate as a part of its highest, at `progress` through the run, both in [0, 1].

    It rises in a straight line during the first `warmup_ratio` of the run. Then cosine: it falls along half a cosine to
    `final`. linear: in a straight line. wsd (warm-up, stable, decay; Hu et al., 2024): it stays, and falls in a
    straight line in the last `decay_ratio` of the run; what was trained until then can go on under a longer budget.

    Raises:
        ConfigError: if there is no schedule of that name.
    """
    if schedule not in get_args(Schedule):
        raise ConfigError(f"schedule must be one of {', '.join(get_args(Schedule))}, not {schedule!r}.")
    if progress < warmup_ratio:
        return progress / warmup_ratio
    begin = max(warmup_ratio, 1.0 - decay_ratio) if schedule == "wsd" else warmup_ratio
    falling = min(1.0, max(0.0, (progress - begin) / (1.0 - begin))) if begin < 1.0 else 0.0
    left = 0.5 * (1.0 + math.cos(math.pi * falling)) if schedule == "cosine" else 1.0 - falling
    return final + (1.0 - final) * left
