"""Model FLOP utilisation, MFU (PaLM, Chowdhery et al., 2022, appendix B)."""

from __future__ import annotations

import time

import torch

from transformer.device import Precision, computes_in_bf16
from transformer.model import Transformer

MATRIX_SIZE = 1024  # of the matrices that are timed
_REPEATS = 5


def flops_per_token(model: Transformer, context: int) -> int:
    """Floating-point operations of forward and backward for one token: 6 N + 12 L H E T.

    N: the parameters of matrix products, which are those of the layers and of the head, without embeddings. The second
    term is attention over T tokens, or over those of a layer's sliding window, and does not subtract the half that a
    causal kernel skips.
    """
    config = model.config
    attended = sum(min(config.window_of(layer) or context, context) for layer in range(config.n_layers))
    multiplied = sum(p.numel() for p in model.layers.parameters() if p.dim() == 2) + model.head.weight.numel()
    return 6 * multiplied + 12 * attended * config.n_heads * config.key_dim


@torch.no_grad()
def measured_peak(device: torch.device, precision: Precision) -> float:
    """FLOP per second of a large matrix product on this device in this precision: the fastest of several."""
    dtype = torch.bfloat16 if computes_in_bf16(device, precision) else torch.float32
    matrix = torch.randn(MATRIX_SIZE, MATRIX_SIZE, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(_REPEATS + 1):  # the first one initializes the library
        _synchronize(device)
        begin = time.perf_counter()
        matrix @ matrix
        _synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return 2 * MATRIX_SIZE**3 / best


def _synchronize(device: torch.device) -> None:
    """Wait for the operations that are queued on an accelerator."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
