"""Does the network compute what its configuration says? Each part is compared with its formula, one by one.

A small model of the run's architecture goes through the loss, the precision and the mask of the run, once as a step
does (in training mode, with gradients) and once as validation does (in evaluation mode, without). Hooks keep what goes
into each part and what comes out of it, so that a part is judged by its own input: the part that is wrong is named, not
those after it.

Dimensions: B batch · T window · D d_model
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer.data.batches import IGNORE_INDEX, Batch
from transformer.model import Transformer
from transformer.model.config import GATED
from transformer.model.layers import DecoderLayer
from transformer.model.positions import apply_rope
from transformer.preflight import formulas, probe
from transformer.preflight.check import Check
from transformer.preflight.subject import Subject

_VOCABULARY = 64
_CLOSE = {True: 0.2, False: 2e-3}  # of the size of the expected numbers, by whether the run multiplies in bf16
_CLOSE_LOSS = {True: 0.01, False: 1e-4}  # of a loss
_PARTS = {
    "embeddings": "the rows of the tokens, times sqrt(d_model) if it is configured",
    "positions": "each token at its own place, by the formula",
    "attention": "softmax(Q K^T / sqrt(d_k)) V of each head",
    "feed-forward": "two matrices and the configured activation",
    "residuals and norms": "each sub-layer is normalised and added to its input",
    "what the loss counts": "-log p of each target, summed, IGNORE_INDEX left out",
}


@dataclass(frozen=True)
class Findings:
    """wrong: cause by the name of a part. apart: the largest distance of each part that is right, by its size."""

    wrong: dict[str, str]
    apart: dict[str, float]
    unknown: str = ""


class Kept(dict[str, tuple[Tensor, Tensor]]):
    """The first input and the output of modules, by name, in fp64 on the CPU."""

    def of(self, name: str) -> tuple[Tensor, Tensor]:
        """Input and output.

        Raises:
            NotCalled: if the module was not called.
        """
        if name not in self:
            raise NotCalled(name)
        return self[name]


class NotCalled(Exception):
    """A module of this name took no part in the forward pass."""


@contextmanager
def kept(model: nn.Module) -> Iterator[Kept]:
    """Within it the inputs and outputs of all modules are kept."""
    found = Kept()

    def keep(name: str, _: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, tuple) and all(isinstance(part, Tensor) for part in output):
            output = torch.stack(output)
        if isinstance(output, Tensor) and inputs and isinstance(inputs[0], Tensor):
            found[name] = (inputs[0].detach().cpu().double(), output.detach().cpu().double())

    handles = [m.register_forward_hook(partial(keep, name)) for name, m in model.named_modules() if name]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def part(name: str) -> Callable[[Findings], Check]:
    """The check of one part of the network."""

    def check(findings: Findings) -> Check:
        if findings.unknown:
            return Check(name, f"not compared: {findings.unknown} is not known here", _PARTS[name])
        if cause := findings.wrong.get(name):
            return Check(name, "something else", _PARTS[name], "fail", cause)
        return Check(name, f"{findings.apart.get(name, 0.0):.1e} from the formula", _PARTS[name])

    return check


PARTS = tuple(map(part, _PARTS))


def findings(subject: Subject) -> Findings:
    """What is wrong in the forward pass of the run, and in that of its validation."""
    if choice := formulas.unknown_choice(subject.model.config):
        return Findings({}, {}, choice)
    model = probe.small_model(subject.model, _VOCABULARY, probe.WINDOW).to(subject.engine.device)
    batch = _batch(subject, model)
    stepper = subject.stepper(model, batch)
    wrong: dict[str, str] = {}
    apart: dict[str, float] = {}
    for training in (True, False):
        model.train(training)
        with torch.set_grad_enabled(training), kept(model) as values:
            nats = float(stepper.nats(batch, stepper.module).detach())
        comparing = _Comparing(subject, model, batch, values, nats, "the training step" if training else "validation")
        for name, found in comparing.all():
            if isinstance(found, str):
                wrong.setdefault(name, found)
            else:
                apart[name] = max(apart.get(name, 0.0), found)
    return Findings(wrong, apart)


def _batch(subject: Subject, model: Transformer) -> Batch:
    """Two rows, with two documents in each, two targets of three learned."""
    config = model.config
    length = config.context_length
    document = (torch.arange(length) >= length // 3).long().expand(2, -1).contiguous()
    batch = probe.batch_of(config, 2, length, document=document)
    batch.targets[:, ::3] = IGNORE_INDEX
    return batch


class _Comparing:
    """The parts of one forward pass beside their formulas."""

    def __init__(
        self, subject: Subject, model: Transformer, batch: Batch, values: Kept, nats: float, where: str
    ) -> None:
        self.model, self.config, self.batch, self.values, self.where = model, model.config, batch, values, where
        self.nats = nats
        is_coarse = subject.bf16 or subject.engine.device.type != "cpu"
        self.close, self.close_loss = _CLOSE[is_coarse], _CLOSE_LOSS[is_coarse]
        tokens, place = batch.inputs, torch.arange(batch.inputs.shape[1])
        self.positions = place.expand_as(tokens)
        self.mask = (place[:, None] >= place).expand(len(tokens), -1, -1)  # (B, T, T)
        if subject.config.data.separate_documents:
            begin = torch.stack([(row[:, None] == row).int().argmax(dim=1) for row in batch.segment_ids])
            self.positions = place - begin
            self.mask = self.mask & (batch.segment_ids[:, :, None] == batch.segment_ids[:, None, :])

    def all(self) -> Iterator[tuple[str, str | float]]:
        """The name of each part, with its cause if it is wrong, or how far it is from its formula."""
        looks: list[tuple[str, Callable[[], str | float | tuple[str, str]]]] = [
            ("embeddings", self.embeddings),
            ("positions", self.added),
            *((kind, partial(look, i)) for i in range(self.config.n_layers) for kind, look in self.of_layers),
            ("residuals and norms", self.final_norm),
            ("what the loss counts", self.loss),
        ]
        for name, look in looks:
            try:
                found = look()
            except NotCalled as missing:
                if name == "what the loss counts":  # it is of a model whose end is named already
                    continue
                found = f"The module {missing} takes no part in {self.where}: the model does not call it."
            if isinstance(found, tuple):
                yield found
            else:
                yield name, found

    @property
    def of_layers(self) -> tuple[tuple[str, Callable[[int], str | float | tuple[str, str]]], ...]:
        return (
            ("attention", self.attention),
            ("feed-forward", self.feed_forward),
            ("residuals and norms", self.residual),
        )

    def embeddings(self) -> str | float:
        rows = self.model.token_embedding.weight.detach().cpu().double()[self.batch.inputs]
        factor = self.config.d_model**0.5 if self.config.scale_embeddings else 1.0
        found = self.values.of("dropout" if self.model.position_embedding is None else "position_embedding")[0]
        distance = self._apart(found, rows * factor)
        if distance <= self.close:
            return distance
        ratio = float((found * rows).sum() / rows.square().sum())
        return (
            f"In {self.where} the embeddings that enter the layers are not those of the tokens times {factor:.3g}, but "
            f"{ratio:.3g} times them: look at scale_embeddings and at the token embedding."
        )

    def added(self) -> str | float:
        expected = formulas.added_positions(self.model, self.config, self.positions)
        if expected is None:
            return self.rotated()
        before, after = self.values.of("position_embedding")
        entered = self.values.of("dropout")[0]
        distance = max(self._apart(after - before, expected), self._apart(entered, after))
        if distance <= self.close:
            return distance
        first = formulas.added_positions(self.model, self.config, torch.zeros_like(self.positions))
        assert first is not None
        if self._apart(after - before, first) <= self.close:
            return f"In {self.where} every token has the position of the first: positions are constant."
        return f"In {self.where} what is added for the positions is not what the formula gives at each token's place."

    def rotated(self) -> str | float:
        distances: list[float] = []
        for name, theta in (("rotary", self.config.rope_theta), ("local_rotary", self.config.rope_local_theta)):
            found = 0.0 if theta is None else self._rotated_by(name, theta)
            if isinstance(found, str):
                return found
            distances.append(found)
        return max(distances)

    def _rotated_by(self, name: str, theta: float) -> str | float:
        _, rotation = self.values.of(name)
        shape = (len(self.positions), 1, self.positions.shape[1], self.config.key_dim)
        before = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)  # (B, 1, T, E)
        after = apply_rope(before, (rotation[0], rotation[1]))
        distance = self._apart(after, formulas.rotate(before, self.positions, theta))
        if distance <= self.close:
            return distance
        if self._apart(after, before) <= self.close:
            return f"In {self.where} rotary positions turn nothing: every token has the position of the first."
        if self._apart(after, formulas.rotate(before, self.positions, theta, sign=-1)) <= self.close:
            return f"In {self.where} rotary positions turn the wrong way: the sign of the sine is wrong."
        return (
            f"In {self.where} rotary positions do not turn pairs of numbers by position times theta^(-2i/E): look at "
            "the signs, the order of the pairs, and the positions."
        )

    def attention(self, layer: int) -> str | float | tuple[str, str]:
        module = self._layer(layer).attention
        x, found = self.values.of(f"layers.{layer}.attention")
        compute = partial(formulas.attention, x, module, self.config, self.positions)
        seen, theta = self._mask_of(layer), self._theta_of(layer)
        distance = self._apart(found, compute(seen, theta))
        if distance <= self.close:
            return distance
        for name, cause, mask, options in self._attention_mistakes(layer, seen):
            if self._apart(found, compute(mask, **{"theta": theta, **options})) <= self.close:
                return name, f"In {self.where}, layer {layer}, {cause}."
        return (
            f"In {self.where}, layer {layer}, attention does not give softmax(Q K^T / sqrt(d_k)) V of its input: look "
            "at the kernel, its mask, and the order of the heads."
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
            cause = "queries and keys are turned by their positions, though rope_layers leaves this layer out"
            yield "positions", cause, mask, dict(theta=config.rope_theta)
        if config.rotates(layer):
            for rotated, cause in (
                ("nothing", "queries and keys are not turned by their positions"),
                ("queries", "rotary positions turn the queries alone, not the keys"),
                ("keys", "rotary positions turn the keys alone, not the queries"),
            ):
                yield "positions", cause, mask, dict(rotated=rotated)
        if config.qk_norm:
            for normalised in ("nothing", "queries", "keys"):
                cause = f"the norm of queries and keys (qk_norm) is applied to {normalised} alone"
                yield "attention", cause, mask, dict(normalised=normalised)
        if config.rotates(layer) and config.rope_local_theta is not None:
            for theta, kind in ((config.rope_theta, "without"), (config.rope_local_theta, "with")):
                cause = f"queries and keys are turned as in layers {kind} a sliding window"
                yield "positions", cause, mask, dict(theta=theta)
        for wrong_mask, cause in (
            (self.mask, "the sliding window is not applied"),
            (everything, "every token sees the whole window: there is no causal mask"),
            (everything.tril(1), "every token sees the one after it: the causal mask is shifted by one"),
            (everything.tril(-1), "no token sees itself: the causal mask is shifted by one"),
            (causal, "the mask that keeps documents or padding apart is not applied"),
        ):
            yield "attention", cause, wrong_mask, {}
        if config.n_heads != config.kv_heads:
            cause = "queries are given the key-value heads in the wrong order (h % K instead of h // (H / K))"
            yield "attention", cause, mask, dict(strided_groups=True)
        yield "attention", "the results of the heads are mixed up when they are joined", mask, dict(mixed_heads=True)
        yield "attention", "the softmax is taken over the queries instead of the keys", mask, dict(softmax_dim=-2)

    def feed_forward(self, layer: int) -> str | float:
        module = self._layer(layer).feed_forward
        x, found = self.values.of(f"layers.{layer}.feed_forward")
        distance = self._apart(found, formulas.feed_forward(x, module, self.config))
        if distance <= self.close:
            return distance
        gated = (*GATED, "the gate without its activation") if self.config.activation in GATED else ()
        for other in ("no activation", "relu", "gelu", "the exact GELU", "silu", *gated):
            if self._apart(found, formulas.feed_forward(x, module, self.config, other)) <= self.close:
                return f"In {self.where} the feed-forward network uses {other} instead of {self.config.activation}."
        return f"In {self.where}, layer {layer}, the feed-forward network does not give what its two matrices give."

    def residual(self, layer: int) -> str | float:
        module, name = self._layer(layer), f"layers.{layer}"
        x, out = self.values.of(name)
        before = self.values.of("dropout")[1] if layer == 0 else self.values.of(f"layers.{layer - 1}")[1]
        if self._apart(x, before) > self.close:
            return f"In {self.where} the input of layer {layer} is not the output of what is before it."
        (a_in, a_out), (f_in, f_out) = self.values.of(f"{name}.attention"), self.values.of(f"{name}.feed_forward")
        sums = formulas.layer_sums(module, self.config, x, a_out, f_out)
        steps = (
            ("attention", a_in, sums.attention, None, ""),
            ("feed-forward", f_in, sums.feed_forward, sums.feed_forward_alone, "attention"),
            ("the next layer", out, sums.out, sums.out_alone, "feed-forward"),
        )
        worst = 0.0
        for what, found, expected, alone, of in steps:
            distance = self._apart(found, expected)
            if distance > self.close:
                if alone is not None and self._apart(found, alone) <= self.close:
                    return (
                        f"In {self.where}, layer {layer}, the residual connection around {of} is missing: its output "
                        "replaces its input instead of being added to it."
                    )
                return (
                    f"In {self.where}, layer {layer}, what goes into {what} does not follow from {sums.formula}: a "
                    "norm is left out or in the wrong place, or a sub-layer is added twice or not at all."
                )
            worst = max(worst, distance)
        return worst

    def final_norm(self) -> str | float:
        stream = self.values.of(f"layers.{self.config.n_layers - 1}")[1]
        if self.config.norm_placement == "post":
            return 0.0
        if not isinstance(getattr(self.model.final_norm, "weight", None), Tensor):
            return f"In {self.where} the final norm does nothing: pre-norm layers need one before the vocabulary."
        found = self.values.of("final_norm")[1]
        distance = self._apart(found, formulas.norm(stream, self.model.final_norm, self.config))
        if distance <= self.close:
            return distance
        return f"In {self.where} the final norm does not normalise the stream after the last layer."

    def loss(self) -> str | float:
        hidden = self.values.of("final_norm")[1]
        logits = formulas.linear(hidden, self.model.head).flatten(0, 1)
        targets = self.batch.targets.flatten()
        expected = float(F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum"))
        distance = abs(self.nats - expected) / expected
        if distance <= self.close_loss:
            return distance
        n_targets = int((targets != IGNORE_INDEX).sum())
        mistakes = (
            (expected / n_targets, "the mean over the targets, not their sum, so every batch weighs the same"),
            (expected / len(targets), "divided by all places, those without a target included"),
            (
                float(F.cross_entropy(logits, targets.clamp(min=0), reduction="sum")),
                "counted at places without a target too: IGNORE_INDEX is taken for a token",
            ),
            (
                float(F.cross_entropy(logits[:-1], targets[1:], ignore_index=IGNORE_INDEX, reduction="sum")),
                "that of the token after the target: targets are shifted twice",
            ),
            (
                float(F.cross_entropy(logits[1:], targets[:-1], ignore_index=IGNORE_INDEX, reduction="sum")),
                "that of the token before the target",
            ),
        )
        ratio = f"{self.nats / n_targets:.3f} nats for each of {n_targets} targets, by hand {expected / n_targets:.3f}"
        for value, cause in mistakes:
            if abs(self.nats - value) <= self.close_loss * abs(value):
                return f"In {self.where} the loss is {cause} ({ratio})."
        return (
            f"In {self.where} the loss counts other targets than those of the batch, or another model output: {ratio}."
        )

    def _layer(self, number: int) -> DecoderLayer:
        return cast(DecoderLayer, self.model.layers[number])

    def _apart(self, found: Tensor, expected: Tensor) -> float:
        """The largest difference, by the size of the expected numbers; infinite where none are."""
        if found.shape != expected.shape:
            return float("inf")
        distance = float((found - expected).abs().max() / expected.std().clamp(min=1e-12))
        return distance if distance == distance else float("inf")
