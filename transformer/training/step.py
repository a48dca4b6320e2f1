"""One training step, and the error of a run that has diverged."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from transformer.data.batches import Batch, BatchSource
from transformer.data.tokenizer import Tokenizer
from transformer.device import computes_in_bf16
from transformer.errors import TransformerError
from transformer.model import Transformer
from transformer.training.distributed import Engine, full_tensor
from transformer.training.loss import LanguageModelLoss
from transformer.training.optimizers import make_optimizers
from transformer.training.train_config import TrainConfig

_EXCERPT_LENGTH = 80  # characters of a batch in an error message


class Diverged(TransformerError):
    """The loss or the gradient is not finite, or the loss is above its limit. The weights were not changed."""


@dataclass(frozen=True)
class StepMetrics:
    """The metrics of a step.

    loss: nats per token before the update. gradient_norm: before clipping. tokens: targets in the batches; if there are
    none, no weight changes, and loss and gradient_norm are nan. learning_rate: the highest of all parameter groups.
    """

    loss: float
    gradient_norm: float
    tokens: int
    learning_rate: float


class TrainStep:
    """The training step of a run, with the loss of `model` in the run's precision, compiled if asked for.

    module: `LanguageModelLoss` as the engine prepared it. uncompiled: the same without compilation, for validation,
    whose shapes would be compiled again. max_loss: above this many nats per token the run counts as diverged.

    Args:
        source: batches, of which it gives the rows of this process.
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
        # After sharding, which replaces the parameters.
        self.optimizers = make_optimizers(model, config)
        self.max_loss = config.optimization.max_loss or 3 * math.log(tokenizer.vocab_size)

    def run(self, number: int) -> StepMetrics:
        """Forward and backward passes, and one update of the weights.

        Args:
            number: of the step in the run, from 1.

        Raises:
            Diverged: with the cause, the step and the batch; the weights are those before the step.
        """
        # Seeded by the number of the step, so that checkpoints need no random states.
        torch.manual_seed(
            int(np.random.SeedSequence((self.config.run.seed, number, self.engine.rank)).generate_state(1)[0])
        )
        batches, descriptions = [], []
        for _ in range(self.config.optimization.gradient_accumulation_steps):
            batches.append(self.source.next())
            descriptions.append(self.source.describe_last())
        tokens = int(self.engine.sum(sum(batch.n_targets for batch in batches))[0])
        if not tokens:  # in all processes: without an update, weights do not decay and moments do not change
            return StepMetrics(math.nan, math.nan, 0, self._learning_rate())
        total = 0.0
        for index, batch in enumerate(batches):
            with self.engine.gradients(self.module, last=index == len(batches) - 1):
                summed = self.summed_loss(batch)
                # Gradients are averaged over processes: so each target has the same weight in any batch and process.
                (summed * (self.engine.world_size / tokens)).backward()
            total += float(summed.detach())
        loss = self.engine.sum(total)[0] / tokens
        norm = float(
            full_tensor(nn.utils.clip_grad_norm_(self.module.parameters(), self.config.optimization.max_grad_norm))
        )
        if not (math.isfinite(loss) and loss <= self.max_loss and math.isfinite(norm)):
            raise Diverged(self._explain(number, loss, norm, descriptions, batches[0]))
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return StepMetrics(loss, norm, tokens, self._learning_rate())

    def summed_loss(self, batch: Batch, module: Callable[..., Tensor] | None = None) -> Tensor:
        """Summed negative log-likelihood of a batch's targets. module: `uncompiled`, or by default `module`."""
        device = self.engine.device
        segment_ids = batch.segment_ids.to(device) if self.config.text.separate_documents else None
        return (module or self.module)(batch.inputs.to(device), batch.targets.to(device), segment_ids)

    def _learning_rate(self) -> float:
        return max(group["lr"] for optimizer in self.optimizers for group in optimizer.param_groups)

    def _explain(self, number: int, loss: float, norm: float, descriptions: list[str], batch: Batch) -> str:
        """The message of `Diverged`: what happened, where, why, and what to do."""
        if not all(bool(torch.isfinite(full_tensor(parameter)).all()) for parameter in self.module.parameters()):
            cause = "weights were not finite before it"
        elif not math.isfinite(loss):
            cause = "the weights are finite: the activations of this batch overflowed"
        elif not math.isfinite(norm):
            cause = "the loss is finite: its gradient overflowed"
        else:
            cause = f"the limit is {self.max_loss:.2f} nats per token"
        text = self.tokenizer.decode(batch.inputs[0].tolist())[:_EXCERPT_LENGTH]
        return (
            f"the run diverged at step {number:,}: loss {loss:.4g}, gradient norm {norm:.4g}, learning rate "
            f"{self._learning_rate():.3g}; {cause}. The batch: {'; '.join(descriptions)}, starting with {text!r}. The "
            "weights before this step are kept: try a lower learning_rate or a larger warmup_ratio."
        )
