"""One update of the weights, and what it looks like when there must be none."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from transformer.data.batches import IGNORE_INDEX, Batch, BatchSource
from transformer.data.tokenizer import Tokenizer
from transformer.device import computes_in_bf16
from transformer.errors import TransformerError
from transformer.model import Transformer
from transformer.training.distributed import Engine, full_tensor
from transformer.training.loss import LanguageModelLoss
from transformer.training.optimizers import make_optimizers
from transformer.training.train_config import TrainConfig

_SHOWN_CHARACTERS = 80


class Diverged(TransformerError):
    """The loss or the gradient is no number any more, or the loss is beyond its bound. The weights were left alone."""


@dataclass(frozen=True)
class Step:
    """loss: nats per token before the update. gradient_norm: before clipping. tokens: targets learned from; of a step
    without any, in which nothing changed, loss and norm are nan. learning_rate: the highest of any weight."""

    loss: float
    gradient_norm: float
    tokens: int
    learning_rate: float


class Stepper:
    """Makes the steps of a run: the loss of `model` in the run's precision, compiled if asked for, and its optimizers.

    module: `LanguageModelLoss` as the engine prepared it. uncompiled: the same without compilation, which validation
    calls, since other shapes would be compiled again.

    Args:
        source: this process's rows of the batches.
    """

    def __init__(
        self, model: Transformer, source: BatchSource, tokenizer: Tokenizer, config: TrainConfig, engine: Engine
    ) -> None:
        self.model, self.source, self.tokenizer = model, source, tokenizer
        self.config, self.engine = config, engine
        loss = LanguageModelLoss(model, computes_in_bf16(engine.device, config.run.precision))
        if config.run.compile:
            loss.compile(dynamic=False)
        self.module = engine.prepare(loss)
        self.uncompiled: Callable[..., Tensor] = self.module if engine.sharded else loss.forward
        # After sharding, which puts other parameters in the place of the first.
        self.optimizers = make_optimizers(model, config)
        self.max_loss = config.optimization.max_loss or 3 * math.log(tokenizer.vocab_size)

    def step(self, number: int) -> Step:
        """The step of this number: forward, backward, update.

        Raises:
            Diverged: with the cause, the step and the batch that did it; the weights are those before the step.
        """
        # All that is random in a step follows from its number, so a resumed run needs no random states.
        torch.manual_seed(
            int(np.random.SeedSequence((self.config.run.seed, number, self.engine.rank)).generate_state(1)[0])
        )
        parts, places = [], []
        for _ in range(self.config.optimization.gradient_accumulation_steps):
            parts.append(self.source.next())
            places.append(self.source.describe_last())
        local = [int((part.targets != IGNORE_INDEX).sum()) for part in parts]
        tokens = int(self.engine.sum(sum(local))[0])
        if not tokens:  # known in every process: no weight decays and no momentum moves for nothing
            return Step(math.nan, math.nan, 0, self._rate())
        nats = 0.0
        for index, part in enumerate(parts):
            with self.engine.gradients(self.module, last=index == len(parts) - 1):
                summed = self.nats(part, self.module)
                # Each target weighs the same, whichever batch or process it is in: processes average their gradients.
                (summed * (self.engine.world_size / tokens)).backward()
            nats += float(summed.detach())
        loss = self.engine.sum(nats)[0] / tokens
        norm = float(
            full_tensor(nn.utils.clip_grad_norm_(self.module.parameters(), self.config.optimization.max_grad_norm))
        )
        if not (math.isfinite(loss) and loss <= self.max_loss and math.isfinite(norm)):
            raise Diverged(self._why(number, loss, norm, places, parts[0]))
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return Step(loss, norm, tokens, self._rate())

    def nats(self, batch: Batch, score: Callable[..., Tensor]) -> Tensor:
        """Summed negative log-likelihood of a batch's targets, by a module like `LanguageModelLoss`."""
        device = self.engine.device
        segment_ids = batch.segment_ids.to(device) if self.config.data.separate_documents else None
        return score(batch.inputs.to(device), batch.targets.to(device), segment_ids)

    def _rate(self) -> float:
        return max(group["lr"] for optimizer in self.optimizers for group in optimizer.param_groups)

    def _why(self, number: int, loss: float, norm: float, places: list[str], batch: Batch) -> str:
        """What happened, where, why, and what to do."""
        if not all(bool(torch.isfinite(full_tensor(parameter)).all()) for parameter in self.module.parameters()):
            cause = "weights are not finite already before it"
        elif not math.isfinite(loss):
            cause = "the weights are finite: the activations of this batch overflowed"
        elif not math.isfinite(norm):
            cause = "the loss is finite: its gradient overflowed"
        else:
            cause = f"the bound is {self.max_loss:.2f} nats per token"
        text = self.tokenizer.decode(batch.inputs[0].tolist())[:_SHOWN_CHARACTERS]
        return (
            f"the run diverged at step {number:,}: loss {loss:.4g}, gradient norm {norm:.4g}, learning rate "
            f"{self._rate():.3g}; {cause}. The batch: {'; '.join(places)}, beginning {text!r}. The weights before this "
            "step are kept: try a lower learning_rate or a larger warmup_ratio."
        )
