"""How a model was trained: `training.json`, beside the weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformer.errors import CheckpointError
from transformer.files import write_json

FILE = "training.json"


@dataclass(frozen=True)
class TrainingFacts:
    """How a model was trained.

    command: of the training. seconds: duration. processor: description of the hardware.
    price_per_hour: of the machine, if the run knew it, in the user's currency.
    before: the training of the model that this one was fine-tuned from, if that is known.
    """

    command: str
    steps: int
    tokens: int
    seconds: float
    processor: str
    price_per_hour: float | None = None
    before: TrainingFacts | None = None

    def stages(self) -> Iterator[TrainingFacts]:
        """All trainings that led to the model, the first one first."""
        if self.before:
            yield from self.before.stages()
        yield self

    @property
    def cost(self) -> float | None:
        """Of this training, in the currency of `price_per_hour`."""
        return None if self.price_per_hour is None else self.price_per_hour * self.seconds / 3600

    def write(self, directory: str | Path) -> None:
        """Write `training.json` into a model directory.

        Raises:
            WriteError: if it cannot be written.
        """
        known = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        write_json(Path(directory) / FILE, known)

    @classmethod
    def read(cls, directory: str | Path) -> TrainingFacts:
        """Read `training.json` of a model directory.

        Raises:
            CheckpointError: if there are none, as for a model of another program.
        """
        try:
            return cls._of(json.loads((Path(directory) / FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{directory} does not say how it was trained: {error}.") from error

    @classmethod
    def _of(cls, fields: Any) -> TrainingFacts:
        """Raises: TypeError if these are not such facts, as of a file of this name by another program."""
        facts = cls(**fields)
        numbers = (facts.steps, facts.tokens, facts.seconds, facts.price_per_hour or 0)
        if not all(type(number) in (int, float) for number in numbers):
            raise TypeError("steps, tokens, seconds and price_per_hour must be numbers")
        before = None if facts.before is None else cls._of(facts.before)
        return dataclasses.replace(facts, before=before)
