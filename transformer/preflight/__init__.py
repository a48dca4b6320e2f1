"""The checks that run before money is spent, on the real text, batches and model of a run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch

from transformer.data.batches import IGNORE_INDEX
from transformer.errors import ConfigError
from transformer.preflight import (
    alignment,
    compiled_step,
    completions,
    forecast,
    forward,
    free_points,
    learning,
    magnitudes,
    overlap,
    steps,
    texts,
    visibility,
)
from transformer.preflight.check import Check, Report, ShownRow, Verdict
from transformer.preflight.subject import Subject, undisturbed
from transformer.training.distributed import Engine
from transformer.training.run_components import RunComponents
from transformer.training.train_config import TrainConfig

__all__ = ["Check", "Report", "ShownRow", "preflight"]

logger = logging.getLogger("transformer")
_Checking = Callable[[Subject], Check]
# What needs nothing but the text and the batches.
_TEXT: tuple[_Checking, ...] = (
    alignment.to_learn,
    alignment.shifted,
    alignment.in_text,
    alignment.validation_shifted,
    alignment.validation_in_text,
    alignment.same_again,
    alignment.shuffled,
    free_points.padding_counted,
    free_points.special,
    free_points.repeated,
    free_points.constant_columns,
    texts.round_trip,
    texts.encoding,
    texts.markers,
    texts.unknown,
    texts.bytes_per_token,
    overlap.overlap,
    completions.completions,
)
# Who sees whom; what the steps of a small model do; how large the weights are; what is learned from targets.
_VISIBLE: tuple[_Checking, ...] = (
    visibility.causality,
    visibility.documents_apart,
)
_STEPS: tuple[_Checking, ...] = (steps.tied, steps.dropout, steps.evaluation, steps.resumed)
_WEIGHTS: tuple[_Checking, ...] = (magnitudes.initial_loss, magnitudes.positions, magnitudes.residual)
_LEARNING: tuple[_Checking, ...] = (learning.one_batch, learning.rate)


def preflight(parts: RunComponents, config: TrainConfig, engine: Engine) -> Report:
    """Check a run before its first step, and leave it as it is: weights, position in the text, random states.

    A check of the model that cannot be made has failed: whatever raised the error would stop the run too. One of the
    text is a warning.

    Raises:
        ConfigError: if an option of the run cannot work.
    """
    begin = time.perf_counter()
    with undisturbed():
        try:
            subject = Subject.of(parts, config, engine)
            ids = alignment.ids(subject)
        except ConfigError:
            raise
        except Exception as error:
            return Report((_broken("batches", error),), (), time.perf_counter() - begin)
        checks = [ids]
        if ids.verdict == "pass":  # or nothing else could be computed
            checks += _checks(subject)
        shown = () if ids.verdict == "fail" else alignment.shown(subject)
    if engine.device.type == "cuda":
        torch.cuda.empty_cache()  # the copies are not needed any more
    return Report(tuple(checks), shown, time.perf_counter() - begin)


def text_checks(subject: Subject) -> Iterator[Check]:
    """The checks of text and batches, which need no model."""
    for check in _TEXT:
        yield _made(check, subject, "warn")


def _checks(subject: Subject) -> Iterator[Check]:
    yield from text_checks(subject)
    memory = _made(forecast.memory, subject)
    yield memory
    if memory.verdict == "fail":  # a step would take the whole process with it
        yield from _plans(subject, None)
        return
    learnable = alignment.with_targets(subject)
    if learnable is None:  # as said by then: there is nothing that a model could be tried with
        yield from _plans(subject, None)
        return
    yield from model_checks(learnable)
    try:
        step = learning.real_step(learnable)
    except Exception as error:
        yield _broken("gradients", error)
        return
    yield learning.gradients(learnable, step)
    yield from _plans(subject, step.seconds)


def _plans(subject: Subject, step_seconds: float | None) -> Iterator[Check]:
    for name, plan in (("passes over the text", forecast.passes), ("forecast", forecast.forecast)):
        checking = partial(plan, step_seconds=step_seconds)
        checking.__name__ = name  # type: ignore[attr-defined]
        yield _made(checking, subject)


def model_checks(subject: Subject) -> Iterator[Check]:
    """The checks of the model and of its steps, but for those of one whole step.

    After a mistake that others would see too, and give another name, those are left out.
    """
    sound = True
    for found in (*(_made(check, subject) for check in _VISIBLE), *_forward(subject)):
        sound &= found.verdict != "fail"
        yield found
    if sound:
        found = _made(visibility.padding_unseen, subject)
        sound = found.verdict != "fail"
        yield found
    if sound:
        for found in (*_stepping(subject), *(_made(check, subject) for check in _STEPS)):
            sound &= found.verdict != "fail"
            yield found
    if sound:
        yield _made(visibility.cached, subject)
        if subject.config.run.compile:
            yield _made(compiled_step.compiled, subject)
    for check in _WEIGHTS:
        yield _made(check, subject)
    if _has_targets(subject):
        for check in _LEARNING:
            yield _made(check, subject)


def _has_targets(subject: Subject) -> bool:
    return bool((subject.fullest.targets != IGNORE_INDEX).any())


def _forward(subject: Subject) -> Iterator[Check]:
    """Each part of the network beside its formula."""
    try:
        findings = forward.findings(subject)
    except Exception as error:
        yield _broken("forward pass", error)
        return
    for check in forward.PARTS:
        yield check(findings)


def _stepping(subject: Subject) -> Iterator[Check]:
    """What some steps of a small model do."""
    try:
        made = steps.steps(subject)
    except steps.NoUpdateError:
        yield steps.not_updated()
        return
    except Exception as error:
        yield _broken("steps", error)
        return
    for check in steps.OF_STEPS:
        yield check(made)


def _made(check: _Checking, subject: Subject, verdict: Verdict = "fail") -> Check:
    name, begin = getattr(check, "__name__", "forecast"), time.process_time()
    try:
        return check(subject)
    except ConfigError:
        raise
    except Exception as error:
        return _broken(name, error, verdict)
    finally:
        logger.debug("%s took %.2f s of processor time", name, time.process_time() - begin)


def _broken(name: str, error: Exception, verdict: Verdict = "fail") -> Check:
    logger.debug("a check could not be made", exc_info=error)
    what = f"{type(error).__name__}: {error}"[:200]
    cause = (
        f"This could not be checked: {what}"
        if verdict == "warn"
        else (f"This could not be checked, and the run would meet the same error: {what}")
    )
    return Check(name.replace("_", " "), "an error", "a result", verdict, cause)
