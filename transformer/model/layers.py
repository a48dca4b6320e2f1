"""One layer of the decoder: attention, then a feed-forward network, each in a residual connection.

Dimensions: B batch · T tokens · D d_model · F d_feed_forward
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer.errors import ConfigError
from transformer.model.attention import MultiHeadAttention, Update
from transformer.model.config import GATED, ModelConfig
from transformer.model.linear import Linear
from transformer.model.positions import Rotation


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
    """In training, elements become 0 with probability p, and the others are multiplied by 1 / (1 - p) (5.4).

    On a CPU each element uses one random byte, so p is rounded to a multiple of 1/256. PyTorch's own dropout draws a
    float for each, which took a sixth of a training step.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0 or input.device.type != "cpu":
            return super().forward(input)
        zeros = max(1, round(256 * self.p))  # of 256 bytes
        words = torch.randint(-(2**63), 2**63 - 1, (-(-input.numel() // 8),))  # of eight bytes
        kept = words.view(torch.uint8)[: input.numel()].view(input.shape) >= zeros
        return input * kept * (256 / (256 - zeros))


# Applied to the hidden layer of a feed-forward network; in a gated one to the gate.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": partial(F.gelu, approximate="tanh"),
    "swiglu": F.silu,
    "geglu": partial(F.gelu, approximate="tanh"),
}


class FeedForward(nn.Module):
    """Position-wise feed-forward network (Attention Is All You Need, 3.3).

    relu: max(0, x W1 + b1) W2 + b2. gelu: the same with GELU in the tanh approximation (GPT-2).
    swiglu: (silu(x G) * x W1) W2, a gated linear unit (GLU Variants Improve Transformer, Shazeer, 2020).
    geglu: the same with GELU instead of silu (Gemma, 2024).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.activation not in ACTIVATIONS:
            raise ConfigError(f"the feed-forward layer does not know the activation {config.activation!r}.")
        self.activation, self.is_gated = ACTIVATIONS[config.activation], config.activation in GATED
        bias = bool(config.feed_forward_bias)
        self.up = Linear(config.d_model, config.feed_forward_dim, bias=bias)
        if self.is_gated:
            self.gate = Linear(config.d_model, config.feed_forward_dim, bias=bias)
        self.down = Linear(config.feed_forward_dim, config.d_model, bias=bias)
        self.fused: nn.Module | None = None  # replaces `gate_and_up` in a quantized model

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.is_gated:
            gate_BTF, hidden_BTF = self.gate_and_up(x_BTD)
            return self.down(self.activation(gate_BTF) * hidden_BTF)
        return self.down(self.activation(self.up(x_BTD)))

    def gate_and_up(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """The two projections of a gated linear unit, each (B, T, F)."""
        if self.fused is not None:
            return self.fused(x_BTD)
        up_BTF = self.up(x_BTD)
        return self.gate(x_BTD), up_BTF


class DecoderLayer(nn.Module):
    """Two sub-layers with residual connections (3.1), without the encoder's cross-attention.

    post: norm(x + dropout(sublayer(x))), the paper. pre: x + dropout(sublayer(norm(x))), GPT-2 and after: the
    residual stream is then a plain sum, which trains without a long warm-up (Xiong et al., 2020).
    reordered: x + dropout(norm(sublayer(x))), OLMo 2 (Walsh et al., 2025).
    sandwich: x + dropout(norm(sublayer(norm(x)))), with norms before and after (CogView, Ding et al., 2021; Gemma 3).

    Args:
        number: index of the layer, from 0.
    """

    def __init__(self, config: ModelConfig, number: int = 0) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(config, config.window_of(number))
        self.attention_norm = make_norm(config)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = make_norm(config)
        if config.norm_placement == "sandwich":
            self.attention_output_norm, self.feed_forward_output_norm = make_norm(config), make_norm(config)
        self.dropout = Dropout(config.dropout)
        self.norm_placement = config.norm_placement

    def forward(
        self,
        x_BTD: Tensor,
        rotation: Rotation | None = None,
        mask: Tensor | None = None,
        update: Update | None = None,
    ) -> Tensor:
        """One layer over the residual stream `x_BTD`; the arguments are those of `MultiHeadAttention`."""
        if self.norm_placement == "pre":
            x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), rotation, mask, update))
            return x_BTD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTD)))
        # Norms of outputs are computed in the dtype of the residual stream, also if sub-layers compute in bf16.
        if self.norm_placement == "reordered":
            attended_BTD = self.attention(x_BTD, rotation, mask, update).type_as(x_BTD)
            x_BTD = x_BTD + self.dropout(self.attention_norm(attended_BTD))
            fed_BTD = self.feed_forward(x_BTD).type_as(x_BTD)
            return x_BTD + self.dropout(self.feed_forward_norm(fed_BTD))
        if self.norm_placement == "sandwich":
            normed_BTD = self.attention_norm(x_BTD)
            attended_BTD = self.attention(normed_BTD, rotation, mask, update).type_as(x_BTD)
            x_BTD = x_BTD + self.dropout(self.attention_output_norm(attended_BTD))
            fed_BTD = self.feed_forward(self.feed_forward_norm(x_BTD)).type_as(x_BTD)
            return x_BTD + self.dropout(self.feed_forward_output_norm(fed_BTD))
        x_BTD = self.attention_norm(x_BTD + self.dropout(self.attention(x_BTD, rotation, mask, update)))
        return self.feed_forward_norm(x_BTD + self.dropout(self.feed_forward(x_BTD)))
