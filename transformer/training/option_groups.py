"""The options of a training run in four groups. `--help` shows the docstring of each field."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from transformer.device import Precision
from transformer.errors import ConfigError
from transformer.legacy import preset_config
from transformer.model import PRESETS, ModelConfig
from transformer.training.option_metadata import (
    AMOUNT,
    AT_LEAST_0,
    BETWEEN_0_AND_1,
    FROM_0_BELOW_1,
    FROM_0_TO_1,
    POSITIVE,
    POSITIVE_OR_INFINITE,
    PRICE,
    Alias,
    FormerName,
    Mark,
    OptionGroup,
)
from transformer.training.schedule import Budget, Schedule

Optimizer = Literal["adamw", "muon"]
Parallel = Literal["ddp", "fsdp"]
MAY_CHANGE, OF_INITIAL_MODEL, PATH = Mark.MAY_CHANGE, Mark.OF_INITIAL_MODEL, Mark.PATH


@dataclass(frozen=True)
class TextOptions(OptionGroup):
    """The text, its tokens, and the windows that batches are made of."""

    data: Annotated[str, PATH, Alias("dataset")]
    """Text to train on: a .txt, .jsonl, .json or .parquet file (also .gz), a folder of them, or a Hub data set.
    Rows have a text, a prompt and a completion, or messages. Also --dataset."""
    data_config: Annotated[str | None, Alias("dataset-config")] = None
    """Configuration of a Hub data set, such as wikitext-2-raw-v1. Also --dataset-config."""
    text_column: str | None = None
    """Column of the rows that holds the text, such as content. Default: text, or another known column."""
    clean: Literal["wikipedia"] | None = None
    """wikipedia: remove markup, empty brackets, lists and references from articles, and leave out stubs.
    Validation text is not cleaned."""
    max_documents: Annotated[int | None, POSITIVE] = None
    """Train on the first documents (articles, rows) only, at most this many. Default: all of them."""
    validation_data: Annotated[str | None, PATH] = None
    """Text to validate on, in the same formats as data. Default: the validation split of data, or its last part."""
    stream: bool = False
    """Read the text while training instead of tokenizing it to disk first. Needs a budget and validation text."""
    token_cache: Annotated[str | None, MAY_CHANGE] = None
    """Folder for tokenized text. Default: a folder in the user's cache."""
    window_stride: Annotated[int | None, POSITIVE] = None
    """Tokens from the start of one window to the start of the next.
    Default: context_length, so that windows do not overlap."""
    prompt_share: Annotated[float, FROM_0_BELOW_1] = 0.0
    """Fraction of the windows that start like a prompt, with the end-of-text token, wherever they are cut."""
    separate_documents: bool = False
    """Restrict attention to one document where a window holds several."""
    short_window_share: Annotated[float, FROM_0_BELOW_1] = 0.0
    """Fraction of the run, at its start, that trains on shorter windows, which are faster."""
    short_window_length: Annotated[int, POSITIVE] = 256
    """Tokens in a shorter window. A batch of them has about as many tokens as any other batch."""
    tokenizer: Annotated[str | None, PATH, OF_INITIAL_MODEL] = None
    """A tokenizer.json, a BERT vocab.txt, a folder with one of them or with vocab.json and merges.txt, or a Hub
    model. Default: a byte-level BPE is trained on data."""
    vocab_size: Annotated[int, OF_INITIAL_MODEL] = 8192
    """Vocabulary size of the tokenizer that is trained."""
    whole_tokens: Annotated[tuple[str, ...], OF_INITIAL_MODEL] = ()
    """Strings that become one token each in the tokenizer that is trained, such as WikiText's <unk>."""


@dataclass(frozen=True)
class ModelOptions(OptionGroup):
    """The model: where its weights come from, and its architecture."""

    init_from: Annotated[str | None, PATH] = None
    """Model to fine-tune, with its architecture and tokenizer: a folder, a tar, a URL or a Hub id.
    Default: random weights."""
    embeddings_from: Annotated[str | None, PATH] = None
    """Model with the same tokenizer whose token embeddings are copied: a folder or a Hub id."""
    start_from_bigrams: bool = False
    """Initialize the embeddings and the (untied) vocabulary projection as a bigram model of the text."""
    freeze_embeddings: bool = False
    """Do not train the token embeddings."""
    preset: Annotated[Literal["modern", "paper", "gpt2", "blog"], OF_INITIAL_MODEL] = "modern"
    """Architecture."""
    context_length: Annotated[int, POSITIVE] = 512
    """Tokens that the model can attend to. With init_from: tokens in a window, at most the model's own context."""
    d_model: Annotated[int, OF_INITIAL_MODEL] = 256
    """Width of the model."""
    n_layers: Annotated[int, OF_INITIAL_MODEL] = 6
    """Number of layers."""
    n_heads: Annotated[int, OF_INITIAL_MODEL] = 4
    """Number of attention heads."""
    n_kv_heads: Annotated[int | None, OF_INITIAL_MODEL] = None
    """Number of key-value heads. Default: that of the preset, or the most below it that divide n_heads."""
    d_feed_forward: Annotated[int | None, OF_INITIAL_MODEL] = None
    """Width of the feed-forward layers. Default: derived from d_model."""
    tie_embeddings: Annotated[bool | None, OF_INITIAL_MODEL] = None
    """Use the token embeddings as vocabulary projection too. Default: as the preset does."""
    dropout: Annotated[float | None, FROM_0_BELOW_1] = None
    """Dropout probability. Default: that of the preset, or of the model that init_from names."""

    def architecture(self, vocab_size: int) -> ModelConfig:
        """The architecture of a model with random weights."""
        always = ("context_length", "d_model", "n_layers", "n_heads")
        sizes: dict[str, Any] = {name: getattr(self, name) for name in always}
        for name in ("n_kv_heads", "d_feed_forward", "tie_embeddings", "dropout"):  # where None means the preset's
            if getattr(self, name) is not None:
                sizes[name] = getattr(self, name)
        if self.n_kv_heads is None and "n_kv_heads" in PRESETS.get(self.preset, {}):
            # As many as the preset has, if that divides the number of heads.
            sizes["n_kv_heads"] = math.gcd(PRESETS[self.preset]["n_kv_heads"], self.n_heads)
        return preset_config(self.preset, vocab_size=vocab_size, **sizes)


@dataclass(frozen=True)
class OptimizationOptions(OptionGroup):
    """Batches, the optimizer, and the learning rate schedule."""

    batch_size: Annotated[int, POSITIVE] = 16
    """Windows in a batch, summed over all processes."""
    gradient_accumulation_steps: Annotated[int, POSITIVE, FormerName("accumulate")] = 1
    """Batches whose gradients are summed for one step."""
    optimizer: Optimizer = "adamw"
    """muon: Muon for the matrices of the layers, AdamW for all other weights."""
    learning_rate: Annotated[float, POSITIVE] = 2e-3
    """Peak learning rate, reached after the warmup."""
    embedding_learning_rate: Annotated[float | None, POSITIVE] = None
    """Peak learning rate of the embeddings, and of a vocabulary projection tied to them. Default: learning_rate."""
    schedule: Schedule = "cosine"
    """How the learning rate decreases after the warmup. wsd: warmup, stable, decay."""
    warmup_ratio: Annotated[float, FROM_0_BELOW_1, FormerName("warmup")] = 0.05
    """Fraction of the run in which the learning rate increases."""
    decay_ratio: Annotated[float, FROM_0_TO_1, MAY_CHANGE, FormerName("decay")] = 0.3
    """Fraction of the run, at its end, in which wsd decreases the learning rate."""
    final_learning_rate: Annotated[float, FROM_0_TO_1] = 0.05
    """Learning rate at the end of the schedule, as a fraction of learning_rate."""
    weight_decay: Annotated[float, AT_LEAST_0] = 0.1
    """Weight decay, of matrices only."""
    beta2: Annotated[float, FROM_0_BELOW_1] = 0.95
    """AdamW's decay rate of the squared gradients."""
    ema_decay: Annotated[float | None, BETWEEN_0_AND_1] = None
    """Validate and save an exponential moving average of the weights with this decay per step, such as 0.999.
    Default: the weights themselves."""
    max_grad_norm: Annotated[float, POSITIVE_OR_INFINITE, FormerName("clip")] = 1.0
    """Gradients are clipped to this norm."""
    max_loss: Annotated[float | None, POSITIVE_OR_INFINITE] = None
    """Stop as diverged when the loss is above this many nats per token. Default: three times that of guessing."""


@dataclass(frozen=True)
class RunOptions(OptionGroup):
    """When the run ends, what it saves and shows, and where it computes."""

    output: Annotated[str, MAY_CHANGE] = "output"
    """Folder for the trained model. A run that stopped there is resumed."""
    max_epochs: Annotated[float | None, AMOUNT, MAY_CHANGE] = None
    """End after this many passes over the data. Default: one, if no other limit is given."""
    max_steps: Annotated[int | None, POSITIVE, MAY_CHANGE] = None
    """End after this many steps."""
    max_tokens: Annotated[int | None, POSITIVE, MAY_CHANGE] = None
    """End after training on this many tokens."""
    max_minutes: Annotated[float | None, AMOUNT, MAY_CHANGE] = None
    """End after this many minutes."""
    max_cost: Annotated[float | None, AMOUNT, MAY_CHANGE] = None
    """End when the run has cost this much, in the currency of price_per_hour."""
    price_per_hour: Annotated[float | None, PRICE, MAY_CHANGE] = None
    """Price of the machine per hour."""
    patience: Annotated[int | None, POSITIVE, MAY_CHANGE] = None
    """End after this many validations without a better loss."""
    validate_every: Annotated[int | None, POSITIVE, MAY_CHANGE] = None
    """Steps between validations. Default: ten validations in the run."""
    validation_windows: Annotated[int, POSITIVE] = 64
    """Windows in each validation, at most."""
    sample_prompt: Annotated[str, MAY_CHANGE] = "The history of"
    """Prompt of the sample that is shown at each validation."""
    checkpoint_every: Annotated[int | None, POSITIVE, MAY_CHANGE] = None
    """Steps between checkpoints. Default: five minutes. Each validation writes one too."""
    keep_checkpoints: Annotated[int, POSITIVE, MAY_CHANGE] = 2
    """Number of the latest checkpoints that are kept, besides the best model."""
    resume: Annotated[bool, MAY_CHANGE] = False
    """Require a checkpoint in output. Without this option a run is resumed if there is one."""
    restart: Annotated[bool, MAY_CHANGE] = False
    """Start from the beginning, even if output has checkpoints."""
    seed: int = 0
    """Seed of the weights, the dropout and the order of the data: a whole number from 0 to 2^63 - 1."""
    precision: Annotated[Precision, MAY_CHANGE] = "auto"
    """auto: bf16 where it is faster than fp32."""
    compile: Annotated[bool, MAY_CHANGE] = False
    """Compile the training step with torch.compile, which needs a C++ compiler and about a minute."""
    parallel: Annotated[Parallel, MAY_CHANGE] = "ddp"
    """What several processes do. ddp: each has the whole model. fsdp: each has a part of every tensor."""
    device: Annotated[str, MAY_CHANGE] = "auto"
    """auto, cpu, cuda (or one GPU of several: cuda:1) or mps."""
    trackers: Annotated[tuple[str, ...], MAY_CHANGE] = ()
    """Report to these experiment trackers too: tensorboard, wandb, trackio. Each has to be installed."""
    preflight: Annotated[Literal["stop", "warn", "off"], MAY_CHANGE] = "stop"
    """Check text, batches and model before the first step.
    stop: a failed check stops the run. warn: it is only a warning. off: nothing is checked."""
    push_to: Annotated[str | None, MAY_CHANGE] = None
    """Publish the trained model on the Hub as user/name, with the token of HF_TOKEN or `hf auth login`."""
    push_public: Annotated[bool, MAY_CHANGE] = False
    """Make the repository public if it is new."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_cost and not self.price_per_hour:
            raise ConfigError("max_cost needs price_per_hour: what the machine costs in an hour.")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be a whole number from 0 to 2^63 - 1, not {self.seed!r}.")
        if self.push_to is not None and not self.push_to.strip():
            raise ConfigError("push_to is empty: expected the repository to publish to, as user/name.")
        if self.resume and self.restart:
            raise ConfigError("resume and restart exclude each other.")

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints that a run is resumed from."""
        return Path(self.output) / "checkpoints"

    def budget(self, steps_in_epoch: float | None) -> Budget:
        """When the run ends; without any limit, after one epoch.

        Args:
            steps_in_epoch: None: unknown, as when text is streamed.

        Raises:
            ConfigError: if nothing says when a streamed run ends.
        """
        epochs = self.max_epochs
        if not (epochs or self.max_steps or self.max_tokens or self.max_minutes or self.max_cost):
            epochs = 1.0
        if epochs and steps_in_epoch is None:
            raise ConfigError(
                "a streamed text has no known length: give max_steps, max_tokens, max_minutes or max_cost."
            )
        steps = [self.max_steps] if self.max_steps else []
        steps += [math.ceil(epochs * steps_in_epoch)] if epochs and steps_in_epoch else []
        seconds = [60 * self.max_minutes] if self.max_minutes else []
        seconds += [3600 * self.max_cost / self.price_per_hour] if self.max_cost and self.price_per_hour else []
        return Budget(min(steps, default=None), self.max_tokens, min(seconds, default=None))
