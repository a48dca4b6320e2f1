"""What changes the weights, and how fast: parameter groups, and the schedule as pure functions."""

from __future__ import annotations

import math

import torch
from torch import nn


def adamw(model: nn.Module, learning_rate: float, weight_decay: float, beta2: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter, 2019) that decays matrices alone: not norms, not biases."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, beta2), fused=True)


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
