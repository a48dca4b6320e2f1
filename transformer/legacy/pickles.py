"""The older format of PyTorch, read as data: what is foreign may come in it, and nothing of ours is written in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from transformer.errors import CheckpointError


def load_pickle(path: Path) -> Any:
    """What a .pt or .bin file holds, on the CPU: tensors, numbers and containers of them; no code is run.

    Raises:
        CheckpointError: if there is no such file, or it holds anything else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"there is no file {path}.") from None
    except Exception as error:  # bytes that are no pickle can raise anything
        raise CheckpointError(f"{path} is not a checkpoint and cannot be read: {error}") from error
