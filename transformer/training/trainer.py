"""The training loop: steps until the budget is spent, with validation, logging and checkpoints.

It does not depend on the architecture of the model or on how a step is computed.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from transformer.data.batches import IGNORE_INDEX, Batch, BatchSource
from transformer.data.tokenizer import Tokenizer
from transformer.errors import CheckpointError, ConfigError
from transformer.files import remove_partial
from transformer.hub import checkpoint
from transformer.inference import Generator, SamplingOptions
from transformer.model import Transformer
from transformer.training import run_state
from transformer.training.averaging import WeightAverage, without_average
from transformer.training.distributed import Engine
from transformer.training.interrupt import Interrupt, Interrupted
from transformer.training.metrics_logger import MetricsLogger
from transformer.training.optimizers import set_learning_rate
from transformer.training.schedule import Progress, learning_rate
from transformer.training.step import StepMetrics, TrainStep
from transformer.training.train_config import RENAMED, TrainConfig

logger = logging.getLogger("transformer")
_SAMPLE_TOKENS = 60
_VALIDATIONS = 10  # in a run without --validate-every
_SECONDS_BETWEEN_CHECKPOINTS = 300


class Trainer:
    """Trains `model`, and saves it in `config.run.output` whenever its validation loss is the lowest so far.

    Args:
        source, validation: training and validation batches, of which they have the rows of this process.
        engine: the processes of the run.
        stop: an event that stops the run like SIGTERM.
        model_type: Hub name of the architecture to save the model as; None: that of a newly built model.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        source: BatchSource,
        validation: Sequence[Batch],
        config: TrainConfig,
        engine: Engine,
        stop: threading.Event | None = None,
        model_type: str | None = None,
    ) -> None:
        self._stop, self._model_type = stop, model_type
        self.model, self.tokenizer, self.source, self.validation = model, tokenizer, source, validation
        self.config, self.engine, self.progress = config, engine, Progress()
        self.output = Path(config.run.output)
        batches = source.steps_in_epoch
        accumulated = config.optimization.gradient_accumulation_steps
        self.budget = config.run.budget(None if batches is None else batches / accumulated)
        self.train_step = TrainStep(model, source, tokenizer, config, engine)
        self.optimizers = self.train_step.optimizers
        decay = config.optimization.ema_decay
        self.average = WeightAverage(model, decay) if decay else None
        self._bytes_per_token = self._measure_bytes()
        self._start = 0.0  # on the clock of time.perf_counter, without pauses

    def run(self) -> Progress:
        """Train until a limit of the budget is reached, or the validation loss has not improved for `patience`.

        Returns:
            The progress at the end.

        Raises:
            Interrupted: after SIGTERM, SIGHUP, Ctrl-C or `stop`; the state is saved.
            TransformerError: if the run diverged, cannot be resumed from its checkpoint, or cannot be saved.
        """
        config, progress = self.config, self.progress
        self._resume()
        if self._is_over() and self.engine.main:
            logger.info(
                "the run in %s has ended already, after step %s: nothing is trained. A larger budget (such as "
                "--max-steps) continues it, --restart starts again, and another --output is another run.",
                self.output,
                f"{progress.step:,}",
            )
        n_empty, saved = 0, progress.seconds  # steps without a target; the time of the last checkpoint
        self._start = time.perf_counter() - progress.seconds
        with Interrupt(self._stop) as interrupt, MetricsLogger(progress, config, self.engine, self.model) as metrics:
            while not self._is_over():
                before = self.budget.spent(progress)
                step, seconds, stop = self._run_step(before, interrupt)
                n_empty += not step.tokens
                after = self.budget.spent(progress)
                metrics.log_step(step, seconds, after)
                due = self._validation_due(before, after)
                if due:
                    self._validate(metrics)
                if due or stop or self._checkpoint_due(progress.seconds - saved):
                    self._checkpoint()
                    saved = progress.seconds
                if stop and after < 1.0:
                    self._save_unvalidated_model()
                    raise Interrupted(progress.step, interrupt.signal or signal.SIGTERM)
        if n_empty and self.engine.main:
            logger.info("%s steps had nothing to learn, and changed nothing", f"{n_empty:,}")
        return progress

    def _run_step(self, done: float, interrupt: Interrupt) -> tuple[StepMetrics, float, bool]:
        """One step, which advances the progress: its metrics, its seconds, and whether the run was asked to stop.

        done: fraction of the budget that is spent.
        """
        set_learning_rate(self.optimizers, self._learning_rate(done))
        self.source.set_progress(done)
        begin = time.perf_counter()
        step = self.train_step.run(self.progress.step + 1)
        now, main = time.perf_counter(), float(self.engine.main)
        # All processes use the clock of the first one, and stop when any of them is asked to.
        numbers = self.engine.sum(main * (now - self._start), main * (now - begin), interrupt.signal)
        self.progress.seconds, seconds, stop = numbers
        self.progress.step += 1
        self.progress.tokens += step.tokens
        self.progress.training_seconds += seconds
        if self.average and step.tokens:
            self.average.update(self.progress.step)
        return step, seconds, bool(stop)

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Nats per token of the validation batches, over all processes."""
        self.model.eval()
        total = counted = 0.0
        for batch in self.validation:
            counted += batch.n_targets
            total += float(self.train_step.summed_loss(batch, self.train_step.uncompiled))
        self.model.train()
        self.engine.reshard(self.train_step.module)
        total, counted = self.engine.sum(total, counted)
        return total / counted

    def _validate(self, metrics: MetricsLogger) -> None:
        """Log the validation loss of the model, or of the average of its weights, and save it if it is the best."""
        with self.average.applied() if self.average else nullcontext():
            self._validate_weights(metrics)

    def _validate_weights(self, metrics: MetricsLogger) -> None:
        progress, loss = self.progress, self.validation_loss()
        model = self._unsharded_model()
        if math.isfinite(loss) and loss < progress.best_loss:
            progress.best_loss, progress.best_step, progress.validations_since_best = loss, progress.step, 0
            self._save_model(model)
        else:
            progress.validations_since_best += 1
        if self.engine.main:
            metrics.log_validation(loss, loss / math.log(2) / self._bytes_per_token, self._sample(model))

    def _save_unvalidated_model(self) -> None:
        """Save the model of a run that is stopped before its first validation."""
        if not self.progress.best_step:
            self._save_model(self._unsharded_model())

    def _unsharded_model(self) -> Transformer:
        """The model, or a copy of it with full tensors if it is sharded. Every process has to call this."""
        return run_state.unsharded_copy(self.model) if self.engine.sharded else self.model

    def _save_model(self, model: Transformer) -> None:
        if self.engine.main:
            checkpoint.save(model, self.tokenizer, self.output, self._model_type)

    def _measure_bytes(self) -> float:
        """UTF-8 bytes of the validation text per target. End-of-text tokens are targets of zero bytes."""
        targets = [row[row != IGNORE_INDEX].tolist() for batch in self.validation for row in batch.targets]
        local_bytes = sum(len(self.tokenizer.decode(row).encode()) for row in targets)
        n_bytes, n_targets = self.engine.sum(local_bytes, sum(map(len, targets)))
        if not n_targets:
            raise ConfigError(
                "the validation text has nothing to predict: it contains only prompts. Give other --validation-data."
            )
        return max(1.0, n_bytes) / n_targets

    def _sample(self, model: Transformer) -> str:
        """A text that the model generates, on one line."""
        prompt = self.config.run.sample_prompt
        options = SamplingOptions(max_tokens=_SAMPLE_TOKENS, seed=self.config.run.seed)
        try:
            text = "".join(Generator(model, self.tokenizer, "fp32").generate(prompt, options))
        except RuntimeError:  # a model that has diverged has no probabilities; the next step raises an error
            text = ""
        return " ".join(f"{prompt}{text}".split())

    def _learning_rate(self, done: float) -> float:
        """The learning rate as a fraction of its peak. done: fraction of the budget that is spent."""
        o = self.config.optimization
        return learning_rate(o.schedule, done, o.warmup_ratio, o.decay_ratio, o.final_learning_rate)

    def _validation_due(self, before: float, after: float) -> bool:
        """Whether to validate after a step. before, after: fractions of the budget that were spent, in [0, 1]."""
        if after >= 1.0:
            return True  # the last weights are always validated
        if self.config.run.validate_every:
            return self.progress.step % self.config.run.validate_every == 0
        return math.floor(before * _VALIDATIONS) < math.floor(after * _VALIDATIONS)

    def _is_over(self) -> bool:
        return self.budget.spent(self.progress) >= 1.0 or self._out_of_patience()

    def _out_of_patience(self) -> bool:
        return self.config.run.patience is not None and self.progress.validations_since_best >= self.config.run.patience

    def _checkpoint_due(self, seconds: float) -> bool:
        if self.config.run.checkpoint_every:
            return self.progress.step % self.config.run.checkpoint_every == 0
        return seconds > _SECONDS_BETWEEN_CHECKPOINTS

    def _checkpoint(self) -> None:
        """Save the state that the run is resumed from."""
        tensors = run_state.get_state_dict(self.model, self.optimizers)
        if self.average:
            tensors |= self.average.state_dict()
        if self.engine.main:
            facts = {
                "progress": self.progress.state_dict(),
                "data": self.source.state_dict(),
                "run": self.config.identity(),
            }
            run = self.config.run
            run_state.save(run.checkpoints, self.progress.step, run_state.State(tensors, facts), run.keep_checkpoints)

    def _resume(self) -> None:
        """Resume the run in the output folder, if there is one.

        Raises:
            ConfigError: if it is a run with other options.
            CheckpointError: if there is no checkpoint and --resume was given.
        """
        folder = self.config.run.checkpoints
        if self.engine.main:
            remove_partial(self.output)
        found = run_state.load(folder)
        if found is None:
            if self.config.run.resume:
                raise CheckpointError(f"{folder} has no checkpoint to resume from.")
            return
        saved = {RENAMED.get(name, name): value for name, value in found.facts["run"].items()}
        saved = {**TrainConfig.from_options(data="").identity(), **saved}  # options newer than the checkpoint
        for name, value in self.config.identity().items():
            if (before := saved[name]) != value:
                raise ConfigError(
                    f"{self.output} holds a run with {name} {before!r}, not {value!r}: "
                    "resume it with its options, choose another output, or start again with --restart."
                )
        run_state.set_state_dict(self.model, self.optimizers, without_average(found.tensors))
        if self.average:
            self.average.load_state_dict(found.tensors)
        self.source.load_state_dict(found.facts["data"])
        self.progress.load_state_dict(found.facts["progress"])
        if self.engine.main:
            logger.info("resuming after step %s of the run in %s", f"{self.progress.step:,}", self.output)
