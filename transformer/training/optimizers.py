"""What changes the weights, and how fast: parameter groups, and the schedule as pure functions."""

from __future__ import annotations

import math

import torch

from transformer.errors import ConfigError
from transformer.model import Transformer

OPTIMIZERS = ("adamw", "muon")


def make_optimizers(
    model: Transformer, name: str, learning_rate: float, weight_decay: float, beta2: float
) -> list[torch.optim.Optimizer]:
    """The optimizers that together update every weight once.

    adamw: AdamW (Loshchilov & Hutter, 2019), which decays matrices alone: not norms, not biases.
    muon: Muon (Jordan et al., 2024) for the matrices of the layers, AdamW for the rest. Its updates are scaled to the
    size of AdamW's (Liu et al., 2025), so that one learning rate serves both.

    Raises:
        ConfigError: if there is no optimizer of that name.
    """
    if name not in OPTIMIZERS:
        raise ConfigError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, not {name!r}.")
    hidden = [p for p in model.layers.parameters() if p.dim() == 2] if name == "muon" else []
    taken = {id(p) for p in hidden}
    others = [p for p in model.parameters() if id(p) not in taken]
    groups = [
        {"params": [p for p in others if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in others if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, beta2), fused=True)
    ]
    if hidden:
        muon = torch.optim.Muon(hidden, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        optimizers.append(muon)
    return optimizers


def warmup_cosine(progress: float, warmup: float, final: float) -> float:
    """The learning rate as a part of its highest, at `progress` through the run, both in [0, 1].

    It rises in a straight line during `warmup`, then falls along half a cosine to `final`.
    """
    if progress < warmup:
        return progress / warmup
    falling = min(1.0, (progress - warmup) / (1.0 - warmup))
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * falling))


def progress(step: int, seconds: float, max_steps: int | None, max_minutes: float | None) -> float:
    """How far a run is, in [0, 1], by the budget of which most is spent."""
    parts = [step / max_steps] if max_steps else []
    parts += [seconds / (60 * max_minutes)] if max_minutes else []
    return min(1.0, max(parts, default=0.0))
