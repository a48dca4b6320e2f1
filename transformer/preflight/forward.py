"""Does the network compute what its configuration says? Each part is compared with its formula, one by one.

A small model of the run's architecture goes through the loss, the precision and the mask of the run, once as a step
does (in training mode, with gradients) and once as validation does (in evaluation mode, without). Each part is given
its own recorded input, so that the part that is wrong is named, not those after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from transformer.data.batches import IGNORE_INDEX, Batch
from transformer.model import Transformer
from transformer.preflight import formulas, probe
from transformer.preflight.check import Expected, Finding
from transformer.preflight.forward_parts import ForwardPass, Wrong
from transformer.preflight.measure import NotCalledError, recorded
from transformer.preflight.subject import Subject

_VOCABULARY = 64
_EXPECTED = {
    "embeddings": "the rows of the tokens, times sqrt(d_model) if it is configured",
    "positions": "each token at its own place, by the formula",
    "attention": "softmax(Q K^T / sqrt(d_k)) V of each head",
    "feed-forward": "two matrices and the configured activation",
    "residuals and norms": "each sub-layer is normalised and added to its input",
    "what the loss counts": "-log p of each target, summed, IGNORE_INDEX left out",
}


@dataclass(frozen=True)
class Findings:
    """wrong: cause by the name of a part. apart: the largest distance of each part that is right, by its size.

    unknown: a choice of the architecture without a formula, for which nothing is compared.
    """

    wrong: dict[str, str]
    apart: dict[str, float]
    unknown: str = ""


def findings(subject: Subject) -> Findings:
    """What is wrong in the forward pass of the run, and in that of its validation."""
    if choice := formulas.unknown_choice(subject.model.config):
        return Findings({}, {}, choice)
    model = probe.small_model(subject.model, _VOCABULARY, probe.WINDOW).to(subject.engine.device)
    batch = _batch(model)
    stepper = subject.stepper(model, batch)
    found = Findings({}, {})
    for training in (True, False):
        modules = [(name, module) for name, module in model.train(training).named_modules() if name]
        with torch.set_grad_enabled(training), recorded(modules) as values:
            nats = float(stepper.nats(batch, stepper.module).detach())
        mode = "the training step" if training else "validation"
        _compare(ForwardPass(subject, model, batch, values, nats), mode, found)
    return found


def _batch(model: Transformer) -> Batch:
    """Two rows, with two documents in each, two targets of three learned."""
    length = model.config.context_length
    document = (torch.arange(length) >= length // 3).long().expand(2, -1).contiguous()
    batch = probe.batch_of(model.config, 2, length, document=document)
    batch.targets[:, ::3] = IGNORE_INDEX
    return batch


def _compare(run: ForwardPass, mode: str, found: Findings) -> None:
    """Add what is found of every part of a forward pass."""
    layers = range(run.config.n_layers)
    parts: list[tuple[str, Callable[[], float]]] = [
        ("embeddings", run.embeddings),
        ("positions", run.positions_added),
        *(("attention", partial(run.attention, layer)) for layer in layers),
        *(("feed-forward", partial(run.feed_forward, layer)) for layer in layers),
        *(("residuals and norms", partial(run.residual, layer)) for layer in layers),
        ("residuals and norms", run.final_norm),
        ("what the loss counts", run.loss),
    ]
    for name, compare in parts:
        try:
            found.apart[name] = max(found.apart.get(name, 0.0), compare())
        except Wrong as wrong:
            found.wrong.setdefault(wrong.part or name, f"In {mode}, {wrong}.")
        except NotCalledError as missing:
            if name != "what the loss counts":  # the end of such a model is named already
                cause = f"The module {missing} takes no part in {mode}: the model does not call it."
                found.wrong.setdefault(name, cause)


def _check(name: str, findings: Findings) -> Finding:
    expected = Expected(_EXPECTED[name])
    if findings.unknown:
        return expected.passed(f"not compared: {findings.unknown} is not known here")
    if cause := findings.wrong.get(name):
        return expected.failed("something else", cause)
    return expected.passed(f"{findings.apart.get(name, 0.0):.1e} from the formula")


PARTS: dict[str, Callable[[Findings], Finding]] = {name: partial(_check, name) for name in _EXPECTED}
