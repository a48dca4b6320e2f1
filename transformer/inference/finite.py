"""Detection of NaN and infinity in weights and scores."""

from __future__ import annotations

from torch import Tensor

from transformer.errors import CheckpointError

_LOOKED_AT = 2**21  # numbers at a time


def all_finite(tensor: Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinity. Its sum is fast, and sufficient in almost all cases.

    Where the sum overflows, as it may of a large matrix in fp16, a few numbers are examined at a time: `isfinite` takes
    more memory than the tensor.
    """
    tensor = tensor.detach()
    if tensor.sum().isfinite():
        return True
    return all(bool(piece.isfinite().all()) for piece in tensor.flatten().split(_LOOKED_AT))


def expect_finite(scores: Tensor) -> None:
    """Check the scores of a model, or values that they are computed from.

    Raises:
        CheckpointError: if there is NaN or infinity.
    """
    if not all_finite(scores):
        raise CheckpointError(
            "the model's scores are not finite numbers: its weights are damaged, or too large for the precision of the "
            "computation (--dtype fp32 has the widest range)."
        )
