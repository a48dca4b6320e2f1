"""A training run, from its configuration to a model directory with a model card."""

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
from transformer.hub.publish import create_repository, push
from transformer.preflight import preflight
from transformer.reporting.measured_card import measure_and_write_card
from transformer.reporting.model_card import command_line
from transformer.reporting.training_facts import TrainingFacts
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
_RESUME_OPTIONS = ("resume", "restart")  # not in the command on the model card
_SCORED_TOKENS = 50_000  # of the validation text, for the model card: about a minute on a CPU at the default size


def train(config: TrainConfig, hub_token: str | None = None, stop: threading.Event | None = None) -> Progress:
    """Train a model; the best one by validation loss is saved in `config.run.output`.

    Args:
        hub_token: token to publish with; None: that of the Hub client. Not an option, since options are saved.
        stop: an event that stops the run like SIGTERM, for a run in a thread, which gets no signals.

    Returns:
        The progress at the end of the run.

    Raises:
        Interrupted: if the run was asked to stop; its state is saved.
        PreflightError: if a check before the first step failed.
        TransformerError: if the options, the text or the initial model cannot be used, another run is in the output
            folder, or a file cannot be written.
    """
    refuse_without_effect(config, ())
    with only_run_in(config.run.output):
        try:
            return _train(config, hub_token, stop)
        except OSError as error:  # of a write without an error class of ours
            raise WriteError(
                f"the run cannot continue: {error.filename or config.run.output}: {reason(error)}."
            ) from error


def _train(config: TrainConfig, hub_token: str | None, stop: threading.Event | None) -> Progress:
    engine = DistributedEngine(config.run.device, config.run.parallel, config.run.trackers, config.run.output)
    if not engine.main:
        logger.setLevel(logging.WARNING)
    try:
        if engine.main and config.run.push_to:
            create_repository(config.run.push_to, config.run.push_public, hub_token)
        if engine.main and config.run.restart:  # before anything of the new run is written
            run_state.remove(config.run.checkpoints)
        components = build(config, engine)
        model, tokenizer, training = components.model, components.tokenizer, components.training
        logger.info(
            "%s parameters · %s · %s",
            f"{model.parameter_count():,}",
            f"{len(training):,} windows of {training.length} tokens to train on" if training else "a stream of text",
            f"{engine.world_size} × {engine.device.type}",
        )
        if training:
            _check_targets(training)
        if config.run.preflight != "off" and not run_state.exists(config.run.checkpoints):  # not when resuming
            _preflight(components, config, engine)
        rows = validation_batches(
            components.validation, config.run.validation_windows, rank=engine.rank, world_size=engine.world_size
        )
        if engine.device.type == "cpu":
            keep_freed_memory()  # not before, since memory of tokenization is not needed again
        model_type = components.model_type
        progress = Trainer(model.train(), tokenizer, components.source, rows, config, engine, stop, model_type).run()
        if engine.main:
            command = command_line({name: v for name, v in config.changed().items() if name not in _RESUME_OPTIONS})
            processor = (
                f"{engine.world_size} × {describe(engine.device)}" if engine.world_size > 1 else describe(engine.device)
            )
            price, before = config.run.price_per_hour, components.trained_before
            facts = TrainingFacts(command, progress.step, progress.tokens, progress.seconds, processor, price, before)
            facts.write(config.run.output)
            _write_card(config, tokenizer, components.validation)
            logger.info("the best model, of step %s, is in %s", f"{progress.best_step:,}", config.run.output)
            if config.run.push_to:
                push(config.run.output, config.run.push_to, config.run.push_public, hub_token)
        return progress
    finally:
        engine.close()


def _check_targets(training: Windows) -> None:
    """Warn about windows without targets, and about completions cut off from their prompt.

    Raises:
        ConfigError: if no window has targets.
    """
    found = coverage(training)
    if found.empty == found.windows:
        raise ConfigError(
            "there is nothing to learn in the training text: it contains only prompts. Give a text with more "
            "completions, or --validation-data, so that none of it has to be held out."
        )
    for warning in found.warnings(training.length):
        logger.warning("%s", warning)


def _preflight(components: RunComponents, config: TrainConfig, engine: Engine) -> None:
    """Check the run in its first process, while the others wait.

    Raises:
        PreflightError: in all processes, if a check failed, unless --preflight is warn.
        ConfigError: if an option is invalid.
    """
    error: TransformerError | None = None
    if engine.main:
        try:
            report = preflight(components, config, engine)
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
    """Write the model card, with an evaluation on the first documents of the validation text."""
    tokens = validation.stream.tokens[validation.first : validation.stop][:_SCORED_TOKENS]
    ends = np.flatnonzero(tokens == tokenizer.end_of_text_id)
    texts = list(filter(None, (tokenizer.decode(part.tolist()) for part in np.split(tokens, ends))))
    name = Path(config.text.data).name
    measure_and_write_card(config.run.output, {f"held-out text of {name}": lambda: texts}, data=f"Trained on {name}.")
