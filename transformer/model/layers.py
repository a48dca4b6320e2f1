"""One layer of the decoder: attention, then a feed-forward network, each in a residual connection.

Dimensions: B batch · T tokens · D d_model · F d_feed_forward
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer.errors import ConfigError
from transformer.model.attention import LayerCache, MultiHeadAttention
from transformer.model.config import ModelConfig
from transformer.model.linear import Linear
from transformer.model.positions import Rotary


def make_norm(config: ModelConfig) -> nn.Module:
    """LayerNorm (Ba et al., 2016) or RMSNorm (Zhang & Sennrich, 2019) over the last dimension."""
    match config.norm:
        case "rms":
            return nn.RMSNorm(config.d_model, eps=config.norm_eps)
        case "layer":
            return nn.LayerNorm(config.d_model, eps=config.norm_eps)
        case other:
            raise ConfigError(f"there is no norm {other!r}.")


class Dropout(nn.Dropout):
    """While training, each number becomes 0 with probability p, and the others grow by 1 / (1 - p) (5.4).

    On a CPU one random byte decides on each number, so that there p is a multiple of 1/256: PyTorch's own dropout draws
    a float for each, which took a sixth of a training step.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0 or input.device.type != "cpu":
            return super().forward(input)
        zeros = max(1, round(256 * self.p))  # of 256 bytes
        words = torch.randint(-(2**63), 2**63 - 1, (-(-input.numel() // 8),))  # of eight bytes
        kept = words.view(torch.uint8)[: input.numel()].view(input.shape) >= zeros
        return input * kept * (256 / (256 - zeros))


class FeedForward(nn.Module):
    """The same two-layer network at every position (Attention Is All You Need, 3.3).

    relu: max(0, x W1 + b1) W2 + b2. gelu: GPT-2's tanh approximation in its place.
    swiglu: (silu(x G) * x W1) W2, a gated unit (GLU Variants Improve Transformer, Shazeer, 2020).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation, bias = config.activation, bool(config.feed_forward_bias)
        self.up = Linear(config.d_model, config.feed_forward_dim, bias=bias)
        if config.activation == "swiglu":
            self.gate = Linear(config.d_model, config.feed_forward_dim, bias=bias)
        self.down = Linear(config.feed_forward_dim, config.d_model, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        hidden_BTF = self.up(x_BTD)
        if self.activation == "swiglu":
            hidden_BTF = F.silu(self.gate(x_BTD)) * hidden_BTF
        elif self.activation == "gelu":
            hidden_BTF = F.gelu(hidden_BTF, approximate="tanh")
        elif self.activation == "relu":
            hidden_BTF = F.relu(hidden_BTF)
        else:
            raise ConfigError(f"the feed-forward layer does not know the activation {self.activation!r}.")
        return self.down(hidden_BTF)


class DecoderLayer(nn.Module):
    """Two sub-layers with residual connections (3.1), without the encoder's cross-attention.

    post: norm(x + dropout(sublayer(x))), the paper. pre: x + dropout(sublayer(norm(x))), GPT-2 and after: the
    residual stream is then a plain sum, which trains without the paper's long warm-up (Xiong et al., 2020).
    """

    def __init__(self, config: ModelConfig, rotary: Rotary | None) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(config, rotary)
        self.attention_norm = make_norm(config)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = make_norm(config)
        self.dropout = Dropout(config.dropout)
        self.norm_first = config.norm_placement == "pre"

    def forward(
        self, x_BTD: Tensor, positions: Tensor, mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        """One layer over the residual stream `x_BTD`; the arguments are those of `MultiHeadAttention`."""
        x_BTD = self._residual(x_BTD, self.attention_norm, lambda x: self.attention(x, positions, mask, cache))
        return self._residual(x_BTD, self.feed_forward_norm, self.feed_forward)

    def _residual(self, x: Tensor, norm: nn.Module, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        if self.norm_first:
            return x + self.dropout(sublayer(norm(x)))
        return norm(x + self.dropout(sublayer(x)))
