"""Everything a training run can be told."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from transformer.errors import ConfigError
from transformer.model import ModelConfig


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Args:
        data: Text to train on: a .txt, .jsonl, .json or .parquet file (also .gz), a folder of them, or the id of a
            data set on the Hub.
        output: Folder for the trained model.
        data_config: Configuration of a Hub data set, such as wikitext-2-raw-v1.
        validation_data: Text to validate on, as data. Without it: the validation split of data, or else its last part.
        tokenizer: A tokenizer.json, a folder with one, or a Hub model. Without it a byte-level BPE is trained on data.
        vocab_size: Size of the vocabulary that is trained.
        whole_tokens: Strings that are one token each in a trained vocabulary, such as WikiText's <unk>.
        init_from: A model to go on from, with its architecture and tokenizer: a folder, a tar, a URL or a Hub id.
        preset: Architecture: paper, gpt2, modern or blog.
        context_length: Tokens the model can attend to.
        d_model: Width of the model.
        n_layers: Number of layers.
        n_heads: Number of attention heads.
        n_kv_heads: Number of key-value heads; without it the preset's.
        d_feed_forward: Width of the feed-forward layers; without it derived from d_model.
        dropout: Without it the preset's.
        batch_size: Windows in a batch.
        accumulate: Batches whose gradients are summed for one step.
        optimizer: adamw, or muon for the matrices of the layers and adamw for the rest.
        learning_rate: The highest, reached after the warm-up.
        warmup: Part of the run in which the learning rate rises.
        final_learning_rate: Where the cosine ends, as a part of learning_rate.
        weight_decay: Decay of the weights, of matrices alone.
        beta2: AdamW's decay of the squared gradients.
        clip: Largest norm of the gradient.
        max_epochs: End after so many passes over the data; the default, if no other end is given, is one.
        max_steps: End after so many steps.
        max_minutes: End after so many minutes.
        validate_every: Steps between validations; without it ten times in the run.
        validation_windows: Windows looked at in each validation, at most.
        sample_prompt: Prompt of the sample that is shown at each validation.
        seed: Of the weights, the dropout and the order of the data.
        precision: auto (bf16 where it is faster), bf16 or fp32.
        compile: Compile the training step with torch.compile; it takes a C++ compiler and about a minute.
        device: auto, cpu, cuda or mps.
    """

    data: str
    output: str = "output"
    data_config: str | None = None
    validation_data: str | None = None
    tokenizer: str | None = None
    vocab_size: int = 8192
    whole_tokens: tuple[str, ...] = ()
    init_from: str | None = None
    preset: str = "modern"
    context_length: int = 512
    d_model: int = 256
    n_layers: int = 6
    n_heads: int = 4
    n_kv_heads: int | None = None
    d_feed_forward: int | None = None
    dropout: float | None = None
    batch_size: int = 16
    accumulate: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 2e-3
    warmup: float = 0.05
    final_learning_rate: float = 0.05
    weight_decay: float = 0.1
    beta2: float = 0.95
    clip: float = 1.0
    max_epochs: float | None = None
    max_steps: int | None = None
    max_minutes: float | None = None
    validate_every: int | None = None
    validation_windows: int = 64
    sample_prompt: str = "The history of"
    seed: int = 0
    precision: str = "auto"
    compile: bool = False
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate", "context_length", "learning_rate", "clip", "validation_windows"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be more than 0, not {getattr(self, name)}.")
        for name in ("max_epochs", "max_steps", "max_minutes", "validate_every"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name} must be more than 0, not {value}.")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"warmup is a part of the run, in [0, 1), not {self.warmup}.")
        if not 0 <= self.final_learning_rate <= 1:
            raise ConfigError(f"final_learning_rate is a part, in [0, 1], not {self.final_learning_rate}.")

    def model_config(self, vocab_size: int) -> ModelConfig:
        """The architecture to train from nothing."""
        always = ("context_length", "d_model", "n_layers", "n_heads")
        sizes: dict[str, Any] = {name: getattr(self, name) for name in always}
        for name in ("n_kv_heads", "d_feed_forward", "dropout"):  # where None means the preset's
            if getattr(self, name) is not None:
                sizes[name] = getattr(self, name)
        return ModelConfig.preset(self.preset, vocab_size=vocab_size, **sizes)

    def changed(self) -> dict[str, Any]:
        """The options that are not at their default."""
        fields = ((field.name, getattr(self, field.name), field.default) for field in dataclasses.fields(self))
        return {name: value for name, value, default in fields if value != default}
