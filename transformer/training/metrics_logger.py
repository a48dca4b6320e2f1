"""Logging of a run: to the terminal, metrics.jsonl, report.html, and trackers."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from pathlib import Path

from transformer.evaluation.perplexity import perplexity
from transformer.model import Transformer
from transformer.reporting.display import Display, clock
from transformer.reporting.training_report import write_report
from transformer.training.distributed import Engine
from transformer.training.flops import flops_per_token, measured_peak
from transformer.training.metrics_file import MetricsFile
from transformer.training.schedule import Progress
from transformer.training.step import StepMetrics
from transformer.training.train_config import TrainConfig

_AVERAGED_STEPS = 20  # for the loss and speed in the terminal


class MetricsLogger:
    """Logs the steps and validations of a run, in its first process only.

    Args:
        progress: of the run, updated by the trainer.
    """

    def __init__(self, progress: Progress, config: TrainConfig, engine: Engine, model: Transformer) -> None:
        self._progress, self._config, self._engine = progress, config, engine
        self._recent: deque[tuple[StepMetrics, float]] = deque(maxlen=_AVERAGED_STEPS)
        if engine.main:
            self._output = Path(config.run.output)
            self._display = Display()
            self._metrics = MetricsFile(self._output, progress.step)
            peak = engine.world_size * measured_peak(engine.device, config.run.precision)
            # MFU at one token per second, in windows of the full length and in short ones.
            self._utilisation, self._short_window_utilisation = (
                flops_per_token(model, length) / peak
                for length in (config.model.context_length, config.text.short_window_length)
            )

    def __enter__(self) -> MetricsLogger:
        return self

    def __exit__(self, *error: object) -> None:
        if self._engine.main:
            self._display.close()

    def log_step(self, step: StepMetrics, seconds: float, done: float) -> None:
        """Log a step; one without targets is skipped.

        Args:
            seconds: how long the step took.
            done: fraction of the budget that is spent.
        """
        if not self._engine.main or not step.tokens:
            return
        self._recent.append((step, seconds))
        utilisation = (
            self._short_window_utilisation if done <= self._config.text.short_window_share else self._utilisation
        )
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

    def log_validation(self, loss: float, bits_per_byte: float, sample: str) -> None:
        """Log a validation, and write the report.

        Args:
            loss: nats per token.
            sample: a text that the model generated.
        """
        if not self._engine.main:
            return
        self._record({"validation_loss": loss, "bits_per_byte": bits_per_byte, "sample": sample})
        self._display.say(
            f"step {self._progress.step:,} · {clock(self._progress.seconds)} · validation loss {loss:.4f} · perplexity "
            f"per token {perplexity(loss):,.2f} · {bits_per_byte:.4f} bits per byte\n  {sample}"
        )
        write_report(self._output, f"Training on {Path(self._config.text.data).name}")

    def _record(self, numbers: Mapping[str, float | str]) -> None:
        progress = self._progress
        so_far = {"step": progress.step, "seconds": progress.seconds, "training_seconds": progress.training_seconds}
        self._metrics.write({**so_far, "tokens": progress.tokens, **numbers})
        self._engine.log(dict(numbers), progress.step)

    def _cost(self) -> float | None:
        price = self._config.run.price_per_hour
        return None if price is None else self._progress.seconds / 3600 * price
