"""What is shown and recorded of a run: the display, metrics.jsonl, the report, and trackers."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from pathlib import Path

from transformer.model import Transformer
from transformer.reporting.display import Display, clock, perplexity
from transformer.reporting.training_report import write_report
from transformer.training.distributed import Engine
from transformer.training.flops import flops_per_token, measured_peak
from transformer.training.metrics_file import Metrics
from transformer.training.schedule import Progress
from transformer.training.step import Step
from transformer.training.train_config import TrainConfig

_SHOWN_STEPS = 20  # the loss and speed on display are means over so many


class MetricsLogger:
    """Watches a run for a person; with several processes only the first one does.

    Args:
        progress: of the run, which keeps it up to date.
    """

    def __init__(self, progress: Progress, config: TrainConfig, engine: Engine, model: Transformer) -> None:
        self._progress, self._config, self._engine = progress, config, engine
        self._recent: deque[tuple[Step, float]] = deque(maxlen=_SHOWN_STEPS)
        if engine.main:
            self._output = Path(config.run.output)
            self._display = Display()
            self._metrics = Metrics(self._output, progress.step)
            peak = engine.world_size * measured_peak(engine.device, config.run.precision)
            # Of one token in one second, in windows of the full length and in short ones.
            self._utilisation, self._utilisation_of_short = (
                flops_per_token(model, length) / peak
                for length in (config.model.context_length, config.data.short_window_length)
            )

    def __enter__(self) -> MetricsLogger:
        return self

    def __exit__(self, *error: object) -> None:
        if self._engine.main:
            self._display.close()

    def step(self, step: Step, seconds: float, done: float) -> None:
        """After each step, which took this many seconds. One that had nothing to learn is no point of any curve."""
        if not self._engine.main or not step.tokens:
            return
        self._recent.append((step, seconds))
        utilisation = self._utilisation_of_short if done <= self._config.data.short_window_share else self._utilisation
        rate = sum(one.tokens for one, _ in self._recent) / sum(seconds for _, seconds in self._recent)
        numbers = {
            "loss": step.loss,
            "learning_rate": step.learning_rate,
            "gradient_norm": step.gradient_norm,
            "tokens_per_second": rate,
            "model_flop_utilisation": rate * utilisation,
        }
        if cost := self._cost():
            numbers["cost"] = cost
        self._record(numbers)
        self._display.step(
            step=self._progress.step,
            done=done,
            loss=sum(one.loss for one, _ in self._recent) / len(self._recent),
            tokens_per_second=rate,
            utilisation=rate * utilisation,
            seconds=self._progress.seconds,
            cost=cost,
        )

    def validation(self, loss: float, bits_per_byte: float, sample: str) -> None:
        """After each validation. loss: nats per token. sample: a text from the model as it is now."""
        if not self._engine.main:
            return
        self._record({"validation_loss": loss, "bits_per_byte": bits_per_byte, "sample": sample})
        self._display.say(
            f"step {self._progress.step:,} · {clock(self._progress.seconds)} · validation loss {loss:.4f} · perplexity "
            f"per token {perplexity(loss):,.2f} · {bits_per_byte:.4f} bits per byte\n  {sample}"
        )
        write_report(self._output, f"Training on {Path(self._config.data.data).name}")

    def _record(self, numbers: Mapping[str, float | str]) -> None:
        progress = self._progress
        so_far = {"step": progress.step, "seconds": progress.seconds, "training_seconds": progress.training_seconds}
        self._metrics.write({**so_far, "tokens": progress.tokens, **numbers})
        self._engine.log(dict(numbers), progress.step)

    def _cost(self) -> float | None:
        price = self._config.run.price_per_hour
        return None if price is None else self._progress.seconds / 3600 * price
