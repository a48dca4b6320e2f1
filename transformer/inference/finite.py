"""Numbers that are none: NaN and infinity among weights and scores."""

from __future__ import annotations

from torch import Tensor

from transformer.errors import CheckpointError


def all_finite(tensor: Tensor) -> bool:
    """Whether there is neither NaN nor infinity in a tensor. Its sum is quick, and says so for nearly all of them."""
    tensor = tensor.detach()
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def expect_finite(scores: Tensor) -> None:
    """Refuse scores, or what they are computed from, among which are NaN or infinity.

    Raises:
        CheckpointError: if there are.
    """
    if not all_finite(scores):
        raise CheckpointError(
            "the model's scores for the next token are not finite numbers: its weights are damaged, or too large for "
            "the precision that it is computed in (--dtype fp32 has the widest range)."
        )
