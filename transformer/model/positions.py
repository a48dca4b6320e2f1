"""Position embeddings: sinusoidal, learned, and rotary (RoPE).

`Sinusoidal` and `Learned` are added to token embeddings: `module(x, positions)`. `Rotary` returns cosine and sine of
the positions, with which `apply_rope` rotates queries and keys in attention.

Dimensions: B batch · T tokens · D d_model · H heads · E head_dim · C context_length
"""

import math

import torch
from torch import Tensor, nn

from transformer.model.config import ModelConfig, RopeScaling

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
    """A trained vector for each position (3.5; used by GPT-2)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.context_length, config.d_model))

    def forward(self, x_BTD: Tensor, positions: Tensor | slice) -> Tensor:
        """Add the vectors of `positions` (T,) or (B, T) to `x_BTD`."""
        return x_BTD + self.weight[positions]


class Rotary(nn.Module):
    """Rotary position embedding (RoFormer, Su et al., 2021, 3.4.2).

    The pair (x_i, x_{i + E/2}) is rotated by the angle pos · theta^(-2i/E), so that the product of a query and a key
    depends on their distance only. The elements of a pair are E/2 apart, as in Llama and Qwen, not adjacent. For a
    context longer than that of the pretraining, `scaled_frequencies` changes the frequencies.
    """

    cosine_CE: Tensor
    sine_CE: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # In fp32 and in this order of operations, as in the programs that trained the models of the Hub.
        frequencies, factor = 1.0 / config.rope_theta ** _exponents(config), 1.0
        if config.rope_scaling is not None:
            frequencies, factor = scaled_frequencies(frequencies, config)
        angles = torch.outer(torch.arange(config.context_length, dtype=torch.float32), frequencies)  # (C, E/2)
        cosine, sine = _of_pairs(angles)
        if factor != 1.0:
            cosine, sine = cosine * factor, sine * factor
        self.register_buffer("cosine_CE", cosine, persistent=False)
        self.register_buffer("sine_CE", sine, persistent=False)

    def forward(self, positions: Tensor | slice) -> Rotation:
        """Cosine and sine of `positions`, (T,) or (B, T), for `apply_rope`."""
        cosine, sine = self.cosine_CE[positions], self.sine_CE[positions]  # (T, E) or (B, T, E)
        if cosine.dim() == 3:
            cosine, sine = cosine.unsqueeze(1), sine.unsqueeze(1)  # (B, 1, T, E): the same for every head
        return cosine, sine


class DynamicRotary(nn.Module):
    """RoPE whose base grows with the sequence beyond the original context (dynamic NTK scaling).

    theta becomes theta · (factor · length / original - (factor - 1))^(E / (E - 2)), where length is the number of
    tokens so far, for each sequence of a batch by itself. Cached keys are not rotated again, as in transformers.
    """

    exponents: Tensor

    def __init__(self, config: ModelConfig, scaling: RopeScaling) -> None:
        super().__init__()
        assert scaling.original_context is not None
        self.theta, self.factor, self.original = config.rope_theta, scaling.factor, scaling.original_context
        self.power = config.key_dim / (config.key_dim - 2)
        self.register_buffer("exponents", _exponents(config), persistent=False)

    def forward(self, positions: Tensor | slice) -> Rotation:
        """As in `Rotary`."""
        if isinstance(positions, slice):
            positions = torch.arange(positions.start or 0, positions.stop, device=self.exponents.device)
        length = (positions.amax(dim=-1, keepdim=True) + 1).clamp(min=self.original)  # (1,) or (B, 1)
        theta = self.theta * (self.factor * length / self.original - (self.factor - 1)) ** self.power
        frequencies = 1.0 / theta[..., None] ** self.exponents  # (1, E/2) or (B, 1, E/2)
        cosine, sine = _of_pairs(positions[..., None].float() * frequencies)  # (T, E) or (B, T, E)
        if cosine.dim() == 3:
            cosine, sine = cosine.unsqueeze(1), sine.unsqueeze(1)  # (B, 1, T, E)
        return cosine, sine


def make_rotary(config: ModelConfig) -> Rotary | DynamicRotary:
    """The RoPE of a config: a table, unless the frequencies depend on the length of the sequence."""
    if config.rope_scaling is not None and config.rope_scaling.kind == "dynamic":
        return DynamicRotary(config, config.rope_scaling)
    return Rotary(config)


def scaled_frequencies(frequencies: Tensor, config: ModelConfig) -> tuple[Tensor, float]:
    """Frequencies (E/2) for a longer context, and the factor of cosine and sine.

    linear: all are divided by the factor (position interpolation, Chen et al., 2023). llama3: low frequencies are
    divided, high ones kept, with a smooth transition (Llama 3.1). yarn: the same with a linear transition, and larger
    scores (Peng et al., 2023, 3.2 and 3.4).
    """
    scaling = config.rope_scaling
    assert scaling is not None
    slowed = frequencies / scaling.factor
    if scaling.kind == "linear":
        return slowed, 1.0
    original = scaling.original_context
    assert original is not None
    if scaling.kind == "llama3":
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        turns = original * frequencies / (2 * math.pi)  # of each pair, within the original context
        kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
        return (1 - kept) * slowed + kept * frequencies, 1.0

    def pair(turns: float) -> float:
        """The (fractional) index of the pair that makes this many turns within the original context."""
        wavelength = original / (2 * math.pi * turns)
        return config.key_dim * math.log(wavelength) / (2 * math.log(config.rope_theta))

    first, last = pair(scaling.beta_fast), pair(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, config.key_dim - 1)
    width = last - first if last != first else 0.001
    slow = ((torch.arange(len(frequencies), dtype=torch.float32) - first) / width).clamp(0.0, 1.0)
    factor = scaling.attention_factor
    if factor is None:
        factor = yarn_attention_factor(scaling.factor)
    return slow * slowed + (1 - slow) * frequencies, factor


def yarn_attention_factor(factor: float, mscale: float = 1.0) -> float:
    """0.1 mscale ln(factor) + 1: larger scores for a longer context (YaRN, Peng et al., 2023, 3.4)."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _exponents(config: ModelConfig) -> Tensor:
    """(E/2): the exponent 2i / E of each pair i."""
    return torch.arange(0, config.key_dim, 2, dtype=torch.float32) / config.key_dim


def _of_pairs(angles: Tensor) -> Rotation:
    """Cosine and sine (..., E) for `apply_rope`, from the angles of the pairs (..., E/2)."""
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat([cosine, cosine], dim=-1), torch.cat([-sine, sine], dim=-1)


def apply_rope(x_BHTE: Tensor, rotation: Rotation) -> Tensor:
    """Rotate each head's vectors by the angles of their positions."""
    cosine, sine = rotation
    swapped = x_BHTE.roll(x_BHTE.shape[-1] // 2, dims=-1)  # exchanges x_i and x_{i + E/2}
    return (x_BHTE * cosine + swapped * sine).type_as(x_BHTE)


def sinusoids(length: int, d_model: int) -> Tensor:
    """The table of section 3.5, shape (length, d_model), in fp32."""
    positions = torch.arange(length, dtype=torch.float32)
    frequencies = 10_000.0 ** (-torch.arange(0, d_model, 2, dtype=torch.float32) / d_model)
    angles = torch.outer(positions, frequencies)  # (length, D/2)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)  # sine and cosine alternate
