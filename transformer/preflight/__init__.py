"""The checks before a training: of its text, its batches, its model and its steps, on the run's own components."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch

from transformer.errors import ConfigError
from transformer.preflight import (
    alignment,
    forecast,
    forward,
    learning,
    magnitudes,
    markers,
    overlap,
    run_behaviour,
    steps,
    texts,
    trivial_targets,
    visibility,
    windows,
)
from transformer.preflight.check import Check, Report, ShownRow, Verdict
from transformer.preflight.subject import Subject, random_states_restored
from transformer.training.distributed import Engine
from transformer.training.run_components import RunComponents
from transformer.training.train_config import TrainConfig

__all__ = ["CHECK_NAMES", "Check", "Report", "ShownRow", "preflight"]

logger = logging.getLogger("transformer")
_Checks = Mapping[str, Callable[[Subject], Check]]
# Those that need nothing but the text and the batches.
_IDS: _Checks = {"token ids": alignment.ids}
_TEXT: _Checks = {
    "something to learn": windows.to_learn,
    "targets follow inputs": lambda subject: alignment.shifted(subject.rows),
    "rows in the text": lambda subject: alignment.in_text(subject, subject.rows),
    "validation targets": lambda subject: alignment.shifted(subject.validation_rows),
    "validation in its text": lambda subject: alignment.in_text(subject, subject.validation_rows),
    "order of the batches": windows.order,
    "shuffling": windows.shuffled,
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
    "completions": texts.completions,
}
_MEMORY: _Checks = {"memory": forecast.memory}
# Those of the model and its steps, in groups: after a mistake the later ones would find it too, under another name.
_MODEL: tuple[_Checks, ...] = (
    {"causality": visibility.causality, "across documents": visibility.documents_apart, **forward.PARTS},
    {"padding unseen": visibility.padding_unseen},
    {"updates": steps.updated},
    {
        "accumulated gradients": steps.accumulation,
        "gradients between steps": steps.zeroed,
        "clipping": steps.clipping,
        "tied weights": run_behaviour.tied,
        "dropout": run_behaviour.dropout,
        "validation": run_behaviour.evaluation,
        "resuming": run_behaviour.resumed,
    },
    {"cached decoding": visibility.cached, "compiled step": steps.compiled},
)
_WEIGHTS: _Checks = {
    "loss at the beginning": magnitudes.initial_loss,
    "positions : tokens": magnitudes.positions,
    "share of the residual": magnitudes.residual,
    "overfit one batch": learning.one_batch,
    "learning rate": learning.rate,
    "gradients": learning.gradients,
}
_PLANS: _Checks = {"passes over the text": forecast.passes, "forecast": forecast.forecast}
_GROUPS = (_IDS, _TEXT, _MEMORY, *_MODEL, _WEIGHTS, _PLANS)
CHECK_NAMES = tuple(name for group in _GROUPS for name in group)


def preflight(components: RunComponents, config: TrainConfig, engine: Engine, with_model: bool = True) -> Report:
    """Check a run before its first step. Its weights, position in the text and random states are left as they are.

    A check of the model that raises an error has failed, since the run would raise it too. One of the text that does is
    a warning.

    Args:
        with_model: False: check the text and the batches alone.

    Raises:
        ConfigError: if an option of the run cannot work.
    """
    begin = time.perf_counter()
    shown: tuple[ShownRow, ...] = ()
    with random_states_restored():
        try:
            subject = Subject.of(components, config, engine)
            found = [*_run(_IDS, subject)]
        except ConfigError:
            raise
        except Exception as error:
            found = [_error("batches", error)]
        if found[0].verdict == "pass":  # or nothing else could be computed
            found += _run(_TEXT, subject, "warn")
            found += _check_model(subject) if with_model else ()
            found += _run(_PLANS, subject)
            shown = alignment.shown(subject)
    if engine.device.type == "cuda":
        torch.cuda.empty_cache()  # of the copies
    return Report(tuple(found), shown, time.perf_counter() - begin)


def _check_model(subject: Subject) -> Iterator[Check]:
    (memory,) = _run(_MEMORY, subject)
    yield memory
    # A step that does not fit would end the process; without targets a model cannot be tried.
    if memory.verdict == "fail" or not subject.fullest.n_targets:
        return
    for group in _MODEL:
        found = tuple(_run(group, subject))
        yield from found
        if any(check.verdict == "fail" for check in found):
            break
    yield from _run(_WEIGHTS, subject)


def _run(checks: _Checks, subject: Subject, on_error: Verdict = "fail") -> Iterator[Check]:
    """The results of these checks. on_error: the verdict on one that raises an error; after "fail" the rest is left."""
    for name, check in checks.items():
        begin = time.process_time()
        try:
            yield replace(check(subject), name=name)
        except ConfigError:
            raise
        except Exception as error:
            yield _error(name, error, on_error)
            if on_error == "fail":
                return
        logger.debug("%s took %.2f s of processor time", name, time.process_time() - begin)


def _error(name: str, error: Exception, verdict: Verdict = "fail") -> Check:
    logger.debug("a check raised an error", exc_info=error)
    also = ", and the run would meet the same error" if verdict == "fail" else ""
    cause = f"This could not be checked{also}: {type(error).__name__}: {error}"[:260]
    return Check("an error", "a result", verdict, cause, name)
