"""What training makes smaller: the negative log-likelihood of the next token.

Dimensions: B batch · T window
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from transformer.device import autocast
from transformer.model import Transformer
from transformer.text.batches import IGNORE


class LanguageModelLoss(nn.Module):
    """A model and its loss as one module: the unit that is compiled, copied to other processes, or sharded.

    Args:
        precision: auto (bf16 where it is faster), bf16 or fp32.
    """

    def __init__(self, model: Transformer, precision: str = "auto") -> None:
        super().__init__()
        self.model, self.precision = model, precision

    def forward(self, inputs: Tensor, targets: Tensor, document: Tensor | None = None) -> Tensor:
        """Summed negative log-likelihood of the targets, in nats; IGNORE is not counted.

        Args:
            inputs, targets: (B, T) token ids. document: (B, T), each token's document, which attention stays within;
                None: attention goes back to the window's beginning.
        """
        with autocast(inputs.device, self.precision):
            hidden, head = self.model.hidden_states(inputs, document_BT=document).flatten(0, 1), self.model.head
            # The same as head and cross_entropy, in one operation that PyTorch can fuse.
            return F.linear_cross_entropy(
                hidden, head.weight, targets.flatten(), linear_bias=head.bias, ignore_index=IGNORE, reduction="sum"
            )
