"""Reading and writing of model directories in the format of Hugging Face:

config.json · model.safetensors · tokenizer.json · tokenizer_config.json · generation_config.json · README.md
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from transformer.data.tokenizer import Tokenizer
from transformer.errors import CheckpointError
from transformer.files import atomic_write, read_json, write_json
from transformer.hub.architectures import adapter_for, default_adapter
from transformer.hub.resolve import WEIGHTS
from transformer.hub.weights import open_weights
from transformer.inference import DEFAULT_SAMPLING
from transformer.legacy import model_class
from transformer.model import ModelConfig, Transformer

_SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty")  # the defaults that transformers has too


def save(model: Transformer, tokenizer: Tokenizer | None, directory: str | Path, model_type: str | None = None) -> None:
    """Write the model directory: each file atomically, the weights last. Without a tokenizer it has weights and config.

    Args:
        model_type: the Hub's name of the architecture; for a model that was loaded, that of `read_model_type`. None:
            the default for a newly built model.

    Raises:
        ConfigError: if a model of this type cannot compute what the model does.
        WriteError: if a file cannot be written.
    """
    directory = Path(directory)
    adapter = adapter_for(model_type) if model_type else default_adapter(model.config)
    fields = adapter.hub_config(model.config)
    ids: dict[str, Any] = {}
    ends: dict[str, Any] = {}
    if tokenizer is not None:
        tokenizer.save(directory)
        ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.end_of_text_id}
        if tokenizer.pad_id is not None:
            ids["pad_token_id"] = tokenizer.pad_id
        others = sorted(tokenizer.end_ids - {tokenizer.end_of_text_id})
        ends = {"eos_token_id": [tokenizer.end_of_text_id, *others]} if others else {}
    sampling = {name: getattr(DEFAULT_SAMPLING, name) for name in _SAMPLING}
    write_json(directory / "config.json", {**fields, **ids})
    write_json(directory / "generation_config.json", {**ids, **ends, "do_sample": True, **sampling})
    state = adapter.export_state(model.state_dict(), model.config)
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    with atomic_write(directory / WEIGHTS) as path:
        save_file(tensors, path, metadata={"format": "pt"})


def read_model_type(directory: str | Path) -> str:
    """The Hub's name of the architecture of a model directory, for `save`.

    Raises:
        CheckpointError: if there is no config.json, or the architecture is not one of `hub.architectures`.
    """
    return adapter_for(read_json(Path(directory) / "config.json").get("model_type")).model_type


def load(
    directory: str | Path, device: torch.device | str = "cpu", keep_half: bool = False
) -> tuple[Transformer, Tokenizer]:
    """Load a model directory of one of the architectures in `hub.architectures`. The model is in evaluation mode.

    Args:
        keep_half: matrices in bf16 or fp16 are not converted, and stay memory-mapped. Such a model cannot compute; an
            inference backend is built from it.

    Raises:
        CheckpointError: if a file is missing or damaged, or the architecture is not supported.
    """
    directory = Path(directory)
    model = load_model(directory, device, keep_half)
    return model, Tokenizer.load(directory)


def load_model(directory: str | Path, device: torch.device | str = "cpu", keep_half: bool = False) -> Transformer:
    """Load the model of a model directory, without its tokenizer. Arguments as `load`."""
    directory = Path(directory)
    fields = read_json(directory / "config.json")
    adapter = adapter_for(fields.get("model_type"))
    config = adapter.model_config(fields)
    tensors = open_weights(directory, config, device)
    model = _without_weights(config)
    try:
        state = adapter.import_state(tensors, config, model.state_dict(), keep_half)
    except CheckpointError as error:
        raise CheckpointError(f"{directory}: {error}") from error
    del tensors
    if config.tie_embeddings:
        held = [state[name] for name in ("token_embedding.weight", "head.weight") if name in state]
        if held[0] is held[-1] or torch.equal(*held):  # the file has one matrix, or it twice
            state["token_embedding.weight"] = state["head.weight"] = held[0]
        else:  # as in transformers: two different matrices are not tied, whatever config.json says
            config = dataclasses.replace(config, tie_embeddings=False)
            model = _without_weights(config)
    if keep_half:  # what a backend shares with the model must not keep the mapping of all weights
        state = {name: tensor.clone() if _is_small(name, tensor) else tensor for name, tensor in state.items()}
    model.load_state_dict(state, assign=True)
    if config.tie_embeddings:
        model.head.weight = model.token_embedding.weight  # which load_state_dict has made two parameters
    return model.to(device).eval()


def _is_small(name: str, tensor: Tensor) -> bool:
    """Whether it is a norm, a bias or a table of positions, which backends do not pack."""
    return tensor.dim() == 1 or name.startswith("position_embedding.")


def _without_weights(config: ModelConfig) -> Transformer:
    """A model whose parameters are on the meta device until they are assigned."""
    with _OnMeta():
        model: Transformer = model_class(config)(config, initialize=False)
    return model


class _OnMeta(TorchFunctionMode):
    """Creates uninitialised tensors, such as new parameters, on the meta device, and others as usual."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        where = {"device": "meta"} if function is torch.empty else {}
        return function(*args, **{**(kwargs or {}), **where})
