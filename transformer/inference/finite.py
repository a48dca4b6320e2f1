"""Detection of NaN and infinity in weights and logits."""

from __future__ import annotations

from torch import Tensor

from transformer.errors import CheckpointError

_CHUNK = 2**21  # numbers


def all_finite(tensor: Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinity.

    A finite sum proves it, and is fast. If the sum overflows, as it may in fp16, the numbers are checked in chunks,
    since `isfinite` takes more memory than the tensor.
    """
    tensor = tensor.detach()
    if tensor.sum().isfinite():
        return True
    return all(bool(piece.isfinite().all()) for piece in tensor.flatten().split(_CHUNK))


def expect_finite(scores: Tensor) -> None:
    """Check logits, or values that they are computed from.

    Raises:
        CheckpointError: if one is NaN or infinite.
    """
    if not all_finite(scores):
        raise CheckpointError(
            "the model's scores are not finite numbers: its weights are damaged, or too large for the precision of the "
            "computation (--dtype fp32 has the widest range)."
        )
