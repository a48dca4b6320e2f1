"""The token embedding of any pretrained model, to initialize a new model with.

Dimensions: V vocabulary of the pretrained model · D its width
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from transformer.errors import CheckpointError, ConfigError
from transformer.hub.resolve import INDEX, WEIGHTS, fetch
from transformer.model import Transformer

# The ends of names of token embeddings; the first one that a model has is used.
_NAMES = (
    "shared",  # T5, BART: shared by encoder and decoder, which also have it under names of their own
    "wte",  # GPT-2
    "embed_tokens",  # Llama, Qwen, Mistral, Gemma, OPT
    "word_embeddings",  # BERT, RoBERTa, BLOOM, Falcon
    "token_embedding",  # CLIP; our own
    "tok_embeddings",  # ModernBERT
    "embed_in",  # GPT-NeoX, Pythia
)


def pretrained_embeddings(source: str) -> Tensor:
    """The input token embedding (V, D) of a pretrained model of any architecture, as float32 on the CPU.

    Only this tensor is read, and of a model in several files on the Hub only the file with it is downloaded. Weights
    have to be in safetensors; pickles are not read.

    Args:
        source: as in `fetch`: a folder, a tar, a URL, or a Hub id such as google-bert/bert-base-uncased.

    Raises:
        CheckpointError: if there is no model, or it does not have exactly one token embedding.
    """
    directory = fetch(source, ("config.json", WEIGHTS, INDEX))
    if (directory / WEIGHTS).exists():
        table = _from_safetensors(directory / WEIGHTS)
    elif (directory / INDEX).exists():
        shard = _shard(directory / INDEX)
        table = _from_safetensors(fetch(source, ("config.json", shard)) / shard)
    else:
        raise CheckpointError(f"{source} has no weights: expected {WEIGHTS} or {INDEX}; pickles (.bin) are not read.")
    if table.dim() != 2 or not table.is_floating_point():
        raise CheckpointError(
            f"the token embedding of {source} is {table.dtype} of shape {tuple(table.shape)}, expected a matrix of "
            "floats: take a model that is not quantised."
        )
    return table.float()


@torch.no_grad()
def use_embeddings(model: Transformer, table: Tensor) -> None:
    """Copy pretrained embeddings (V, D) into the model; a tied head has them too.

    The table may have more rows than the model has tokens, since published tables are often padded at the end. It is
    not scaled, even if the model multiplies its embeddings by sqrt(d_model).

    Raises:
        ConfigError: if the table is not as wide as the model, or has fewer rows than the model has tokens.
    """
    rows, width = table.shape
    config = model.config
    if width != config.d_model:
        raise ConfigError(
            f"the pretrained embeddings are {width} wide, the model {config.d_model}: set d_model {width}."
        )
    if rows < config.vocab_size:
        raise ConfigError(
            f"the pretrained embeddings are of {rows:,} tokens, the model has {config.vocab_size:,}: use the tokenizer "
            "of the model that the embeddings are from."
        )
    model.token_embedding.weight.copy_(table[: config.vocab_size])


def _name(names: Iterable[str], where: Path) -> str:
    """The name of the token embedding among the names of a model's tensors."""
    found = list(names)
    for ending in _NAMES:
        if matches := [name for name in found if f".{name}".endswith(f".{ending}.weight")]:
            if len(matches) > 1:
                raise CheckpointError(f"{where} has several token embeddings, {' and '.join(matches)}: expected one.")
            return matches[0]
    raise CheckpointError(
        f"{where} has no token embedding: none of its {len(found)} tensors is called {', '.join(_NAMES)}."
    )


def _from_safetensors(path: Path) -> Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(_name(file.keys(), path))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is missing or damaged: {error}.") from error


def _shard(index: Path) -> str:
    """The name of the file with the token embedding, of a model in several files."""
    try:
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return Path(files[_name(files, index)]).name  # without folders, since the index is untrusted
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index} is not an index of weights: {error}.") from error
