"""The devices and processes of a run: `Engine` is one process on one device; `DistributedEngine` is one of several
processes, on Hugging Face Accelerate.

All processes start with equal weights and make the same steps: each computes its rows of a batch, and gradients, losses
and decisions are shared. Sharding is PyTorch's FSDP2 (`fully_shard`), applied here instead of by Accelerate, which
skips it on a CPU and does not know our tied embeddings.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, get_args

import torch
from torch import Tensor, nn

from transformer.device import pick_device
from transformer.errors import ConfigError
from transformer.training.loss import LanguageModelLoss
from transformer.training.option_groups import Parallel

# Accelerate and FSDP are imported where they are used: together they take as long to import as PyTorch itself, and
# `--help`, an option that is refused and a training in one process need none of FSDP.
if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


class Engine:
    """One process on one device, and the interface of several.

    rank, world_size: the number of this process, and how many there are. main: whether this is the first. sharded:
    whether each process has only a shard of every tensor.

    Args:
        device: auto, cpu, cuda or mps, or the device itself.

    Raises:
        ConfigError: if there is no such device.
    """

    def __init__(self, device: torch.device | str = "auto") -> None:
        self.rank, self.world_size, self.main, self.sharded = 0, 1, True, False
        self.device = pick_device(device) if isinstance(device, str) else device

    def prepare(self, module: LanguageModelLoss) -> nn.Module:
        """The module on the device of this process, wrapped for DDP or sharded if there are several processes."""
        return module.to(self.device)

    def gradients(self, module: nn.Module, last: bool) -> AbstractContextManager[None]:
        """The context for a backward pass; gradients are synchronized in the `last` one of a step only."""
        return nullcontext()

    def sum(self, *numbers: float) -> list[float]:
        """Each number summed over the processes."""
        return list(numbers)

    def reshard(self, module: nn.Module) -> None:
        """Free the full tensors that stay after a forward pass without a backward pass, where the module is sharded."""

    def main_first(self) -> AbstractContextManager[None]:
        """A context that the first process runs alone, before the others."""
        return nullcontext()

    def wait(self) -> None:
        """Wait until every process has called this."""

    def log(self, numbers: dict[str, Any], step: int) -> None:
        """Report numbers to the trackers, if there are any."""

    def close(self) -> None:
        """Close the trackers and the process group."""


class DistributedEngine(Engine):
    """The processes of a run, as the launcher started them, and its trackers.

    Args:
        device: auto, cpu, cuda or mps.
        parallel: "ddp": every process has the full model. "fsdp": every process has a shard of each tensor.
        trackers: names of Accelerate's trackers, such as tensorboard, wandb or trackio. folder: where they write.

    Raises:
        ConfigError: if an option is unknown, or there is no such device or tracker.
    """

    def __init__(
        self,
        device: str = "auto",
        parallel: Parallel = "ddp",
        trackers: tuple[str, ...] = (),
        folder: str | Path | None = None,
    ) -> None:
        if parallel not in get_args(Parallel):
            raise ConfigError(f"parallel must be one of {', '.join(get_args(Parallel))}, not {parallel!r}.")
        from accelerate import Accelerator

        super().__init__(device)
        picked = self.device
        try:
            self.accelerator = Accelerator(
                cpu=picked.type == "cpu", mixed_precision="no", log_with=list(trackers) or None, project_dir=folder
            )
            if trackers:
                self.accelerator.init_trackers("decoder-only-transformer")
        except ValueError as error:
            raise ConfigError(f"the trackers {', '.join(trackers)} cannot be used: {error}") from error
        self.rank, self.world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.main = self.accelerator.is_main_process
        # With several processes each has its own device.
        self.device = self.accelerator.device if self.world_size > 1 else picked
        self.sharded = parallel == "fsdp" and self.world_size > 1

    def prepare(self, module: LanguageModelLoss) -> nn.Module:
        module.to(self.device)
        if self.sharded:
            from torch.distributed.fsdp import fully_shard

            mesh = torch.distributed.init_device_mesh(self.device.type, (self.world_size,))
            for layer in module.model.layers:
                fully_shard(layer, mesh=mesh)
            fully_shard(module, mesh=mesh)  # changes the module itself
            return module
        return self.accelerator.prepare_model(module) if self.world_size > 1 else module

    @contextmanager
    def gradients(self, module: nn.Module, last: bool) -> Iterator[None]:
        if self.sharded:
            module.set_requires_gradient_sync(last)  # type: ignore[operator]
            yield
        elif last:
            yield
        else:
            with self.accelerator.no_sync(module):
                yield

    def sum(self, *numbers: float) -> list[float]:
        if self.world_size == 1:
            return list(numbers)
        # MPS has no fp64; it also has no second process.
        return self.accelerator.reduce(torch.tensor(numbers, dtype=torch.float64, device=self.device), "sum").tolist()

    def reshard(self, module: nn.Module) -> None:
        if self.sharded:
            from torch.distributed.fsdp import FSDPModule

            for submodule in module.modules():
                if isinstance(submodule, FSDPModule):
                    submodule.reshard()

    def main_first(self) -> AbstractContextManager[None]:
        return self.accelerator.main_process_first()

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()

    def log(self, numbers: dict[str, Any], step: int) -> None:
        self.accelerator.log(numbers, step=step)

    def close(self) -> None:
        self.accelerator.end_training()


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor, gathered if it is sharded, on the CPU. With FSDP every process has to call this."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if _is_sharded(tensor) else tensor).cpu()


def shard_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A copy of a full tensor on the device of `parameter`, and sharded if `parameter` is."""
    tensor = tensor.to(parameter.device, copy=True)
    if _is_sharded(parameter) and tensor.dim():
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
    return tensor


def _is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether it is a shard; without their module, which `fully_shard` imports, there are none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)
