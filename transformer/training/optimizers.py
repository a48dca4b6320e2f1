"""The optimizers, AdamW and Muon, and their parameter groups."""

from __future__ import annotations

from functools import partial
from typing import assert_never

import torch

from transformer.model import Transformer
from transformer.training.train_config import TrainConfig


def make_optimizers(model: Transformer, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """The optimizers of a run; every parameter that is not frozen is in one group of one optimizer.

    adamw: AdamW (Loshchilov & Hutter, 2019), with weight decay of matrices only, not of norms and biases.
    muon: Muon (Jordan et al., 2024) for the matrices of the layers, AdamW for all other parameters. Updates of Muon are
    scaled to the size of AdamW's (Liu et al., 2025), so that both have the same learning rate.

    Each group has its peak learning rate as "initial_lr", from which `set_learning_rate` sets "lr".
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
        # A step decays weights by rate · decay: a higher rate of the embeddings does not change their decay.
        group([p for p in matrices if id(p) in embeddings], embedding_rate, decay * rate / embedding_rate),
        group([p for p in matrices if id(p) not in embeddings | layers], rate, decay),  # an untied head
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
    """The embeddings of tokens and of positions that are not frozen."""
    named = model.named_parameters()
    return [parameter for name, parameter in named if "embedding" in name and parameter.requires_grad]


def set_learning_rate(optimizers: list[torch.optim.Optimizer], fraction: float) -> None:
    """Set the learning rate of every group to this fraction of its peak."""
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = fraction * group["initial_lr"]
