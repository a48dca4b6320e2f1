"""Reading of pickled PyTorch files (.pt, .bin), without running code in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from transformer.errors import CheckpointError


def load_pickle(path: Path) -> Any:
    """The tensors, numbers and containers in a file, on the CPU.

    Raises:
        CheckpointError: if there is no such file, or it has anything else in it.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"there is no file {path}.") from None
    except Exception as error:  # invalid pickles can raise any exception
        raise CheckpointError(f"{path} is not a checkpoint and cannot be read: {error}") from error
