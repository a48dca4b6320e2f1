"""The parts of one forward pass beside their formulas. Where they differ, known mistakes are tried, to name the cause.

Dimensions: B batch · T window · D d_model
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
from transformer.preflight.measure import Recording, max_difference
from transformer.preflight.subject import Subject

_CLOSE = {True: 0.2, False: 2e-3}  # of the size of the expected numbers, by `coarse`
_CLOSE_LOSS = {True: 0.01, False: 1e-4}  # of a loss

Mistakes = Sequence[tuple[str, Callable[[], Tensor]]]


class Wrong(Exception):
    """A part that differs from its formula, with the cause. part: where it belongs, if not to the part compared."""

    def __init__(self, cause: str, part: str = "") -> None:
        super().__init__(cause)
        self.part = part


class ForwardPass:
    """What was recorded of one forward pass, in fp64. Each method compares a part of it with its formula.

    Each returns the largest difference, by the size of the expected numbers.

    Raises (each method):
        Wrong: if the part differs. NotCalledError: if a module of it was not called.
    """

    def __init__(self, subject: Subject, model: Transformer, batch: Batch, values: Recording, nats: float) -> None:
        self.model, self.config, self.batch, self.nats = model, model.config, batch, nats
        self.values = Recording({name: (x.cpu().double(), y.cpu().double()) for name, (x, y) in values.items()})
        self.close, self.close_loss = _CLOSE[subject.coarse], _CLOSE_LOSS[subject.coarse]
        tokens, place = batch.inputs, torch.arange(batch.inputs.shape[1])
        self.positions = place.expand_as(tokens)
        self.mask = (place[:, None] >= place).expand(len(tokens), -1, -1)  # (B, T, T)
        if subject.config.text.separate_documents:
            begin = torch.stack([(row[:, None] == row).int().argmax(dim=1) for row in batch.segment_ids])
            self.positions = place - begin
            self.mask = self.mask & (batch.segment_ids[:, :, None] == batch.segment_ids[:, None, :])

    def embeddings(self) -> float:
        rows = self.model.token_embedding.weight.detach().cpu().double()[self.batch.inputs]
        factor = self.config.d_model**0.5 if self.config.scale_embeddings else 1.0
        found = self.values["dropout" if self.model.position_embedding is None else "position_embedding"][0]
        ratio = float((found * rows).sum() / rows.square().sum())
        otherwise = (
            f"the input of the layers is not the embeddings of the tokens times {factor:.3g}, but {ratio:.3g} times "
            "them: look at scale_embeddings and at the token embedding"
        )
        return self._compare(found, rows * factor, otherwise)

    def positions_added(self) -> float:
        compute = partial(formulas.added_positions, self.model, self.config)
        expected, first = compute(self.positions), compute(torch.zeros_like(self.positions))
        if expected is None or first is None:
            return self._positions_rotated()
        before, after = self.values["position_embedding"]
        constant = "every token has the position of the first: positions are constant; look at _positions"
        otherwise = "the vectors added for positions are not those of the formula: look at the position embedding"
        distance = self._compare(after - before, expected, otherwise, [(constant, lambda: first)])
        return max(distance, self._compare(self.values["dropout"][0], after, otherwise))

    def _positions_rotated(self) -> float:
        bases = {"rotary": self.config.rope_theta, "local_rotary": self.config.rope_local_theta}
        return max(self._rotated_by(name, theta) for name, theta in bases.items() if theta is not None)

    def _rotated_by(self, name: str, theta: float) -> float:
        _, rotation = self.values[name]
        shape = (len(self.positions), 1, self.positions.shape[1], self.config.key_dim)
        before = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)  # (B, 1, T, E)
        after = apply_rope(before, (rotation[0], rotation[1]))
        rotate = partial(formulas.rotate, before, self.positions, theta)
        mistakes: Mistakes = [
            ("rotary positions rotate nothing: every token has the position of the first", lambda: before),
            ("rotary positions rotate in the wrong direction: the sign of the sine is wrong", partial(rotate, sign=-1)),
        ]
        otherwise = (
            "rotary positions do not rotate pairs of numbers by position times theta^(-2i/E): look at the signs, the "
            "order of the pairs, and the positions"
        )
        return self._compare(after, rotate(), otherwise, mistakes)

    def attention(self, layer: int) -> float:
        x, found = self.values[f"layers.{layer}.attention"]
        compute = partial(formulas.attention, x, self._layer(layer).attention, self.config, self.positions)
        own_mask, theta = self._mask_of(layer), self._theta_of(layer)
        distance = max_difference(found, compute(own_mask, theta))
        if distance <= self.close:
            return distance
        for part, cause, mask, options in self._attention_mistakes(layer, own_mask):
            if max_difference(found, compute(mask, **{"theta": theta, **options})) <= self.close:
                raise Wrong(f"layer {layer}, {cause}", part)
        raise Wrong(
            f"layer {layer}, attention does not give softmax(Q K^T / sqrt(d_k)) V of its input: look at the kernel, "
            "its mask, and the order of the heads"
        )

    def _mask_of(self, layer: int) -> Tensor:
        """(B, T, T) with the sliding window, where this layer has one."""
        window, place = self.config.window_of(layer), torch.arange(self.mask.shape[-1])
        return self.mask if window is None else self.mask & (place[:, None] - place < window)

    def _theta_of(self, layer: int) -> float | None:
        """The base of this layer's rotary frequencies; None: it does not rotate."""
        config = self.config
        local = config.rope_local_theta if config.is_local(layer) else None
        return (local or config.rope_theta) if config.rotates(layer) else None

    def _attention_mistakes(self, layer: int, mask: Tensor) -> Iterator[tuple[str, str, Tensor, dict[str, Any]]]:
        """Known mistakes: the part that they belong to, the cause, the mask and the options of the formula."""
        config = self.config
        everything = torch.ones_like(mask)
        causal = everything.tril()
        yield "attention", "the scores are not divided by sqrt(d_k)", mask, dict(scaled=False)
        if config.positions == "rotary" and not config.rotates(layer):
            cause = "queries and keys are rotated by their positions, though rope_layers leaves this layer out"
            yield "positions", cause, mask, dict(theta=config.rope_theta)
        if config.rotates(layer):
            yield "positions", "queries and keys are not rotated by their positions", mask, dict(rotated="nothing")
            for one, other in (("queries", "keys"), ("keys", "queries")):
                cause = f"rotary positions rotate the {one} alone, not the {other}"
                yield "positions", cause, mask, dict(rotated=one)
        if config.qk_norm:
            for normalised in ("nothing", "queries", "keys"):
                cause = f"the norm of queries and keys (qk_norm) is applied to {normalised} alone"
                yield "attention", cause, mask, dict(normalised=normalised)
        if config.rotates(layer) and config.rope_local_theta is not None:
            for theta, kind in ((config.rope_theta, "without"), (config.rope_local_theta, "with")):
                cause = f"queries and keys are rotated as in layers {kind} a sliding window"
                yield "positions", cause, mask, dict(theta=theta)
        for wrong_mask, cause in (
            (self.mask, "the sliding window is not applied"),
            (everything, "every token attends to the whole window: there is no causal mask"),
            (everything.tril(1), "every token attends to the one after it: the causal mask is shifted by one"),
            (everything.tril(-1), "no token attends to itself: the causal mask is shifted by one"),
            (causal, "the mask that keeps documents or padding apart is not applied"),
        ):
            yield "attention", cause, wrong_mask, {}
        if config.n_heads != config.kv_heads:
            cause = "queries are given the key-value heads in the wrong order (h % K instead of h // (H / K))"
            yield "attention", cause, mask, dict(strided_groups=True)
        yield "attention", "the results of the heads are joined in the wrong order", mask, dict(mixed_heads=True)
        yield "attention", "the softmax is taken over the queries instead of the keys", mask, dict(softmax_dim=-2)

    def feed_forward(self, layer: int) -> float:
        x, found = self.values[f"layers.{layer}.feed_forward"]
        compute = partial(formulas.feed_forward, x, self._layer(layer).feed_forward, self.config)
        gated = (*GATED, "the gate without its activation") if self.config.activation in GATED else ()
        mistakes: Mistakes = [
            (f"the feed-forward network uses {other} instead of {self.config.activation}", partial(compute, other))
            for other in ("no activation", "relu", "gelu", "the exact GELU", "silu", *gated)
        ]
        otherwise = f"layer {layer}, the feed-forward network does not give what its matrices give: look at them"
        return self._compare(found, compute(), otherwise, mistakes)

    def residual(self, layer: int) -> float:
        module, name = self._layer(layer), f"layers.{layer}"
        x, out = self.values[name]
        before = self.values["dropout" if layer == 0 else f"layers.{layer - 1}"][1]
        otherwise = f"the input of layer {layer} is not the output of the part before it: look at the model's loop"
        worst = self._compare(x, before, otherwise)
        (a_in, a_out), (f_in, f_out) = self.values[f"{name}.attention"], self.values[f"{name}.feed_forward"]
        sums = formulas.layer_sums(module, self.config, x, a_out, f_out)
        for what, found, expected, alone, of in (
            ("attention", a_in, sums.attention, None, ""),
            ("feed-forward", f_in, sums.feed_forward, sums.feed_forward_alone, "attention"),
            ("the next layer", out, sums.out, sums.out_alone, "feed-forward"),
        ):
            missing = (
                f"layer {layer}, the residual connection around {of} is missing: its output replaces its input instead "
                "of being added to it"
            )
            otherwise = (
                f"layer {layer}, the input of {what} does not follow from {sums.formula}: a norm is left out or in the "
                "wrong place, or a sub-layer is added twice or not at all"
            )
            mistakes: Mistakes = [] if alone is None else [(missing, partial(torch.clone, alone))]
            worst = max(worst, self._compare(found, expected, otherwise, mistakes))
        return worst

    def final_norm(self) -> float:
        stream = self.values[f"layers.{self.config.n_layers - 1}"][1]
        if self.config.norm_placement == "post":
            return 0.0
        if not isinstance(getattr(self.model.final_norm, "weight", None), Tensor):
            raise Wrong("the final norm does nothing: pre-norm layers need one before the vocabulary projection")
        expected = formulas.norm(stream, self.model.final_norm, self.config)
        otherwise = "the final norm does not normalise the output of the last layer: look at final_norm"
        return self._compare(self.values["final_norm"][1], expected, otherwise)

    def loss(self) -> float:
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
        raise Wrong(
            f"the loss counts other targets than those of the batch, or another model output: {ratio}; look at "
            "LanguageModelLoss"
        )

    def _compare(self, found: Tensor, expected: Tensor, otherwise: str, mistakes: Mistakes = ()) -> float:
        """The largest difference; mistakes: causes, each with what it would give. otherwise: the cause if none does."""
        distance = max_difference(found, expected)
        if distance <= self.close:
            return distance
        raise Wrong(next((cause for cause, of in mistakes if max_difference(found, of()) <= self.close), otherwise))

    def _layer(self, number: int) -> DecoderLayer:
        return cast(DecoderLayer, self.model.layers[number])
