"""Everything a training run can be told."""

from __future__ import annotations

import dataclasses
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformer.errors import ConfigError
from transformer.legacy import preset_config
from transformer.model import PRESETS, ModelConfig
from transformer.training.schedule import SCHEDULES, Budget

PREFLIGHT = ("stop", "warn", "off")
# Earlier names of options, and those that replaced them.
RENAMED = {
    "accumulate": "gradient_accumulation_steps",
    "clip": "max_grad_norm",
    "decay": "decay_ratio",
    "warmup": "warmup_ratio",
}
# What a run may change when it goes on: where and how it computes, how long, and what it shows.
_FREE = {
    *("output", "token_cache", "resume", "restart", "checkpoint_every", "keep_checkpoints"),
    *("max_epochs", "max_steps", "max_tokens", "max_minutes", "max_cost", "price_per_hour", "patience", "decay_ratio"),
    *("validate_every", "sample_prompt", "trackers", "parallel", "precision", "compile", "device"),
    *("push_to", "push_public", "preflight"),
}


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Args:
        data: Text to train on: a .txt, .jsonl, .json or .parquet file (also .gz), a folder of them, or the id of a
            data set on the Hub. Rows have a text, a prompt and a completion, or messages. Also --dataset.
        output: Folder for the trained model. A run that stopped there goes on.
        data_config: Configuration of a Hub data set, such as wikitext-2-raw-v1. Also --dataset-config.
        text_column: Column of the rows that holds the text, such as content; without it text, or one of the others
            that are known.
        clean: wikipedia: take out of articles what an extraction left behind (markup, empty brackets, lists,
            references), and leave out stubs; validation text stays as it is.
        max_documents: Train on the first this many documents (articles, rows) alone; without it on all of them.
        validation_data: Text to validate on, as data. Without it: the validation split of data, or else its last part.
        stream: Read the text as it is needed instead of tokenising it once to disk; takes a budget and validation text.
        token_cache: Folder of tokenised texts; without it one in the user's cache.
        window_stride: Tokens from one window's beginning to the next; without it context_length, so that windows do
            not overlap.
        prompt_share: Part of the windows that begin like a prompt: with the end-of-text token, wherever they are cut.
        separate_documents: Keep attention within a document, where a window holds several.
        tokenizer: A tokenizer.json, a BERT vocab.txt, a folder with one, or a Hub model. Without it a byte-level BPE
            is trained on data.
        vocab_size: Size of the vocabulary that is trained.
        whole_tokens: Strings that are one token each in a trained vocabulary, such as WikiText's <unk>.
        init_from: A model to go on from, with its architecture and tokenizer: a folder, a tar, a URL or a Hub id.
        embeddings_from: A model with the same tokenizer whose token embeddings are taken: a folder or a Hub id.
        start_from_bigrams: Begin as a bigram model: embeddings and vocabulary projection (which must not be tied) are
            computed from the pairs of tokens in the text.
        freeze_embeddings: Leave the token embeddings as they are.
        preset: Architecture: paper, gpt2, modern or blog.
        context_length: Tokens the model can attend to; with init_from, tokens in a window, no more than its own.
        short_window_share: Part of the run that trains on shorter windows, which are faster, before those of
            context_length.
        short_window_length: Tokens of these windows; a batch of them has about as many tokens as one of the others.
        d_model: Width of the model.
        n_layers: Number of layers.
        n_heads: Number of attention heads.
        n_kv_heads: Number of key-value heads; without it the preset's, or the most below it that divide n_heads.
        d_feed_forward: Width of the feed-forward layers; without it derived from d_model.
        tie_embeddings: Use the token embeddings as vocabulary projection too; without it as the preset does.
        dropout: Without it the preset's, or that of the model that init_from names.
        batch_size: Windows in a batch, over all processes together.
        gradient_accumulation_steps: Batches whose gradients are summed for one step.
        optimizer: adamw, or muon for the matrices of the layers and adamw for the rest.
        learning_rate: The highest, reached after the warm-up.
        embedding_learning_rate: That of the embeddings, and of a vocabulary projection tied to them; without it
            learning_rate.
        schedule: cosine, linear, or wsd (warm-up, stable, decay).
        warmup_ratio: Part of the run in which the learning rate rises.
        decay_ratio: Part of the run in which the learning rate of wsd falls.
        final_learning_rate: Where the schedule ends, as a part of learning_rate.
        weight_decay: Decay of the weights, of matrices alone.
        ema_decay: Validate and save an exponential moving average of the weights with this decay in a step, such as
            0.999; without it the weights themselves.
        beta2: AdamW's decay of the squared gradients.
        max_grad_norm: Largest norm of the gradient.
        max_loss: Stop as diverged when the loss is above this many nats per token; without it three times that of
            guessing.
        max_epochs: End after this many passes over the data; the default, if no other end is given, is one.
        max_steps: End after this many steps.
        max_tokens: End after this many tokens were learned from.
        max_minutes: End after this many minutes.
        max_cost: End when the run has cost so much, in the unit of price_per_hour.
        price_per_hour: What the machine costs in an hour.
        patience: End after this many validations without a better loss.
        validate_every: Steps between validations; without it ten times in the run.
        validation_windows: Windows looked at in each validation, at most.
        sample_prompt: Prompt of the sample that is shown at each validation.
        checkpoint_every: Steps between checkpoints; without it every five minutes. Validations make one too.
        keep_checkpoints: How many of the last checkpoints are kept, besides the best model.
        resume: Insist on going on: an error if output has no checkpoint. A run with the same output goes on anyway.
        restart: Begin again, even if output has checkpoints.
        seed: Of the weights, the dropout and the order of the data: a whole number from 0 to 2^63 - 1.
        precision: auto (bf16 where it is faster), bf16 or fp32.
        compile: Compile the training step with torch.compile; it takes a C++ compiler and about a minute.
        parallel: What several processes do: ddp (each has the whole model) or fsdp (each has a part of every tensor).
        trackers: Also report to these: tensorboard, wandb, trackio. They are installed by the user.
        preflight: Check text, batches and model before the first step. stop: a check that fails stops the run. warn:
            it is a warning, and the run goes on. off: nothing is checked.
        push_to: Publish the trained model on the Hub as user/name, with the token of HF_TOKEN or `hf auth login`.
        push_public: Let everyone see it, if the repository is new.
        device: auto, cpu, cuda or mps.
    """

    data: str
    output: str = "output"
    data_config: str | None = None
    text_column: str | None = None
    clean: Literal["wikipedia"] | None = None
    max_documents: int | None = None
    validation_data: str | None = None
    stream: bool = False
    token_cache: str | None = None
    window_stride: int | None = None
    prompt_share: float = 0.0
    separate_documents: bool = False
    tokenizer: str | None = None
    vocab_size: int = 8192
    whole_tokens: tuple[str, ...] = ()
    init_from: str | None = None
    embeddings_from: str | None = None
    start_from_bigrams: bool = False
    freeze_embeddings: bool = False
    preset: str = "modern"
    context_length: int = 512
    short_window_share: float = 0.0
    short_window_length: int = 256
    d_model: int = 256
    n_layers: int = 6
    n_heads: int = 4
    n_kv_heads: int | None = None
    d_feed_forward: int | None = None
    tie_embeddings: bool | None = None
    dropout: float | None = None
    batch_size: int = 16
    gradient_accumulation_steps: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 2e-3
    embedding_learning_rate: float | None = None
    schedule: str = "cosine"
    warmup_ratio: float = 0.05
    decay_ratio: float = 0.3
    final_learning_rate: float = 0.05
    weight_decay: float = 0.1
    beta2: float = 0.95
    ema_decay: float | None = None
    max_grad_norm: float = 1.0
    max_loss: float | None = None
    max_epochs: float | None = None
    max_steps: int | None = None
    max_tokens: int | None = None
    max_minutes: float | None = None
    max_cost: float | None = None
    price_per_hour: float | None = None
    patience: int | None = None
    validate_every: int | None = None
    validation_windows: int = 64
    sample_prompt: str = "The history of"
    checkpoint_every: int | None = None
    keep_checkpoints: int = 2
    resume: bool = False
    restart: bool = False
    seed: int = 0
    precision: str = "auto"
    compile: bool = False
    parallel: str = "ddp"
    trackers: tuple[str, ...] = ()
    preflight: Literal["stop", "warn", "off"] = "stop"
    push_to: str | None = None
    push_public: bool = False
    device: str = "auto"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # what is written into files at the end is checked at the beginning
            value = getattr(self, field.name)
            for text in value if isinstance(value, tuple) else (value,):
                if isinstance(text, str) and not _is_unicode(text):
                    raise ConfigError(
                        f"{field.name} has bytes that are not text in this locale: {text!r:.80}. Set PYTHONUTF8=1 if "
                        "they are UTF-8, or rename what it names."
                    )
        positive = "batch_size gradient_accumulation_steps context_length learning_rate max_grad_norm"
        limits = "max_loss max_epochs max_steps max_tokens max_minutes max_cost price_per_hour"
        other = "patience validate_every checkpoint_every window_stride embedding_learning_rate max_documents"
        counts = "validation_windows keep_checkpoints"
        for name in f"{positive} {limits} {other} {counts}".split():
            value = getattr(self, name)
            without_bound = name in ("max_grad_norm", "max_loss")
            highest = math.inf if without_bound else sys.float_info.max
            if value is not None and not 0 < value <= highest:
                raise ConfigError(f"{name} must be a number more than 0, not {value}.")
        for name, what in (
            ("warmup_ratio", "part of the run"),
            ("prompt_share", "part of the windows"),
            ("short_window_share", "part of the run"),
        ):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is a {what}, in [0, 1), not {getattr(self, name)}.")
        if not 0 <= self.beta2 < 1 or not 0 <= (self.dropout or 0) < 1:
            name = "dropout" if 0 <= self.beta2 < 1 else "beta2"
            raise ConfigError(f"{name} must be in [0, 1), not {getattr(self, name)}.")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"weight_decay must be a number from 0 on, not {self.weight_decay}.")
        for name, what in (("decay_ratio", "part of the run"), ("final_learning_rate", "part of learning_rate")):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is a {what}, in [0, 1], not {getattr(self, name)}.")
        if self.schedule not in SCHEDULES:
            raise ConfigError(f"schedule must be one of {', '.join(SCHEDULES)}, not {self.schedule!r}.")
        if self.preflight not in PREFLIGHT:
            raise ConfigError(f"preflight must be one of {', '.join(PREFLIGHT)}, not {self.preflight!r}.")
        if self.max_cost and not self.price_per_hour:
            raise ConfigError("max_cost needs price_per_hour: what the machine costs in an hour.")
        if self.start_from_bigrams and (self.stream or self.init_from or self.embeddings_from):
            raise ConfigError("start_from_bigrams excludes stream, init_from and embeddings_from.")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ConfigError(f"ema_decay must be in (0, 1), not {self.ema_decay}.")
        if self.short_window_share and not 0 < self.short_window_length < self.context_length:
            raise ConfigError(
                f"short_window_length must be below context_length ({self.context_length}), "
                f"not {self.short_window_length}."
            )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be a whole number from 0 to 2^63 - 1, not {self.seed!r}.")
        if self.short_window_length < 1:
            raise ConfigError(f"short_window_length must be at least 1, not {self.short_window_length}.")
        if self.push_to is not None and not self.push_to.strip():
            raise ConfigError("push_to is empty: expected the repository to publish to, as user/name.")
        if self.clean not in (None, "wikipedia"):
            raise ConfigError(f"clean must be wikipedia, not {self.clean!r}.")
        if self.resume and self.restart:
            raise ConfigError("resume and restart exclude each other.")

    @property
    def checkpoints(self) -> Path:
        """The folder of what a run that was stopped goes on from."""
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

    def model_config(self, vocab_size: int) -> ModelConfig:
        """The architecture to train from nothing."""
        always = ("context_length", "d_model", "n_layers", "n_heads")
        sizes: dict[str, Any] = {name: getattr(self, name) for name in always}
        for name in ("n_kv_heads", "d_feed_forward", "tie_embeddings", "dropout"):  # where None means the preset's
            if getattr(self, name) is not None:
                sizes[name] = getattr(self, name)
        if self.n_kv_heads is None and "n_kv_heads" in PRESETS.get(self.preset, {}):
            # As many as the preset has, where that many share the heads evenly: of one head, one.
            sizes["n_kv_heads"] = math.gcd(PRESETS[self.preset]["n_kv_heads"], self.n_heads)
        return preset_config(self.preset, vocab_size=vocab_size, **sizes)

    def changed(self) -> dict[str, Any]:
        """The options that are not at their default."""
        fields = ((field.name, getattr(self, field.name), field.default) for field in dataclasses.fields(self))
        return {name: value for name, value, default in fields if value != default}

    def identity(self) -> dict[str, Any]:
        """The options that make this run what it is: with others it could not go on. Of paths, the last part."""
        options = {name: value for name, value in dataclasses.asdict(self).items() if name not in _FREE}
        for name in ("data", "validation_data", "tokenizer", "init_from", "embeddings_from"):
            options[name] = options[name] and Path(options[name]).name
        return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}


def _is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8; bytes of a command line that cannot become lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
