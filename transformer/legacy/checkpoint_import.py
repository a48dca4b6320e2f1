"""Import of checkpoints of the original project into `BlogTransformer`.

Such a file is a pickled dictionary whose "model_state_dict" has one Q, K and V for each head of each layer.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import torch
from torch import Tensor

from transformer.errors import CheckpointError, ConfigError
from transformer.legacy.blog_model import BlogConfig, BlogTransformer, Heads
from transformer.legacy.pickles import load_pickle
from transformer.model.positions import sinusoids

logger = logging.getLogger("transformer")
# Padding ids by vocabulary size: GPT-2's end of text, and in earlier versions BERT's [PAD].
_PADDING_ID = {50257: 50256, 30522: 0}
_MASK_BUFFERS = re.compile(r"(^|\.)(causal_)?mask$")  # saved by the original, recomputed here
# Prefixes of tensor names by torch.compile, (Distributed)DataParallel, FSDP and activation checkpointing.
_WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_LAYERS, _EARLIER_LAYERS = "decoder_layers.", "decoder."
_RENAMED = {
    "embedding": "token_embedding",
    "output_projection": "head",
    "layer_norm1": "attention_norm",
    "layer_norm2": "feed_forward_norm",
    "feed_forward.0": "feed_forward.up",
    "feed_forward.2": "feed_forward.down",
}
_HEAD_PARTS = {"Q": "query", "K": "key", "V": "value"}


def load_original(path: str | Path, heads: Heads | None = None, pad_token_id: int | None = None) -> BlogTransformer:
    """The model of an original checkpoint, with sizes from the shapes of its tensors.

    Earlier versions of the original have layers named `decoder.0`, `decoder.1`, ...; they summed the heads and did not
    mask padding. Later ones have `decoder_layers.0`, ..., average the heads, and mask padding. Logits at padding itself
    are those of the original only if padding is not masked.

    Args:
        heads: "average" or "sum"; None: by the names of the layers.
        pad_token_id: the padding id; None: by the vocabulary size, and no padding for an earlier version.

    Raises:
        CheckpointError: if the file is not such a checkpoint, with the name of a tensor that is missing or invalid.
    """
    state, is_earlier = _with_later_names(_read(Path(path)), Path(path))
    if is_earlier:
        logger.warning(
            "%s has the layer names of an earlier version of the original project. %s, %s.",
            path,
            "Heads are summed (the default for such a checkpoint)" if heads is None else f"Heads: {heads} (as given)",
            "padding is not masked" if pad_token_id is None else f"the padding token is {pad_token_id} (as given)",
        )
    elif pad_token_id is None and "embedding.weight" in state:
        pad_token_id = _PADDING_ID.get(len(state["embedding.weight"]))
    heads = heads or ("sum" if is_earlier else "average")
    config = _config(state, heads, pad_token_id)
    ours = _rename(state, config)
    model = BlogTransformer(config, initialize=False)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name, shape in expected.items():
        if name not in ours:
            raise CheckpointError(
                f"{path} is not a checkpoint of the original project: the tensor {name!r} is missing."
            )
        if ours[name].shape != shape:
            raise CheckpointError(f"{path}: {name!r} has shape {tuple(ours[name].shape)}, expected {tuple(shape)}.")
    if unknown := sorted(ours.keys() - expected.keys()):
        raise CheckpointError(f"{path} has the tensor {unknown[0]!r}, which is not part of the blog preset.")
    if not torch.allclose(
        state["pe"].float().flatten(0, -2), sinusoids(config.context_length, config.d_model), atol=1e-3
    ):
        raise CheckpointError(f"{path}: the tensor 'pe' does not contain the sinusoidal positions of the paper.")
    model.load_state_dict(ours, assign=True)
    return model.eval()


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint or state_dict, by their names without prefixes of wrappers."""
    checkpoint = load_pickle(path)
    state = checkpoint.get("model_state_dict", checkpoint) if isinstance(checkpoint, dict) else None
    if (
        not isinstance(state, dict)
        or not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items())
        or (state is checkpoint and not any(name.endswith("embedding.weight") for name in state))
    ):
        raise CheckpointError(f"{path} is no checkpoint of the original project: it has no model_state_dict.")
    found: dict[str, Tensor] = {}
    for wrapped, tensor in state.items():
        name = ".".join(part for part in wrapped.split(".") if part not in _WRAPPERS)
        if name in found:
            raise CheckpointError(f"{path} holds {name!r} twice, the second time as {wrapped!r}.")
        if not _MASK_BUFFERS.search(name):
            found[name] = tensor
    return found


def _with_later_names(state: dict[str, Tensor], path: Path) -> tuple[dict[str, Tensor], bool]:
    """The tensors by the names of later versions, and whether they had those of an earlier version."""
    earlier = [name for name in state if re.match(r"decoder\.\d+\.", name)]
    if not earlier:
        return state, False
    if later := next((name for name in state if name.startswith(_LAYERS)), None):
        raise CheckpointError(f"{path} holds both {earlier[0]!r} and {later!r}: expected the layers of one model.")
    renamed = {_LAYERS + name.removeprefix(_EARLIER_LAYERS) if name in earlier else name: state[name] for name in state}
    return renamed, True


def _config(state: dict[str, Tensor], heads: Heads, pad_token_id: int | None) -> BlogConfig:

    def numbers(pattern: str) -> set[str]:
        return {match[1] for name in state if (match := re.match(pattern, name))}

    try:
        vocab_size, d_model = state["embedding.weight"].shape
        return BlogConfig(
            vocab_size=vocab_size,
            d_model=d_model,
            context_length=state["pe"].shape[-2],
            n_layers=len(numbers(r"decoder_layers\.(\d+)\.")),
            n_heads=len(numbers(r"decoder_layers\.0\.attention_heads\.(\d+)\.")),
            head_dim=state["decoder_layers.0.attention_heads.0.Q.weight"].shape[0],
            d_feed_forward=state["decoder_layers.0.feed_forward.0.weight"].shape[0],
            heads=heads,
            pad_token_id=pad_token_id,
        )
    except ConfigError as error:
        raise CheckpointError(f"this is no checkpoint of the original project: {error}") from error
    except KeyError as error:
        raise CheckpointError(f"this is no checkpoint of the original project: it has no tensor {error}.") from error


def _rename(state: dict[str, Tensor], config: BlogConfig) -> dict[str, Tensor]:
    """The tensors by our names, with the heads of a layer concatenated."""
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
