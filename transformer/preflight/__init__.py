"""The checks before a training: of its text, its batches, its model and its steps, on the run's own components."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TypeVar

import torch

from transformer.errors import ConfigError
from transformer.preflight import (
    alignment,
    batch_order,
    compiled_step,
    completions,
    forecast,
    forward,
    learnable,
    learning,
    magnitudes,
    markers,
    overlap,
    run_behaviour,
    steps,
    texts,
    trivial_targets,
    visibility,
)
from transformer.preflight.check import Check, Finding, Report, ShownRow, Verdict
from transformer.preflight.subject import Subject, n_targets, random_states_restored
from transformer.training.distributed import Engine
from transformer.training.run_components import RunComponents
from transformer.training.train_config import TrainConfig

__all__ = ["CHECK_NAMES", "Check", "Report", "ShownRow", "preflight", "text_report"]

logger = logging.getLogger("transformer")
T = TypeVar("T")
_Checks = Mapping[str, Callable[[T], Finding]]
# Those that need nothing but the text and the batches.
_IDS: _Checks[Subject] = {"token ids": alignment.ids}
_TEXT: _Checks[Subject] = {
    "something to learn": learnable.to_learn,
    "targets follow inputs": alignment.shifted,
    "rows in the text": alignment.in_text,
    "validation targets": alignment.validation_shifted,
    "validation in its text": alignment.validation_in_text,
    "order of the batches": batch_order.same_again,
    "shuffling": batch_order.shuffled,
    "padding in the targets": trivial_targets.padding_counted,
    "special tokens": trivial_targets.special,
    "repeated tokens": trivial_targets.repeated,
    "the same in every row": trivial_targets.constant_columns,
    "tokens back to text": texts.round_trip,
    "encoding of the text": texts.encoding,
    "markers in the text": markers.markers,
    "unknown tokens": texts.unknown,
    "bytes per token": texts.bytes_per_token,
    "validation in training": overlap.overlap,
    "completions": completions.completions,
}
_MEMORY: _Checks[Subject] = {"memory": forecast.memory}
# Those of the model and its steps. After a mistake the later ones would find it too, under another name.
_ATTENTION: _Checks[Subject] = {"causality": visibility.causality, "across documents": visibility.documents_apart}
_PADDING: _Checks[Subject] = {"padding unseen": visibility.padding_unseen}
_STEPS: _Checks[steps.Steps] = {
    "accumulated gradients": steps.accumulation,
    "updates": steps.updated,
    "gradients between steps": steps.zeroed,
    "clipping": steps.clipping,
}
_RUN: _Checks[Subject] = {
    "tied weights": run_behaviour.tied,
    "dropout": run_behaviour.dropout,
    "validation": run_behaviour.evaluation,
    "resuming": run_behaviour.resumed,
}
_CACHE: _Checks[Subject] = {"cached decoding": visibility.cached}
_COMPILED: _Checks[Subject] = {"compiled step": compiled_step.compiled}
_WEIGHTS: _Checks[Subject] = {
    "loss at the beginning": magnitudes.initial_loss,
    "positions : tokens": magnitudes.positions,
    "share of the residual": magnitudes.residual,
}
_LEARNING: _Checks[Subject] = {"overfit one batch": learning.one_batch, "learning rate": learning.rate}
_PLANS = {"passes over the text": forecast.passes, "forecast": forecast.forecast}
_GROUPS = (_IDS, _TEXT, _MEMORY, _ATTENTION, forward.PARTS, _PADDING, _STEPS, _RUN, _CACHE, _COMPILED, _WEIGHTS)
CHECK_NAMES = (*(name for group in (*_GROUPS, _LEARNING) for name in group), "gradients", *_PLANS)


def preflight(parts: RunComponents, config: TrainConfig, engine: Engine) -> Report:
    """Check a run before its first step. Its weights, position in the text and random states are left as they are.

    A check of the model that raises an error has failed, since the run would meet the same error. One of the text that
    does is a warning.

    Raises:
        ConfigError: if an option of the run cannot work.
    """
    report = _report(parts, config, engine, _all)
    if engine.device.type == "cuda":
        torch.cuda.empty_cache()  # of the copies
    return report


def text_report(parts: RunComponents, config: TrainConfig, engine: Engine) -> Report:
    """The checks of text and batches alone, which need no model."""
    return _report(parts, config, engine, _of_text)


def _report(
    parts: RunComponents, config: TrainConfig, engine: Engine, checks: Callable[[Subject], Iterator[Check]]
) -> Report:
    begin = time.perf_counter()
    with random_states_restored():
        try:
            subject = Subject.of(parts, config, engine)
            found = [*_run(_IDS, subject)]
        except ConfigError:
            raise
        except Exception as error:
            return Report((_error("batches", error),), (), time.perf_counter() - begin)
        if found[0].verdict == "pass":  # or nothing else could be computed
            found += checks(subject)
        shown = () if found[0].verdict == "fail" else alignment.shown(subject)
    return Report(tuple(found), shown, time.perf_counter() - begin)


def _of_text(subject: Subject) -> Iterator[Check]:
    yield from _run(_TEXT, subject, "warn")
    yield from _run({"passes over the text": forecast.passes}, subject)


def _all(subject: Subject) -> Iterator[Check]:
    yield from _run(_TEXT, subject, "warn")
    (memory,) = _run(_MEMORY, subject)
    yield memory
    # A step that does not fit would end the process; without targets a model cannot be tried.
    learnable_subject = None if memory.verdict == "fail" else learnable.with_targets(subject)
    seconds = None
    if learnable_subject is not None:
        yield from _of_model(learnable_subject)
        try:
            step = learning.real_step(learnable_subject)
        except Exception as error:
            yield _error("gradients", error)
            return
        yield from _run({"gradients": partial(learning.gradients, step=step)}, learnable_subject)
        seconds = step.seconds
    yield from _run({name: partial(plan, batch_seconds=seconds) for name, plan in _PLANS.items()}, subject)


def _of_model(subject: Subject) -> Iterator[Check]:
    """The checks of the model and its steps, except those of a whole step."""
    groups = [
        lambda: (*_run(_ATTENTION, subject), *_run_shared("forward pass", forward.findings, forward.PARTS, subject)),
        lambda: _run(_PADDING, subject),
        lambda: (*_run_shared("steps", steps.steps, _STEPS, subject), *_run(_RUN, subject)),
        lambda: (*_run(_CACHE, subject), *_run(_COMPILED if subject.config.run.compile else {}, subject)),
    ]
    for group in groups:
        found = tuple(group())
        yield from found
        if any(check.verdict == "fail" for check in found):
            break
    yield from _run(_WEIGHTS, subject)
    if n_targets(subject.fullest):
        yield from _run(_LEARNING, subject)


def _run(checks: _Checks[T], subject: T, verdict: Verdict = "fail") -> Iterator[Check]:
    """The findings of these checks; `verdict` of one that raises an error."""
    for name, check in checks.items():
        begin = time.process_time()
        try:
            yield Check.of(name, check(subject))
        except ConfigError:
            raise
        except Exception as error:
            yield _error(name, error, verdict)
        logger.debug("%s took %.2f s of processor time", name, time.process_time() - begin)


def _run_shared(
    name: str, compute: Callable[[Subject], T | Check], checks: _Checks[T], subject: Subject
) -> Iterator[Check]:
    """The findings of checks that share what is computed for them; what is a check itself replaces theirs."""
    try:
        shared = compute(subject)
    except ConfigError:
        raise
    except Exception as error:
        yield _error(name, error)
        return
    if isinstance(shared, Check):
        yield shared
    else:
        yield from _run(checks, shared)


def _error(name: str, error: Exception, verdict: Verdict = "fail") -> Check:
    logger.debug("a check raised an error", exc_info=error)
    also = ", and the run would meet the same error" if verdict == "fail" else ""
    cause = f"This could not be checked{also}: {type(error).__name__}: {error}"[:260]
    return Check(name, "an error", "a result", verdict, cause)
