"""Where a token stands: three kinds of positions.

`Sinusoidal` and `Learned` add to the embeddings: `module(x, positions)`. `Rotary` gives the cosine and sine of each
position once per pass, by which `apply_rope` rotates queries and keys inside attention.

Dimensions: B batch · T tokens · D d_model · H heads · E head_dim · C context_length
"""

import torch
from torch import Tensor, nn

from transformer.model.config import ModelConfig

Rotation = tuple[Tensor, Tensor]  # cosine and sine, each (T, E) or (B, 1, T, E)


class Sinusoidal(nn.Module):
    """Fixed sines and cosines (Attention Is All You Need, 3.5).

    PE(pos, 2i) = sin(pos / 10000^(2i/D)), PE(pos, 2i+1) = cos(pos / 10000^(2i/D))
    """

    table_CD: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.register_buffer("table_CD", sinusoids(config.context_length, config.d_model), persistent=False)

    def forward(self, x_BTD: Tensor, positions: Tensor | slice) -> Tensor:
        """Add the encoding of `positions` (T,) or (B, T) to `x_BTD`."""
        return x_BTD + self.table_CD[positions]


class Learned(nn.Module):
    """One trained vector for each position (3.5 names it; GPT-2 uses it)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.context_length, config.d_model))

    def forward(self, x_BTD: Tensor, positions: Tensor | slice) -> Tensor:
        """Add the vectors of `positions` (T,) or (B, T) to `x_BTD`."""
        return x_BTD + self.weight[positions]


class Rotary(nn.Module):
    """Rotary position embedding (RoFormer, Su et al., 2021, 3.4.2).

    The pair (x_i, x_{i + E/2}) is rotated by the angle pos · theta^(-2i/E), so that the product of a query and a key
    depends on the distance between them only. Pairs are halves apart, as in Llama and Qwen, not neighbours.
    """

    cosine_CE: Tensor
    sine_CE: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        half = torch.arange(0, config.key_dim, 2, dtype=torch.float32) / config.key_dim
        frequencies = 1.0 / config.rope_theta**half  # (E/2); rounded as where the weights of others were trained
        angles = torch.outer(torch.arange(config.context_length, dtype=torch.float32), frequencies)  # (C, E/2)
        self.register_buffer("cosine_CE", torch.cat([angles.cos(), angles.cos()], dim=-1), persistent=False)
        self.register_buffer("sine_CE", torch.cat([-angles.sin(), angles.sin()], dim=-1), persistent=False)

    def forward(self, positions: Tensor | slice) -> Rotation:
        """The cosine and sine for `positions`, (T,) or (B, T), that `apply_rope` takes."""
        cosine, sine = self.cosine_CE[positions], self.sine_CE[positions]  # (T, E) or (B, T, E)
        if cosine.dim() == 3:
            cosine, sine = cosine.unsqueeze(1), sine.unsqueeze(1)  # (B, 1, T, E): the same for every head
        return cosine, sine


def apply_rope(x_BHTE: Tensor, rotation: Rotation) -> Tensor:
    """Rotate each head's vectors by the angles of their positions."""
    cosine, sine = rotation
    swapped = x_BHTE.roll(x_BHTE.shape[-1] // 2, dims=-1)  # x_{i + E/2} where x_i stood, and back
    return (x_BHTE * cosine + swapped * sine).type_as(x_BHTE)


def sinusoids(length: int, d_model: int) -> Tensor:
    """The table of section 3.5, shape (length, d_model), in fp32."""
    positions = torch.arange(length, dtype=torch.float32)
    frequencies = 10_000.0 ** (-torch.arange(0, d_model, 2, dtype=torch.float32) / d_model)
    angles = torch.outer(positions, frequencies)  # (length, D/2)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)  # sine and cosine take turns
