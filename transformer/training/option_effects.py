"""Options that would have no effect beside the other options are errors."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from transformer.errors import ConfigError
from transformer.training.option_metadata import Mark
from transformer.training.train_config import OPTIONS, TrainConfig

_OF_INITIAL_MODEL = tuple(name for name, option in OPTIONS.items() if Mark.OF_INITIAL_MODEL in option.metadata)


@dataclass(frozen=True)
class _Rule:
    """Options without effect if `applies`. where: that condition in words. cure: what to do to keep the options."""

    names: tuple[str, ...]
    applies: Callable[[TrainConfig], object]
    where: str
    cure: str


_RULES = (
    _Rule(
        _OF_INITIAL_MODEL,
        lambda config: config.model.init_from,
        "with --init-from, which takes the architecture and the tokenizer from the model",
        "or leave out --init-from to train from random weights",
    ),
    _Rule(
        ("vocab_size", "whole_tokens"),
        lambda config: config.text.tokenizer and not config.model.init_from,
        "with --tokenizer, which is used as it is",
        "or leave out --tokenizer to train one on the text",
    ),
    _Rule(
        ("window_stride", "prompt_share", "token_cache", "clean", "max_documents", "short_window_share"),
        lambda config: config.text.stream,
        "with --stream, which cuts the text into windows as it is read and keeps nothing on disk",
        "or leave out --stream",
    ),
    _Rule(
        ("decay_ratio",),
        lambda config: config.optimization.schedule != "wsd",
        "without --schedule wsd, the only schedule with a decay phase",
        "or add --schedule wsd",
    ),
    _Rule(
        ("final_learning_rate",),
        lambda config: config.optimization.schedule == "wsd" and config.optimization.decay_ratio == 0,
        "with --decay-ratio 0, which never decreases the learning rate",
        "or give another --decay-ratio",
    ),
    _Rule(
        ("short_window_length",),
        lambda config: not config.text.short_window_share,
        "without --short-window-share",
        "or add --short-window-share 0.5",
    ),
    _Rule(
        ("window_stride",),
        lambda config: config.text.short_window_share,
        "with --short-window-share, whose windows do not overlap",
        "or leave out --short-window-share",
    ),
    _Rule(
        ("push_public",),
        lambda config: config.run.push_public and not config.run.push_to,
        "without --push-to: nothing is published",
        "or add --push-to user/name",
    ),
    _Rule(
        ("data_config",),
        lambda config: Path(config.text.data).is_file(),
        "with a file as --data: only a data set of the Hub has configurations",
        "or name a data set of the Hub as --data",
    ),
    _Rule(
        ("embedding_learning_rate",),
        # GPT-2's positions are embeddings too, and are not frozen.
        lambda config: config.model.freeze_embeddings and not config.model.init_from and config.model.preset != "gpt2",
        "with --freeze-embeddings: no other parameters are trained at that rate",
        "or leave out --freeze-embeddings",
    ),
    _Rule(
        ("parallel",),
        lambda config: config.run.parallel == "fsdp" and _world_size() == 1,
        "in one process, which holds the whole model",
        "or start several: torchrun --nproc-per-node 2 train.py ...",
    ),
    _Rule(
        ("device",),
        lambda config: ":" in config.run.device and _world_size() > 1,
        "in several processes, each of which has a GPU of its own",
        "or give the kind of device alone, such as --device cuda",
    ),
)


def refuse_without_effect(config: TrainConfig, given: Collection[str], in_file: Collection[str] = ()) -> None:
    """Check that every option that was given has an effect.

    Args:
        given: names of the options that were given, also those with their default as value. Options with any other
            value count as given.
        in_file: those that are in the file or preset of --config.

    Raises:
        ConfigError: with the names of options without effect, and what to do.
    """
    values = config.options()
    given = {name for name in given if values[name] not in (None, ())} | config.changed().keys()
    for rule in _RULES:
        names = [name for name in rule.names if name in given]
        if names and rule.applies(config):
            listed = [flag(name) + (" (from --config)" if name in in_file else "") for name in names]
            has, them = ("has", "it") if len(names) == 1 else ("have", "them")
            hint = ""
            if any(name in in_file for name in names):
                hint = " For the other options of that --config, copy its file and leave these lines out of the copy."
            raise ConfigError(f"{_joined(listed)} {has} no effect {rule.where}. Leave {them} out, {rule.cure}.{hint}")


def _world_size() -> int:
    """The number of processes that torchrun or accelerate started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def flag(name: str) -> str:
    """The name of an option on the command line."""
    return f"--{name.replace('_', '-')}"


def _joined(words: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
