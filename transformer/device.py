"""Selection of the device and the precision."""

from __future__ import annotations

import math
import platform
from pathlib import Path
from typing import Literal, get_args

import torch

from transformer.errors import ConfigError

Precision = Literal["auto", "bf16", "fp32"]


def pick_device(name: str = "auto") -> torch.device:
    """The device `name`; "auto": CUDA if available, else MPS, else the CPU.

    Raises:
        ConfigError: if this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        cause = str(error).partition("\n")[0][:200]  # PyTorch may add a table of what it was built with
        raise ConfigError(f"there is no device {name!r} here: {cause}") from error
    if device.type == "meta":
        raise ConfigError("the device 'meta' computes nothing: choose auto, cpu, cuda or mps.")
    return device


def computes_in_bf16(device: torch.device, precision: Precision = "auto") -> bool:
    """Whether training computes in bf16 (autocast) rather than fp32.

    Args:
        precision: "bf16", "fp32", or "auto": bf16 if the hardware supports it natively.

    Raises:
        ConfigError: if `precision` is none of these.
    """
    if precision not in get_args(Precision):
        raise ConfigError(f"precision must be one of {', '.join(get_args(Precision))}, not {precision!r}.")
    return precision == "bf16" or (precision == "auto" and _has_fast_bf16(device))


def serving_precision(device: torch.device, precision: str = "auto") -> Literal["fp32", "bf16", "int8"]:
    """The precision of the matrix products in inference with PyTorch.

    Args:
        precision: "fp32", "bf16", "int8", or "auto": int8 on a CPU with VNNI, bf16 on a GPU that has it, else fp32.

    Raises:
        ConfigError: if `precision` is none of these.
    """
    if precision == "auto":
        if device.type == "cpu":
            return "int8" if torch.cpu._is_vnni_supported() else "fp32"
        return "bf16" if _has_fast_bf16(device) else "fp32"
    if precision not in ("fp32", "bf16", "int8"):
        raise ConfigError(f"dtype must be auto, fp32, bf16 or int8, not {precision!r}.")
    return precision  # type: ignore[return-value]


def _has_fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Without the bf16 instructions of AVX-512 a CPU emulates bf16, slower than fp32.
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def processor_quota(cgroups: Path = Path("/sys/fs/cgroup")) -> float:
    """The CPU quota of the container, in processors; infinite if there is none. PyTorch counts those of the machine."""
    for path in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # cgroups v2, v1
        try:
            quota, period = " ".join((cgroups / name).read_text(encoding="utf-8") for name in path).split()
            if float(quota) > 0:
                return float(quota) / float(period)
        except (OSError, ValueError):  # ValueError: "max"
            continue
    return math.inf


def describe(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return f"one {torch.cuda.get_device_name(device)}"
    if device.type == "cpu":
        return f"{torch.get_num_threads()} CPU threads ({_processor_name()})"
    return device.type


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
