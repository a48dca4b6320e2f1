"""Checkpoints of the project that this one grew from, imported into the `blog` preset.

Such a file is a pickled dictionary whose "model_state_dict" has one Q, K and V for each head of each layer.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from transformer.errors import CheckpointError
from transformer.hub.pickles import load_pickle
from transformer.model import ModelConfig, Transformer
from transformer.model.config import Heads
from transformer.model.positions import sinusoids

# The original padded with GPT-2's end of text, earlier with BERT's [PAD]: vocabulary size to padding id.
_PADDING_ID = {50257: 50256, 30522: 0}
_MASK_BUFFERS = re.compile(r"\.(causal_)?mask$")  # saved by the original, recomputed here
_RENAMED = {
    "embedding": "token_embedding",
    "output_projection": "head",
    "layer_norm1": "attention_norm",
    "layer_norm2": "feed_forward_norm",
    "feed_forward.0": "feed_forward.up",
    "feed_forward.2": "feed_forward.down",
}
_HEAD_PARTS = {"Q": "query", "K": "key", "V": "value"}


def load_original(path: str | Path, heads: Heads = "average", pad_token_id: int | None = None) -> Transformer:
    """The model of an original checkpoint; its sizes are read from the shapes of its tensors.

    Args:
        heads: "average" as the original ended, or "sum" as it began.
        pad_token_id: the token that the original treated as padding; None: known from the vocabulary size, or none.

    At padding itself, where nothing is ever predicted, the logits are not those of the original.

    Raises:
        CheckpointError: if the file is no such checkpoint; the tensor that is missing or does not fit is named.
    """
    state = _read(Path(path))
    config = _config(state, heads, pad_token_id)
    ours = _rename(state, config)
    model = Transformer(config, initialise=False)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name, shape in expected.items():
        if name not in ours:
            raise CheckpointError(f"{path} is no checkpoint of the original project: it has nothing for {name!r}.")
        if ours[name].shape != shape:
            raise CheckpointError(f"{path}: {name!r} has shape {tuple(ours[name].shape)}, expected {tuple(shape)}.")
    if unknown := sorted(ours.keys() - expected.keys()):
        raise CheckpointError(f"{path} holds {unknown[0]!r}, for which the blog preset has no place.")
    if not torch.allclose(state["pe"].float(), sinusoids(config.context_length, config.d_model), atol=1e-3):
        raise CheckpointError(f"{path}: the positions 'pe' are not the sinusoids of the paper.")
    model.load_state_dict(ours, assign=True)
    return model.eval()


def _read(path: Path) -> dict[str, Tensor]:
    checkpoint = load_pickle(path)
    state = checkpoint.get("model_state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise CheckpointError(f"{path} is no checkpoint of the original project: it has no model_state_dict.")
    return {name: tensor for name, tensor in state.items() if not _MASK_BUFFERS.search(name)}


def _config(state: dict[str, Tensor], heads: Heads, pad_token_id: int | None) -> ModelConfig:

    def numbers(pattern: str) -> set[str]:
        return {match[1] for name in state if (match := re.match(pattern, name))}

    try:
        vocab_size, d_model = state["embedding.weight"].shape
        return ModelConfig.preset(
            "blog",
            vocab_size=vocab_size,
            d_model=d_model,
            context_length=state["pe"].shape[0],
            n_layers=len(numbers(r"decoder_layers\.(\d+)\.")),
            n_heads=len(numbers(r"decoder_layers\.0\.attention_heads\.(\d+)\.")),
            head_dim=state["decoder_layers.0.attention_heads.0.Q.weight"].shape[0],
            d_feed_forward=state["decoder_layers.0.feed_forward.0.weight"].shape[0],
            heads=heads,
            pad_token_id=_PADDING_ID.get(vocab_size) if pad_token_id is None else pad_token_id,
        )
    except KeyError as error:
        raise CheckpointError(f"this is no checkpoint of the original project: it has no tensor {error}.") from error


def _rename(state: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The tensors under our names, the heads of a layer stacked into one matrix."""
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == "pe" or ".attention_heads." in name:
            continue
        module, _, part = name.rpartition(".")
        prefix, layer = "", re.match(r"decoder_layers\.(\d+)\.(.*)", module)
        if layer:
            prefix, module = f"layers.{layer[1]}.", layer[2]
        ours[f"{prefix}{_RENAMED.get(module, module)}.{part}"] = tensor.float()
    for layer_number in range(config.n_layers):
        for theirs, our_part in _HEAD_PARTS.items():
            for part in ("weight", "bias"):
                names = [
                    f"decoder_layers.{layer_number}.attention_heads.{head}.{theirs}.{part}"
                    for head in range(config.n_heads)
                ]
                if all(name in state for name in names):
                    stacked = torch.cat([state[name].float() for name in names])
                    ours[f"layers.{layer_number}.attention.{our_part}.{part}"] = stacked
    return ours
