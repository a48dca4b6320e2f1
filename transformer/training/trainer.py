"""The loop: batches in, a better model out. It does not know which architecture it trains.

Dimensions: B batch · T window
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from transformer.device import autocast
from transformer.errors import TransformerError
from transformer.hub import checkpoint
from transformer.inference import Generator, SamplingOptions
from transformer.model import Transformer
from transformer.text.batches import IGNORE, Batch, Windows, batches
from transformer.text.tokenizer import Tokenizer
from transformer.training.config import TrainConfig
from transformer.training.display import Display, clock, perplexity
from transformer.training.optimizers import make_optimizers, progress, warmup_cosine

_SAMPLE_TOKENS = 60
_SHOWN_STEPS = 20  # the loss and speed on display are means over so many
_VALIDATIONS = 10  # in a run that does not say how often


@dataclass(frozen=True)
class Result:
    """What came of a run. tokens: targets learned from. best_loss: nats per validation token, at best_step."""

    steps: int
    tokens: int
    seconds: float
    best_loss: float
    best_step: int


class Trainer:
    """Trains `model`; the best one so far by validation is always in `config.output`.

    Args:
        train, validation: windows to learn from and to validate on.
    """

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer, train: Windows, validation: Windows, config: TrainConfig
    ) -> None:
        self.model, self.tokenizer, self.train_windows, self.config = model, tokenizer, train, config
        self.device = next(model.parameters()).device
        self.output = Path(config.output)
        self.optimizers = make_optimizers(
            model, config.optimizer, config.learning_rate, config.weight_decay, config.beta2
        )
        self.max_steps = self._max_steps()
        # Evenly spread over the validation text, and the same ones every time.
        count = min(config.validation_windows, len(validation))
        picked = np.linspace(0, len(validation) - 1, count).round().astype(int)
        self._validation = [validation.batch(part) for part in np.array_split(picked, max(1, count // 8))]
        self._loss = torch.compile(self.loss, dynamic=False) if config.compile else self.loss

    def run(self) -> Result:
        """Train until the first budget is spent.

        Raises:
            TransformerError: if the loss is no number any more.
        """
        config, display = self.config, Display()
        step, tokens, best_loss, best_step = 0, 0, math.inf, 0
        recent: deque[tuple[float, int, float]] = deque(maxlen=_SHOWN_STEPS)  # (loss, tokens, seconds) of a step
        stream = self._batches()
        begin = last = time.perf_counter()
        try:
            while (done := progress(step, time.perf_counter() - begin, self.max_steps, config.max_minutes)) < 1.0:
                loss, learned = self._step(stream, done)
                step += 1
                tokens += learned
                now = time.perf_counter()
                _check_finite(loss, step)
                recent.append((loss, learned, now - last))
                last = now
                sums = [sum(column) for column in zip(*recent, strict=True)]
                rate = sums[1] / sums[2]
                display.step(step, done, sums[0] / len(recent), rate, now - begin)
                so_far = {"step": step, "seconds": now - begin, "tokens": tokens}
                self._record(**so_far, loss=loss, tokens_per_second=rate)
                if self._validation_due(step, done, progress(step, now - begin, self.max_steps, config.max_minutes)):
                    validation_loss = self.validate()
                    _check_finite(validation_loss, step)
                    self._record(**so_far, validation_loss=validation_loss)
                    display.say(
                        f"step {step:,} · {clock(now - begin)} · validation loss {validation_loss:.4f} · "
                        f"perplexity per token {perplexity(validation_loss):,.2f}\n  {self.sample()}"
                    )
                    if validation_loss < best_loss:
                        best_loss, best_step = validation_loss, step
                        checkpoint.save(self.model, self.tokenizer, self.output)
                    last = time.perf_counter()
        finally:
            display.close()
        return Result(step, tokens, time.perf_counter() - begin, best_loss, best_step)

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean negative log-likelihood of the targets (B, T), in nats per token; IGNORE is not counted."""
        hidden, head = self.model.hidden_states(inputs).flatten(0, 1), self.model.head
        # The same as head and cross_entropy, in one operation that PyTorch can fuse.
        return F.linear_cross_entropy(
            hidden, head.weight, targets.flatten(), linear_bias=head.bias, ignore_index=IGNORE, reduction="mean"
        )

    @torch.no_grad()
    def validate(self) -> float:
        """Nats per token of the validation windows."""
        self.model.eval()
        nats = counted = 0.0
        for batch in self._validation:
            n = int((batch.targets != IGNORE).sum())
            if n:
                with autocast(self.device, self.config.precision):
                    nats += n * float(self.loss(batch.inputs.to(self.device), batch.targets.to(self.device)))
                counted += n
        self.model.train()
        return nats / counted

    def sample(self) -> str:
        """A text from the model as it is now, on one line."""
        self.model.eval()
        options = SamplingOptions(max_tokens=_SAMPLE_TOKENS, seed=self.config.seed)
        text = "".join(Generator(self.model, self.tokenizer).generate(self.config.sample_prompt, options))
        self.model.train()
        return " ".join(f"{self.config.sample_prompt}{text}".split())

    def _step(self, stream: Iterator[Batch], done: float) -> tuple[float, int]:
        """One update of the weights; the loss before it, in nats per token, and how many tokens were learned from."""
        config = self.config
        rate = config.learning_rate * warmup_cosine(done, config.warmup, config.final_learning_rate)
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = rate
        parts = [next(stream) for _ in range(config.accumulate)]
        counted = [int((batch.targets != IGNORE).sum()) for batch in parts]
        total = 0.0
        for batch, n in zip(parts, counted, strict=True):
            if not n:
                continue
            with autocast(self.device, config.precision):
                loss = self._loss(batch.inputs.to(self.device), batch.targets.to(self.device))
            share = loss * (n / sum(counted))  # each target weighs the same, whichever batch it is in
            share.backward()
            total += float(share.detach())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return total, sum(counted)

    def _batches(self) -> Iterator[Batch]:
        """Batches without end: epoch after epoch, each in a new order."""
        epoch = 0
        while True:
            yield from batches(self.train_windows, self.config.batch_size, self.config.seed, epoch)
            epoch += 1

    def _max_steps(self) -> int | None:
        """The budget of steps; a run without any budget makes one epoch."""
        config = self.config
        max_epochs = config.max_epochs
        if max_epochs is None and config.max_steps is None and config.max_minutes is None:
            max_epochs = 1.0
        if max_epochs is None:
            return config.max_steps
        batches_in_epoch = math.ceil(len(self.train_windows) / config.batch_size)
        in_epochs = math.ceil(max_epochs * batches_in_epoch / config.accumulate)
        return min(in_epochs, config.max_steps or in_epochs)

    def _validation_due(self, step: int, before: float, after: float) -> bool:
        """Whether to validate after this step, which took the run's progress from `before` to `after`."""
        if after >= 1.0:
            return True  # whatever else: the last weights are never left unmeasured
        if self.config.validate_every:
            return step % self.config.validate_every == 0
        return math.floor(before * _VALIDATIONS) < math.floor(after * _VALIDATIONS)

    def _record(self, **numbers: Any) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        with open(self.output / "metrics.jsonl", "a") as file:
            file.write(json.dumps({name: round(value, 6) for name, value in numbers.items()}) + "\n")


def _check_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise TransformerError(f"the loss became {loss} at step {step}: try a lower learning_rate.")
