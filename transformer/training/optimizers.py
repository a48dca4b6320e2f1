"""What changes the weights: AdamW and Muon, and which weights each gets."""

from __future__ import annotations

from functools import partial
from typing import assert_never

import torch

from transformer.model import Transformer
from transformer.training.train_config import TrainConfig


def make_optimizers(model: Transformer, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """The optimizers that together update every weight once, frozen ones aside.

    adamw: AdamW (Loshchilov & Hutter, 2019), which decays matrices alone: not norms, not biases.
    muon: Muon (Jordan et al., 2024) for the matrices of the layers, AdamW for the rest. Its updates are scaled to the
    size of AdamW's (Liu et al., 2025), so that one learning rate serves both.

    Each group keeps its highest rate as "initial_lr"; `set_learning_rate` makes the present one of it.
    """
    rate, decay = config.optimization.learning_rate, config.optimization.weight_decay
    embedding_rate = config.optimization.embedding_learning_rate or rate
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    layers = {id(parameter) for parameter in model.layers.parameters()}
    embeddings = {id(parameter) for parameter in trained_embeddings(model)}
    matrices = [p for p in trained if p.dim() == 2]

    def group(parameters: list[torch.nn.Parameter], rate: float, decay: float) -> dict[str, object]:
        return {"params": parameters, "lr": rate, "initial_lr": rate, "weight_decay": decay}

    groups = [
        # What decays in a step is rate times decay: embeddings are not to decay faster because they learn faster.
        group([p for p in matrices if id(p) in embeddings], embedding_rate, decay * rate / embedding_rate),
        group([p for p in matrices if id(p) not in embeddings | layers], rate, decay),  # a head that is not tied
        group([p for p in trained if p.dim() < 2], rate, 0.0),
    ]
    hidden = group([p for p in matrices if id(p) in layers], rate, decay)
    adamw = partial(torch.optim.AdamW, betas=(0.9, config.optimization.beta2), fused=True)
    match config.optimization.optimizer:
        case "adamw":
            return [adamw([*groups, hidden])]
        case "muon":
            return [adamw(groups), torch.optim.Muon([hidden], adjust_lr_fn="match_rms_adamw")]
        case unknown:
            assert_never(unknown)


def trained_embeddings(model: Transformer) -> list[torch.nn.Parameter]:
    """The embeddings of tokens and of positions, but for frozen ones."""
    named = model.named_parameters()
    return [parameter for name, parameter in named if "embedding" in name and parameter.requires_grad]


def set_learning_rate(optimizers: list[torch.optim.Optimizer], part: float) -> None:
    """Give every group this part of its highest learning rate."""
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = part * group["initial_lr"]
