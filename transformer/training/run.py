"""A whole run: from text and options to a model directory with its card."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import numpy as np

from transformer.data.batches import Windows, validation_batches
from transformer.data.tokenizer import Tokenizer
from transformer.device import describe
from transformer.errors import ConfigError, PreflightError, TransformerError, WriteError
from transformer.files import reason
from transformer.hub.publish import prepare, push
from transformer.preflight import preflight
from transformer.reporting.measured_card import measure_and_write_card
from transformer.reporting.model_card import TrainingFacts, command_line
from transformer.training import run_state
from transformer.training.distributed import DistributedEngine, Engine
from transformer.training.lock import only_run_in
from transformer.training.memory_limits import keep_freed_memory
from transformer.training.option_effects import refuse_without_effect
from transformer.training.run_components import RunComponents, build
from transformer.training.schedule import Progress
from transformer.training.targets import coverage
from transformer.training.train_config import TrainConfig
from transformer.training.trainer import Trainer

logger = logging.getLogger("transformer")
_NOT_OF_THE_RUN = ("resume", "restart")
_VALIDATION_ROWS = 8  # windows scored at once
_SCORED_TOKENS = 50_000  # of the validation text, for the card: about a minute on a CPU at the default size


def train(config: TrainConfig, hub_token: str | None = None, stop: threading.Event | None = None) -> Progress:
    """Train a model as `config` says; the best one is left in `config.run.output`.

    Args:
        hub_token: to publish with, if it is not the Hub client's own. It is no option: options are written down.
        stop: when this is set, the run stops as after SIGTERM: for a thread, which gets no signals.

    Raises:
        Interrupted: if it was asked to stop; its state is saved.
        PreflightError: if a check before the first step failed.
        TransformerError: if the options, the text or the model to start from cannot be used, another run is in the
            output folder, or there is no room to write.
    """
    refuse_without_effect(config, ())
    with only_run_in(config.run.output):
        try:
            return _train(config, hub_token, stop)
        except OSError as error:  # of a write that has no sentence of its own
            raise WriteError(
                f"the run cannot go on: {error.filename or config.run.output}: {reason(error)}."
            ) from error


def _train(config: TrainConfig, hub_token: str | None, stop: threading.Event | None) -> Progress:
    engine = DistributedEngine(config.run.device, config.run.parallel, config.run.trackers, config.run.output)
    if not engine.main:
        logger.setLevel(logging.WARNING)
    try:
        if engine.main and config.run.push_to:
            prepare(config.run.push_to, config.run.push_public, hub_token)
        if engine.main and config.run.restart:  # before anything of the new run is written beside them
            run_state.remove(config.run.checkpoints)
        parts = build(config, engine)
        model, tokenizer, validation = parts.model, parts.tokenizer, parts.validation
        logger.info(
            "%s parameters · %s · %s",
            f"{model.parameter_count():,}",
            f"{len(parts.training):,} windows of {parts.training.length} tokens to train on"
            if parts.training
            else "a stream of text",
            f"{engine.world_size} × {engine.device.type}",
        )
        if parts.training:
            _say_what_is_learned(parts.training)
        if config.run.preflight != "off" and not run_state.exists(config.run.checkpoints):  # or it has begun already
            _preflight(parts, config, engine)
        rows = validation_batches(
            validation, config.run.validation_windows, _VALIDATION_ROWS, engine.rank, engine.world_size
        )
        if engine.device.type == "cpu":
            keep_freed_memory()  # not before: what tokenising freed is not needed again
        trainer = Trainer(model.train(), tokenizer, parts.source, rows, config, engine, stop, parts.model_type)
        progress = trainer.run()
        if engine.main:
            # How a run is taken up belongs to no run.
            command = command_line({name: v for name, v in config.changed().items() if name not in _NOT_OF_THE_RUN})
            processor = (
                f"{engine.world_size} × {describe(engine.device)}" if engine.world_size > 1 else describe(engine.device)
            )
            facts = TrainingFacts(command, progress.step, progress.tokens, progress.seconds, processor)
            facts.write(config.run.output)
            _write_card(config, tokenizer, validation)
            logger.info("the best model, of step %s, is in %s", f"{progress.best_step:,}", config.run.output)
            if config.run.push_to:
                push(config.run.output, config.run.push_to, config.run.push_public, hub_token)
        return progress
    finally:
        engine.close()


def _say_what_is_learned(training: Windows) -> None:
    """Say once how much of the text cannot be learned from, or not well, in windows of this length.

    Raises:
        ConfigError: if there is nothing to learn at all: the run would never end, or end as it began.
    """
    found = coverage(training)
    if found.empty == found.windows:
        raise ConfigError(
            "there is nothing to learn in the text that is trained on: it holds prompts alone. Give a text with more "
            "completions, or --validation-data, so that none of it has to be held out."
        )
    for sentence in found.sentences(training.length):
        logger.warning("%s", sentence)


def _preflight(parts: RunComponents, config: TrainConfig, engine: Engine) -> None:
    """Check the run in its first process, while the others wait; all of them stop if it fails, unless it is to warn.

    Raises:
        PreflightError: with cause and cure of what failed. ConfigError: if an option cannot work.
    """
    error: TransformerError | None = None
    if engine.main:
        try:
            report = preflight(parts, config, engine)
            logger.info("%s", report.table())
            for check in (*report.failed, *report.warned) if config.run.preflight == "warn" else report.warned:
                logger.warning("%s: %s", check.name, check.cause_and_cure)
            if report.failed and config.run.preflight == "stop":
                error = PreflightError(f"{report.sentences()} (--preflight warn trains all the same.)")
        except TransformerError as raised:
            error = raised
    if engine.sum(float(error is not None))[0]:
        raise error or PreflightError("the preflight failed in the first process.")


def _write_card(config: TrainConfig, tokenizer: Tokenizer, validation: Windows) -> None:
    """The card of the model in the output folder, with the first documents of the validation text scored."""
    tokens = validation.stream.tokens[validation.first : validation.stop][:_SCORED_TOKENS]
    ends = np.flatnonzero(tokens == tokenizer.end_of_text_id)
    texts = list(filter(None, (tokenizer.decode(part.tolist()) for part in np.split(tokens, ends))))
    name = Path(config.data.data).name
    measure_and_write_card(config.run.output, {f"held-out text of {name}": lambda: texts}, data=f"Trained on {name}.")
