"""Which computation serves a model on this machine."""

from __future__ import annotations

from transformer.device import serving_precision
from transformer.inference.native import NativeTransformer, load_kernel
from transformer.inference.packed import PackedTransformer
from transformer.inference.served import ServedTransformer
from transformer.model import Transformer


def pack(model: Transformer, precision: str = "auto") -> ServedTransformer:
    """The model as this machine serves it fastest: by the kernel in C where there is one, else by PyTorch.

    Args:
        precision: of the matrix products, "fp32", "bf16" or "int8"; "auto": the fastest that this machine has.

    Raises:
        ConfigError: if this machine cannot compute in that precision.
    """
    device = model.token_embedding.weight.device
    served = serving_precision(device, precision)
    if device.type == "cpu" and load_kernel() is not None:
        return NativeTransformer(model, served)
    return PackedTransformer(model, served)
