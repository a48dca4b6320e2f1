"""Compares each part of the network with its formula.

A small model computes the loss of a batch as a step of the run does, and as validation does. The formula of each part
is applied to the recorded input of that part, so that a mistake in one part does not show in those after it. Where the
results differ, known mistakes are tried, to name the cause.

Dimensions: B batch · T window · E head_dim
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from transformer.data.batches import IGNORE_INDEX, Batch
from transformer.model import Transformer
from transformer.model.config import GATED
from transformer.model.layers import DecoderLayer
from transformer.model.positions import apply_rope
from transformer.preflight import formulas
from transformer.preflight.check import Check, Expected
from transformer.preflight.measure import NotCalledError, Recording, max_difference, recorded
from transformer.preflight.small_run import WINDOW, random_batch, small_model
from transformer.preflight.subject import Subject

_VOCABULARY = 64
_CLOSE = {True: 0.2, False: 2e-3}  # of the size of the expected numbers, by `coarse`
_CLOSE_LOSS = {True: 0.01, False: 1e-4}  # of a loss
_EXPECTED = {
    "embeddings": "the rows of the tokens, times sqrt(d_model) if it is configured",
    "positions": "each token at its own place, by the formula",
    "attention": "softmax(Q K^T / sqrt(d_k)) V of each head",
    "feed-forward": "two matrices and the configured activation",
    "residuals and norms": "each sub-layer is normalised and added to its input",
    "what the loss counts": "-log p of each target, summed, IGNORE_INDEX left out",
}

# A known mistake: the name of its part ("" for the part that is compared), the cause, and its result.
Mistake = tuple[str, str, Callable[[], Tensor]]


class Wrong(Exception):
    """A part differs from its formula; the message is the cause. part: the one with the mistake; "": that compared."""

    def __init__(self, cause: str, part: str = "") -> None:
        super().__init__(cause)
        self.part = part


def _check(name: str, subject: Subject) -> Check:
    return subject.once(_compare_parts)[name]


PARTS: dict[str, Callable[[Subject], Check]] = {name: partial(_check, name) for name in _EXPECTED}


def _compare_parts(subject: Subject) -> dict[str, Check]:
    """Compare the parts of a forward pass of the run, and of its validation."""
    expected = {name: Expected(text) for name, text in _EXPECTED.items()}
    if option := formulas.unknown_choice(subject.model.config):
        return {name: expected[name].passed(f"not compared: {option} is not known here") for name in expected}
    causes: dict[str, str] = {}
    differences = dict.fromkeys(expected, 0.0)
    model = small_model(subject, _VOCABULARY, WINDOW)
    in_fp64 = copy.deepcopy(model).cpu().double().requires_grad_(False)
    batch = random_batch(model, rows=2)
    batch.targets[:, ::3] = IGNORE_INDEX
    batch.segment_ids[:, batch.inputs.shape[1] // 3 :] = 1
    train_step = subject.make_train_step(model, batch)
    for mode, training in (("the training step", True), ("validation", False)):
        modules = [(name, module) for name, module in model.train(training).named_modules() if name]
        with torch.set_grad_enabled(training), recorded(modules) as values:
            nats = float(train_step.summed_loss(batch).detach())
        for name, compare in ForwardPass(subject, in_fp64, batch, values, nats).parts():
            try:
                differences[name] = max(differences[name], compare())
            except Wrong as wrong:
                causes.setdefault(wrong.part or name, f"In {mode}, {wrong}.")
            except NotCalledError as missing:
                if name != "what the loss counts":  # the end of such a model is named already
                    cause = f"The module {missing} takes no part in {mode}: the model does not call it."
                    causes.setdefault(name, cause)
    return {
        name: expected[name].failed("something else", causes[name])
        if name in causes
        else expected[name].passed(f"{differences[name]:.1e} from the formula")
        for name in expected
    }


class ForwardPass:
    """The recorded inputs and outputs of one forward pass, compared with the formulas; all in fp64 on the CPU.

    nats: the summed loss of the batch.
    """

    def __init__(self, subject: Subject, model: Transformer, batch: Batch, values: Recording, nats: float) -> None:
        self.model, self.config, self.batch, self.nats = model, model.config, batch, nats
        self.values = Recording({name: (x.cpu().double(), y.cpu().double()) for name, (x, y) in values.items()})
        self.close, self.close_loss = _CLOSE[subject.coarse], _CLOSE_LOSS[subject.coarse]
        place = torch.arange(batch.inputs.shape[1])
        self.positions = place.expand_as(batch.inputs)
        self.mask = (place[:, None] >= place).expand(len(batch.inputs), -1, -1)  # (B, T, T)
        if subject.config.text.separate_documents:
            same_document = batch.segment_ids[:, :, None] == batch.segment_ids[:, None, :]
            self.positions = place - same_document.int().argmax(dim=2)
            self.mask = self.mask & same_document

    def parts(self) -> Iterator[tuple[str, Callable[[], float]]]:
        """Names of parts and their comparisons: each returns the largest difference, by the size of what is expected.

        Raises (each comparison):
            Wrong: if the part differs. NotCalledError: if a module of it was not called.
        """
        layers = range(self.config.n_layers)
        yield "embeddings", self._embeddings
        yield "positions", self._rotations if self.config.positions == "rotary" else self._added_positions
        yield from (("attention", partial(self._attention, layer)) for layer in layers)
        yield from (("feed-forward", partial(self._feed_forward, layer)) for layer in layers)
        yield from (("residuals and norms", partial(self._residual, layer)) for layer in layers)
        yield "residuals and norms", self._final_norm
        yield "what the loss counts", self._loss

    def _embeddings(self) -> float:
        rows = self.model.token_embedding.weight[self.batch.inputs]
        factor = self.config.d_model**0.5 if self.config.scale_embeddings else 1.0
        found = self.values["dropout" if self.model.position_embedding is None else "position_embedding"][0]
        ratio = float((found * rows).sum() / rows.square().sum())
        otherwise = f"the input of the layers is {ratio:.3g} times the embeddings, not {factor:.3g} times"
        return self._compare(found, rows * factor, otherwise)

    def _added_positions(self) -> float:
        table = getattr(self.model.position_embedding, "weight", None)  # learned, or None
        before, after = self.values["position_embedding"]

        def compute(positions: Tensor) -> Tensor:
            return formulas.sinusoids(positions, self.config.d_model) if table is None else table[positions]

        constant = "every token has the position of the first: positions are constant; look at _positions"
        otherwise = "the vectors added for positions are not those of the formula: look at the position embedding"
        mistakes = [("", constant, partial(compute, torch.zeros_like(self.positions)))]
        distance = self._compare(after - before, compute(self.positions), otherwise, mistakes)
        return max(distance, self._compare(self.values["dropout"][0], after, otherwise))

    def _rotations(self) -> float:
        bases = {"rotary": self.config.rope_theta, "local_rotary": self.config.rope_local_theta}
        return max(self._rotation(name, theta) for name, theta in bases.items() if theta is not None)

    def _rotation(self, name: str, theta: float) -> float:
        _, rotation = self.values[name]
        shape = (len(self.positions), 1, self.positions.shape[1], self.config.key_dim)
        before = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)  # (B, 1, T, E)
        after = apply_rope(before, (rotation[0], rotation[1]))
        rotate = partial(formulas.rotate, before, self.positions, theta)
        nothing = "rotary positions rotate nothing: every token has the position of the first"
        wrong_way = "rotary positions rotate in the wrong direction: the sign of the sine is wrong"
        mistakes: list[Mistake] = [("", nothing, lambda: before), ("", wrong_way, partial(rotate, sign=-1))]
        otherwise = "rotary positions do not rotate pairs by position times theta^(-2i/E): look at signs and pairs"
        return self._compare(after, rotate(), otherwise, mistakes)

    def _attention(self, layer: int) -> float:
        x, found = self.values[f"layers.{layer}.attention"]
        window, place, config = self.config.window_of(layer), torch.arange(self.mask.shape[-1]), self.config
        mask = self.mask if window is None else self.mask & (place[:, None] - place < window)
        local = config.rope_local_theta if config.is_local(layer) else None
        theta = (local or config.rope_theta) if config.rotates(layer) else None
        right: dict[str, Any] = dict(config=config, mask=mask, theta=theta)
        compute = partial(formulas.attention, x, self._layer(layer).attention, positions=self.positions)
        mistakes = (
            (part, f"layer {layer}, {cause}", partial(compute, **{**right, **wrong}))
            for part, cause, wrong in self._attention_mistakes(layer)
        )
        otherwise = f"layer {layer}, attention does not give softmax(Q K^T / sqrt(d_k)) V: look at kernel, mask, heads"
        return self._compare(found, compute(**right), otherwise, mistakes)

    def _attention_mistakes(self, layer: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Known mistakes: the part that they belong to, the cause, and what changes in the formula's arguments."""
        config, everything = self.config, torch.ones_like(self.mask)
        unscaled = replace(config, query_pre_attn_scalar=1)
        yield "attention", "the scores are not divided by sqrt(d_k)", dict(config=unscaled)
        if config.positions == "rotary" and not config.rotates(layer):
            cause = "queries and keys are rotated by their positions, though rope_layers leaves this layer out"
            yield "positions", cause, dict(theta=config.rope_theta)
        if config.rotates(layer):
            yield "positions", "queries and keys are not rotated by their positions", dict(theta=None)
            for one, other in (("queries", "keys"), ("keys", "queries")):
                yield "positions", f"rotary positions rotate the {one} alone, not the {other}", dict(rotated=one)
        if config.qk_norm:
            for normalised in ("nothing", "queries", "keys"):
                cause = f"the norm of queries and keys (qk_norm) is applied to {normalised} alone"
                yield "attention", cause, dict(normalised=normalised)
        if config.rotates(layer) and config.rope_local_theta is not None:
            for theta, kind in ((config.rope_theta, "without"), (config.rope_local_theta, "with")):
                cause = f"queries and keys are rotated as in layers {kind} a sliding window"
                yield "positions", cause, dict(theta=theta)
        for cause, mask in (
            ("the sliding window is not applied", self.mask),
            ("every token attends to the whole window: there is no causal mask", everything),
            ("every token attends to the one after it: the causal mask is shifted by one", everything.tril(1)),
            ("no token attends to itself: the causal mask is shifted by one", everything.tril(-1)),
            ("the mask that keeps documents or padding apart is not applied", everything.tril()),
        ):
            yield "attention", cause, dict(mask=mask)
        if config.n_heads != config.kv_heads:
            cause = "queries are given the key-value heads in the wrong order (h % K instead of h // (H / K))"
            yield "attention", cause, dict(strided_groups=True)
        yield "attention", "the results of the heads are joined in the wrong order", dict(mixed_heads=True)
        yield "attention", "the softmax is taken over the queries instead of the keys", dict(softmax_dim=-2)

    def _feed_forward(self, layer: int) -> float:
        x, found = self.values[f"layers.{layer}.feed_forward"]
        compute = partial(formulas.feed_forward, x, self._layer(layer).feed_forward, self.config)
        right = self.config.activation
        mistakes: list[Mistake] = [
            ("", f"the feed-forward network uses {other} instead of {right}", partial(compute, other))
            for other in formulas.ACTIVATIONS
        ]
        if right in GATED:
            mistakes.append(("", "the gate of the feed-forward network is left out", partial(compute, gated=False)))
        otherwise = f"layer {layer}, the feed-forward network does not give what its matrices give: look at them"
        return self._compare(found, compute(), otherwise, mistakes)

    def _residual(self, layer: int) -> float:
        module, (x, out) = self._layer(layer), self.values[f"layers.{layer}"]
        before = self.values["dropout" if layer == 0 else f"layers.{layer - 1}"][1]
        otherwise = f"the input of layer {layer} is not the output of the part before it: look at the model's loop"
        worst = self._compare(x, before, otherwise)
        (a_in, a_out), (f_in, f_out) = (self.values[f"layers.{layer}.{kind}"] for kind in ("attention", "feed_forward"))
        enters, added = (partial(f, module, self.config) for f in (formulas.sub_layer_input, formulas.sub_layer_sum))
        middle, alone = added("attention", x, a_out), added("attention", 0.0, a_out)
        ends, ends_alone = added("feed_forward", middle, f_out), added("feed_forward", 0.0, f_out)
        formula = formulas.PLACEMENTS[self.config.norm_placement]
        for what, found, expected, unconnected, of in (
            ("attention", a_in, enters("attention", x), None, ""),
            ("feed-forward", f_in, enters("feed_forward", middle), enters("feed_forward", alone), "attention"),
            ("the next layer", out, ends, ends_alone, "feed-forward"),
        ):
            missing = f"layer {layer}, the residual connection around {of} is missing: its output replaces its input"
            otherwise = f"layer {layer}, the input of {what} does not follow from {formula}: look at norms and sums"
            mistakes: list[Mistake] = [] if unconnected is None else [("", missing, partial(torch.clone, unconnected))]
            worst = max(worst, self._compare(found, expected, otherwise, mistakes))
        return worst

    def _final_norm(self) -> float:
        stream = self.values[f"layers.{self.config.n_layers - 1}"][1]
        if self.config.norm_placement == "post":
            return 0.0
        if not isinstance(getattr(self.model.final_norm, "weight", None), Tensor):
            raise Wrong("the final norm does nothing: pre-norm layers need one before the vocabulary projection")
        expected = formulas.norm(stream, self.model.final_norm, self.config)
        otherwise = "the final norm does not normalise the output of the last layer: look at final_norm"
        return self._compare(self.values["final_norm"][1], expected, otherwise)

    def _loss(self) -> float:
        hidden = self.values["final_norm"][1]
        logits = formulas.linear(hidden, self.model.head).flatten(0, 1)
        targets = self.batch.targets.flatten()
        summed = partial(F.cross_entropy, ignore_index=IGNORE_INDEX, reduction="sum")
        expected, n_targets = summed(logits, targets), int((targets != IGNORE_INDEX).sum())
        distance = float(abs(self.nats - expected) / expected)
        if distance <= self.close_loss:
            return distance
        ratio = f"{self.nats / n_targets:.3f} nats for each of {n_targets} targets, by hand {expected / n_targets:.3f}"
        for value, cause in (
            (expected / n_targets, "the mean over the targets, not their sum, so every batch has the same weight"),
            (expected / len(targets), "divided by all positions, those without a target included"),
            (summed(logits, targets.clamp(min=0)), "counted without a target too: IGNORE_INDEX is taken for a token"),
            (summed(logits[:-1], targets[1:]), "that of the token after the target: targets are shifted twice"),
            (summed(logits[1:], targets[:-1]), "that of the token before the target"),
        ):
            if abs(self.nats - float(value)) <= self.close_loss * abs(float(value)):
                raise Wrong(f"the loss is {cause} ({ratio}); look at LanguageModelLoss")
        raise Wrong(f"the loss counts other targets, or another model output: {ratio}; look at LanguageModelLoss")

    def _compare(self, found: Tensor, expected: Tensor, otherwise: str, mistakes: Iterable[Mistake] = ()) -> float:
        """The largest difference; otherwise: the cause if none of the mistakes gives what was found."""
        distance = max_difference(found, expected)
        if distance <= self.close:
            return distance
        for part, cause, compute in mistakes:
            if max_difference(found, compute()) <= self.close:
                raise Wrong(cause, part)
        raise Wrong(otherwise)

    def _layer(self, number: int) -> DecoderLayer:
        return cast(DecoderLayer, self.model.layers[number])
