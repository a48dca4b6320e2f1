"""The run: step after step until the budget is spent, watched, validated and saved.

It does not know which architecture it trains, nor how a step is computed.
"""

from __future__ import annotations

import dataclasses
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
from transformer.training.step import Stepper
from transformer.training.train_config import RENAMED, TrainConfig

logger = logging.getLogger("transformer")
_SAMPLE_TOKENS = 60
_VALIDATIONS = 10  # in a run that does not say how often
_SECONDS_BETWEEN_CHECKPOINTS = 300


class Trainer:
    """Trains `model`; the best one so far by validation is always in `config.run.output`.

    Args:
        source, validation: batches to learn from and to validate on, this process's rows of them.
        engine: the processes of the run.
        stop: when this is set, the run stops as after SIGTERM.
        model_type: what the model is saved as; None: the default of a newly built model.
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
        in_epoch = source.steps_in_epoch
        accumulated = config.optimization.gradient_accumulation_steps
        self.budget = config.run.budget(None if in_epoch is None else in_epoch / accumulated)
        self.stepper = Stepper(model, source, tokenizer, config, engine)
        self.optimizers = self.stepper.optimizers
        decay = config.optimization.ema_decay
        self.average = WeightAverage(model, decay) if decay else None
        self._bytes_per_token = self._measure_bytes()

    def run(self) -> Progress:
        """Train until the first budget is spent, or validation has not improved for too long.

        Raises:
            Interrupted: if SIGTERM, SIGHUP, Ctrl-C or `stop` asked to stop; the state is saved.
            TransformerError: if the run diverged, cannot go on from its checkpoint, or has no room to save.
        """
        config, progress = self.config, self.progress
        self._resume()
        if self._is_over() and self.engine.main:
            logger.info(
                "the run in %s has ended already, after step %s: nothing is trained. A longer budget (such as "
                "--max-steps) goes on with it, --restart begins again, and another --output is another run.",
                self.output,
                f"{progress.step:,}",
            )
        empty = 0  # steps without a target
        earlier, saved, begin = progress.seconds, progress.seconds, time.perf_counter()
        with Interrupt(self._stop) as interrupt, MetricsLogger(progress, config, self.engine, self.model) as watch:
            while not self._is_over():
                done = self.budget.spent(progress)
                set_learning_rate(self.optimizers, self._learning_rate(done))
                self.source.set_progress(done)
                step_begin = time.perf_counter()
                step = self.stepper.step(progress.step + 1)
                now, main = time.perf_counter(), float(self.engine.main)
                # All processes go by the clock of the first, and stop when one of them is asked to.
                clocks = (main * (now - begin), main * (now - step_begin), interrupt.signal)
                seconds, step_seconds, stop = self.engine.sum(*clocks)
                progress.step += 1
                if self.average and step.tokens:
                    self.average.update(progress.step)
                empty += not step.tokens
                progress.tokens += step.tokens
                progress.seconds = earlier + seconds
                progress.training_seconds += step_seconds
                after = self.budget.spent(progress)
                watch.step(step, step_seconds, after)
                due = self._validation_due(done, after)
                if due:
                    self._validate(watch)
                if due or stop or self._checkpoint_due(progress.seconds - saved):
                    self._checkpoint()
                    saved = progress.seconds
                if stop and after < 1.0:
                    self._keep_if_there_is_none()
                    raise Interrupted(progress.step, interrupt.signal or signal.SIGTERM)
        if empty and self.engine.main:
            logger.info("%s steps had nothing to learn, and changed nothing", f"{empty:,}")
        return progress

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Nats per token of the validation batches, over all processes."""
        self.model.eval()
        nats = counted = 0.0
        for batch in self.validation:
            counted += int((batch.targets != IGNORE_INDEX).sum())
            nats += float(self.stepper.nats(batch, self.stepper.uncompiled))
        self.model.train()
        self.engine.reshard(self.stepper.module)
        nats, counted = self.engine.sum(nats, counted)
        return nats / counted

    def _validate(self, watch: MetricsLogger) -> None:
        """Measure, show, and keep the model, or the average of its weights, if it is the best so far."""
        with self.average.applied() if self.average else nullcontext():
            self._validate_weights(watch)

    def _validate_weights(self, watch: MetricsLogger) -> None:
        progress, loss = self.progress, self.validation_loss()
        whole = run_state.whole_model(self.model) if self.engine.sharded else self.model
        if math.isfinite(loss) and loss < progress.best_loss:
            progress.best_loss, progress.best_step, progress.waited = loss, progress.step, 0
            if self.engine.main:
                checkpoint.save(whole, self.tokenizer, self.output, self._model_type)
        else:
            progress.waited += 1
        if self.engine.main:
            watch.validation(loss, loss / math.log(2) / self._bytes_per_token, self._sample(whole))

    def _keep_if_there_is_none(self) -> None:
        """Keep the model of a run that stops before its first validation: it is the best so far."""
        if not self.progress.best_step:
            whole = run_state.whole_model(self.model) if self.engine.sharded else self.model
            if self.engine.main:
                checkpoint.save(whole, self.tokenizer, self.output, self._model_type)

    def _measure_bytes(self) -> float:
        """UTF-8 bytes of the validation text per target; end-of-text tokens are targets without bytes."""
        targets = [row[row != IGNORE_INDEX].tolist() for batch in self.validation for row in batch.targets]
        local_bytes = sum(len(self.tokenizer.decode(row).encode()) for row in targets)
        n_bytes, n_targets = self.engine.sum(local_bytes, sum(map(len, targets)))
        if not n_targets:
            raise ConfigError(
                "the validation text has nothing to predict: it holds prompts alone. Give other --validation-data."
            )
        return max(1.0, n_bytes) / n_targets

    def _sample(self, model: Transformer) -> str:
        """A text from the model as it is now, on one line."""
        training = model.training
        prompt = self.config.run.sample_prompt
        options = SamplingOptions(max_tokens=_SAMPLE_TOKENS, seed=self.config.run.seed)
        try:
            text = "".join(Generator(model.eval(), self.tokenizer, "fp32").generate(prompt, options))
        except RuntimeError:  # a model that has diverged gives no probabilities; the next step says so
            text = ""
        model.train(training)
        return " ".join(f"{prompt}{text}".split())

    def _learning_rate(self, done: float) -> float:
        """The learning rate at `done`, in [0, 1], through the run, as a fraction of its peak."""
        o = self.config.optimization
        return learning_rate(o.schedule, done, o.warmup_ratio, o.decay_ratio, o.final_learning_rate)

    def _validation_due(self, before: float, after: float) -> bool:
        """Whether to validate after a step that took the run from `before` to `after`, in [0, 1]."""
        if after >= 1.0:
            return True  # whatever else: the last weights are never left unmeasured
        if self.config.run.validate_every:
            return self.progress.step % self.config.run.validate_every == 0
        return math.floor(before * _VALIDATIONS) < math.floor(after * _VALIDATIONS)

    def _is_over(self) -> bool:
        return self.budget.spent(self.progress) >= 1.0 or self._out_of_patience()

    def _out_of_patience(self) -> bool:
        return self.config.run.patience is not None and self.progress.waited >= self.config.run.patience

    def _checkpoint_due(self, seconds: float) -> bool:
        if self.config.run.checkpoint_every:
            return self.progress.step % self.config.run.checkpoint_every == 0
        return seconds > _SECONDS_BETWEEN_CHECKPOINTS

    def _checkpoint(self) -> None:
        """Save all that the run goes on from."""
        tensors = run_state.collect(self.model, self.optimizers) | (self.average.collect() if self.average else {})
        if self.engine.main:
            facts = {
                "progress": dataclasses.asdict(self.progress),
                "data": self.source.state(),
                "run": self.config.identity(),
            }
            run = self.config.run
            run_state.save(run.checkpoints, self.progress.step, run_state.State(tensors, facts), run.keep_checkpoints)

    def _resume(self) -> None:
        """Go on where the run in the output folder stopped, if there is one.

        Raises:
            ConfigError: if it is another run. CheckpointError: if there is none and config.run.resume insists.
        """
        folder = self.config.run.checkpoints
        if self.engine.main:
            remove_partial(self.output)
        found = run_state.load(folder)
        if found is None:
            if self.config.run.resume:
                raise CheckpointError(f"{folder} has no checkpoint to go on from.")
            return
        saved = {RENAMED.get(name, name): value for name, value in found.facts["run"].items()}
        saved = {**TrainConfig.from_options(data="").identity(), **saved}  # options newer than the checkpoint
        for name, value in self.config.identity().items():
            if (before := saved[name]) != value:
                raise ConfigError(
                    f"{self.output} holds a run with {name} {before!r}, not {value!r}: "
                    "go on with its options, choose another output, or begin again with --restart."
                )
        run_state.restore(self.model, self.optimizers, without_average(found.tensors))
        if self.average:
            self.average.restore(found.tensors)
        self.source.restore(found.facts["data"])
        for name, value in found.facts["progress"].items():
            setattr(self.progress, name, value)
        if self.engine.main:
            logger.info("going on after step %s of the run in %s", f"{self.progress.step:,}", self.output)
