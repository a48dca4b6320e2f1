"""The checks that run before money is spent, on the real text, batches and model of a run."""

from __future__ import annotations

from transformer.model import Transformer
from transformer.text.batches import BatchSource, Windows
from transformer.text.tokenizer import Tokenizer
from transformer.training.config import TrainConfig
from transformer.training.engine import Engine
from transformer.training.preflight.check import Check, Report, ShownRow

__all__ = ["Check", "Report", "ShownRow", "preflight"]


def preflight(
    model: Transformer,
    tokenizer: Tokenizer,
    source: BatchSource,
    training: Windows | None,
    validation: Windows,
    config: TrainConfig,
    engine: Engine,
) -> Report:
    """Check a run before its first step, and leave it as it is: weights, position in the text, random states.

    Args:
        model: as it begins. source: what it learns from. training: the windows behind `source`; None: there are none,
            and its rows are looked for in the beginning of `config.data`.
        validation: what it is validated on.
    """
    return Report(())
