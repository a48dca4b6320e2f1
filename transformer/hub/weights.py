"""The tensors of a model directory: one safetensors file, or several with an index. They may be untrusted."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from transformer.errors import CheckpointError
from transformer.files import read_json
from transformer.hub.resolve import INDEX, WEIGHTS
from transformer.inference.finite import all_finite
from transformer.model import ModelConfig
from transformer.model.config import GATED

_MAX_TABLE = 2**25  # numbers in the table of positions, which is in no file: 262,144 tokens with heads of 128
_MAX_HEADER = 2**24  # bytes; one tensor needs about a hundred
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_HALF = (torch.bfloat16, torch.float16)
_SLACK = 4  # a config of more than this many times the parameters in the files does not belong to them


def open_weights(directory: Path, config: ModelConfig, device: torch.device | str) -> dict[str, Tensor]:
    """All tensors of a model directory by their names in the files.

    Raises:
        CheckpointError: if a file is missing or damaged, or `config` has far more parameters than the files. This is
            checked before memory is allocated.
    """
    files = [_open(path, device) for path in _files(directory)]
    places = {name: file for file in files for name in file.keys()}  # noqa: SIM118  # it is no mapping
    held = sum(math.prod(file.get_slice(name).get_shape()) for name, file in places.items())
    expected = _count_parameters(config)
    if expected > _SLACK * held:
        raise CheckpointError(
            f"{directory}: config.json describes a model of {expected:,} parameters, the files hold {held:,}."
        )
    table = config.context_length * (config.key_dim if config.positions == "rotary" else config.d_model)
    if table > _MAX_TABLE:
        raise CheckpointError(f"{directory}: a context of {config.context_length:,} tokens is more than fits here.")
    return {name: file.get_tensor(name) for name, file in places.items()}


def as_float(name: str, tensor: Tensor, keep_half: bool = False) -> Tensor:
    """A tensor in fp32.

    Args:
        keep_half: matrices in bf16 and fp16 are not converted: they stay memory-mapped.

    Raises:
        CheckpointError: if its numbers are not floating-point, as in quantized weights, or not finite.
    """
    if tensor.dtype not in _DTYPES:
        raise CheckpointError(f"{name!r} is of {tensor.dtype}, expected floating-point numbers.")
    if not (keep_half and tensor.dtype in _HALF and tensor.dim() > 1):
        tensor = tensor.float()
    if not all_finite(tensor):
        raise CheckpointError(f"{name!r} holds numbers that are NaN or infinite: the weights are damaged.")
    return tensor


def _open(path: Path, device: torch.device | str) -> safe_open:
    try:
        with open(path, "rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > _MAX_HEADER:
            raise CheckpointError(f"{path} is damaged: its header would have {header:,} bytes.")
        return safe_open(path, framework="pt", device=str(device))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}.") from error


def _files(directory: Path) -> list[Path]:
    """The file of the weights, or those that the index names."""
    if (directory / WEIGHTS).exists():
        return [directory / WEIGHTS]
    if not (directory / INDEX).exists():
        raise CheckpointError(f"{directory} is not a model directory: it has no {WEIGHTS}.")
    places = read_json(directory / INDEX).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{directory / INDEX} has no weight_map.")
    names = sorted({str(name) for name in places.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{directory / INDEX} names {name!r}, expected safetensors files beside it.")
        if not (directory / name).exists():
            raise CheckpointError(f"{directory} lacks {name}, one of the {len(names)} files of its weights.")
    return [directory / name for name in names]


def _count_parameters(config: ModelConfig) -> int:
    """The number of parameters in the large matrices."""
    attention = 2 * config.d_model * config.key_dim * (config.n_heads + config.kv_heads)
    feed_forward = (3 if config.activation in GATED else 2) * config.d_model * config.feed_forward_dim
    return config.vocab_size * config.d_model + config.n_layers * (attention + feed_forward)
