"""Checkpoints: the full state of a run in one file. A resumed run computes what the uninterrupted run would have.

A checkpoint is `step-<step>-<checksum>.safetensors`: the weights, the optimizers' tensors, and everything else (the
position in the data, the spent budget, the best loss) as JSON in the file's header. It has no random states: whatever
is random in a step follows from the seed and the number of the step. A file gets its name when it is complete, with its
checksum in the name, so that an incomplete or damaged file is detected and the previous one is used.
"""

from __future__ import annotations

import json
import logging
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from transformer.checksum import checksum
from transformer.errors import CheckpointError
from transformer.files import move_into_place, reason, remove_partial
from transformer.legacy import model_class
from transformer.model import Transformer
from transformer.training.distributed import full_tensor, shard_like

logger = logging.getLogger("transformer")
_NAME = re.compile(r"step-(\d+)-([0-9a-f]{16})\.safetensors")


@dataclass(frozen=True)
class State:
    """The state of a run. tensors: by name. facts: everything else, as JSON."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def get_state_dict(model: Transformer, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Every tensor that training changes, as full tensors on the CPU. With FSDP every process has to call this."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {f"model.{name}": full_tensor(parameter) for parameter, name in names.items()}
    for optimizer in optimizers:
        for parameter, entries in optimizer.state.items():
            for key, value in entries.items():
                tensors[f"optimizer.{names[parameter]}.{key}"] = full_tensor(value)
    return tensors


@torch.no_grad()
def set_state_dict(model: Transformer, optimizers: list[torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    """Load the tensors of `get_state_dict`, which a run with another number of processes may have saved.

    Raises:
        CheckpointError: if they are not those of this model and these optimizers.
    """
    remaining = dict(tensors)
    try:
        for name, parameter in model.named_parameters():
            parameter.copy_(shard_like(remaining.pop(f"model.{name}"), parameter))
        entries: dict[str, dict[str, Tensor]] = {}
        for name, value in remaining.items():
            parameter_name, key = name.removeprefix("optimizer.").rsplit(".", 1)
            entries.setdefault(parameter_name, {})[key] = value
        names = {parameter: name for name, parameter in model.named_parameters()}
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    state = entries.pop(names[parameter], {})
                    optimizer.state[parameter] = {key: shard_like(value, parameter) for key, value in state.items()}
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"the checkpoint is of another model: {error}.") from error
    if entries:
        raise CheckpointError(f"the checkpoint is of another optimizer: it knows {', '.join(sorted(entries)[:3])}.")


def unsharded_copy(model: Transformer) -> Transformer:
    """A copy of a sharded model on the CPU. Every process has to call this."""
    copy = model_class(model.config)(model.config, initialize=False)
    for (_, parameter), (_, sharded) in zip(copy.named_parameters(), model.named_parameters(), strict=True):
        parameter.data = full_tensor(sharded)
    return copy


def remove(directory: Path) -> None:
    """Delete all checkpoints.

    Raises:
        CheckpointError: if one cannot be deleted.
    """
    for path in _files(directory):
        try:
            path.unlink()
        except OSError as error:
            raise CheckpointError(f"{path} cannot be removed: {reason(error)}.") from error


def save(directory: Path, step: int, state: State, keep: int) -> Path:
    """Write a checkpoint, then delete all but the last `keep` ones.

    Raises:
        CheckpointError: if it cannot be written, as on a full disk; earlier ones are kept.
    """
    partial = directory / f".step-{step:08d}.partial"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        remove_partial(directory)
        save_file(state.tensors, partial, metadata={"facts": json.dumps(state.facts)})
        path = directory / f"step-{step:08d}-{checksum(partial)[:16]}.safetensors"
        move_into_place(partial, path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the checkpoint of step {step} cannot be written to {directory}: {reason(error)}."
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    for old in _files(directory)[keep:]:
        with suppress(OSError):  # it is kept, and deleted the next time
            old.unlink(missing_ok=True)
    return path


def exists(directory: Path) -> bool:
    """Whether there is a checkpoint, intact or damaged."""
    return bool(_files(directory))


def load(directory: Path) -> State | None:
    """The newest intact checkpoint; None if there is none."""
    for path in _files(directory):
        if checksum(path)[:16] == _NAME.fullmatch(path.name)[2]:  # type: ignore[index]  # _files matched it
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
                return State(tensors, json.loads(file.metadata()["facts"]))
        logger.warning("%s is damaged (its checksum differs): the previous checkpoint is used.", path)
    return None


def _files(directory: Path) -> list[Path]:
    """The files of checkpoints, the newest first."""
    found = [path for path in directory.glob("step-*.safetensors") if _NAME.fullmatch(path.name) and path.is_file()]
    return sorted(found, key=lambda path: int(_NAME.fullmatch(path.name)[1]), reverse=True)  # type: ignore[index]
