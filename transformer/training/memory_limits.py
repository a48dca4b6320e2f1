"""The memory that a run needs and has, and reuse of freed memory from step to step."""

from __future__ import annotations

import ctypes
import dataclasses
import math
import platform
from pathlib import Path

import torch

from transformer.errors import ConfigError
from transformer.legacy import model_class
from transformer.model import ModelConfig

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # parameters of mallopt(3)


def keep_freed_memory() -> None:
    """Configure glibc's malloc to keep large freed blocks instead of returning them to the system.

    Every step allocates the same hundreds of megabytes of logits and activations. If they are returned each time, the
    system zeroes every page again, which takes longer than some of the matrix products.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_TOP_PAD, 2**28)


def check_memory(config: ModelConfig, device: torch.device) -> None:
    """Check that a model fits in memory before it is built, which may take minutes and then fail.

    Raises:
        ConfigError: if its weights and their gradients alone need more memory than is free.
    """
    free = free_bytes(device)
    try:
        one, two = (_count_elements(dataclasses.replace(config, n_layers=layers)) for layers in (1, 2))
        needed = 8.0 * (one + (config.n_layers - 1) * (two - one))  # bytes of a parameter and its gradient in fp32
    except (RuntimeError, OverflowError, TypeError):  # a tensor with more elements than PyTorch can count
        needed = math.inf
    if needed > (math.inf if free is None else free) or math.isinf(needed):
        size = "more than can be counted" if math.isinf(needed) else f"{needed / 1e9:,.0f} GB"
        raise ConfigError(
            f"a model of this size needs {size} for its weights and their gradients"
            + (f", and {free / 1e9:,.0f} GB are free" if free is not None else "")
            + ": choose a smaller d_model, n_layers, d_feed_forward, context_length or vocab_size."
        )


def _count_elements(config: ModelConfig) -> int:
    """The elements of a model's parameters and buffers, counted on the meta device."""
    with torch.device("meta"):
        model = model_class(config)(config, initialize=False)
    return sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))


def free_bytes(device: torch.device) -> float | None:
    """The free memory of the GPU, or of this machine or container, in bytes; None: unknown."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    found = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        found += [1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
    except OSError:
        return None
    for folder, limit, used in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            in_use, stat, most = (
                Path(folder, name).read_text(encoding="utf-8") for name in (used, "memory.stat", limit)
            )
            found.append(float(most) - float(in_use) + file_cache_bytes(stat))
        except (OSError, ValueError):  # no such limit, or "max"
            continue
    return min(found, default=None)


def file_cache_bytes(statistics: str) -> float:
    """Bytes of the file cache in a cgroup's `memory.stat`, which the system frees when memory is needed."""
    sizes = dict(line.split() for line in statistics.splitlines())
    return sum(float(sizes.get(f"total_{name}", sizes.get(name, 0))) for name in ("inactive_file", "active_file"))
