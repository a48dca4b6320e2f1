"""The training loss: the negative log-likelihood of the next token.

Dimensions: B batch · T window
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer.data.batches import IGNORE_INDEX
from transformer.model import Transformer


class LanguageModelLoss(nn.Module):
    """A model and its loss as one module: the unit that is compiled, replicated (DDP) or sharded (FSDP).

    Args:
        bf16: compute under bf16 autocast. An argument, because `torch.compile` cannot compile a query of the hardware
            inside `forward`.
    """

    def __init__(self, model: Transformer, bf16: bool = False) -> None:
        super().__init__()
        self.model, self.bf16 = model, bf16

    def forward(self, inputs: Tensor, targets: Tensor, segment_ids: Tensor | None = None) -> Tensor:
        """Summed negative log-likelihood of the targets, in nats; targets of IGNORE_INDEX are not counted.

        Args:
            inputs, targets: (B, T) token ids.
            segment_ids: (B, T), the document of each token, to which attention is restricted; None: no restriction.
        """
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            hidden, head = self.model.hidden_states(inputs, segment_ids_BT=segment_ids).flatten(0, 1), self.model.head
            # The same as head and cross_entropy, in one operation that PyTorch can fuse.
            return F.linear_cross_entropy(
                hidden,
                head.weight,
                targets.flatten(),
                linear_bias=head.bias,
                ignore_index=IGNORE_INDEX,
                reduction="sum",
            )
