"""Selects the inference backend."""

from __future__ import annotations

import logging

from transformer.device import serving_precision
from transformer.inference.backend import InferenceBackend
from transformer.inference.native import NativeBackend, load_kernel
from transformer.inference.torch_backend import TorchBackend
from transformer.model import Transformer

logger = logging.getLogger("transformer")


def select_backend(model: Transformer, precision: str = "auto") -> InferenceBackend:
    """The fastest backend for this model on this machine: the one in C if it supports both, else the one in PyTorch.

    Args:
        precision: of the weights, "fp32", "bf16" or "int8"; "auto": int8 in C, where it is the fastest with every
            instruction set; in PyTorch that of `serving_precision`.

    Raises:
        ConfigError: if this machine cannot compute in that precision.
    """
    if model.device.type == "cpu" and load_kernel() is not None:
        reason = NativeBackend.unsupported(model.config)
        if reason is None:
            return NativeBackend(model, "int8" if precision == "auto" else serving_precision(model.device, precision))
        logger.info("PyTorch computes this model: the C backend does not support %s.", reason)
    return TorchBackend(model, serving_precision(model.device, precision))
