"""The configuration of the architecture, and the presets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from transformer.errors import ConfigError

Positions = Literal["sinusoidal", "learned", "rotary"]
Norm = Literal["layer", "rms"]
NormPlacement = Literal["pre", "post", "reordered", "sandwich"]
Activation = Literal["relu", "gelu", "swiglu", "geglu"]
GATED = {"swiglu", "geglu"}  # activations of a feed-forward layer with three matrices
RopeScalingKind = Literal["linear", "dynamic", "llama3", "yarn"]


@dataclass(frozen=True)
class RopeScaling:
    """Scaling of RoPE for a context longer than that of the pretraining; see `positions.py`.

    Raises:
        ConfigError: if a value is invalid.
    """

    kind: RopeScalingKind
    factor: float  # by which the context is longer
    original_context: int | None = None  # tokens; required by all kinds except linear
    low_freq_factor: float = 1.0  # llama3: wavelengths above original_context / this are scaled
    high_freq_factor: float = 4.0  # llama3: wavelengths below original_context / this are kept
    beta_fast: float = 32.0  # yarn: pairs with more turns than this within original_context are kept
    beta_slow: float = 1.0  # yarn: pairs with fewer turns are scaled
    attention_factor: float | None = None  # yarn: of cosine and sine; None: 0.1 ln(factor) + 1
    truncate: bool = True  # yarn: round the bounds between kept and scaled pairs to whole pairs

    def __post_init__(self) -> None:
        if self.kind not in (kinds := get_args(RopeScalingKind)):
            raise ConfigError(f"rope_scaling must be one of {', '.join(kinds)}, not {self.kind!r}.")
        for name in ("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "attention_factor"):
            value = getattr(self, name)
            if not (name == "attention_factor" and value is None) and not _is_positive(value):
                raise ConfigError(f"rope_scaling: {name} must be a number above 0, not {value!r}.")
        original = self.original_context
        if self.kind != "linear" and (type(original) is not int or original < 1):
            raise ConfigError(f"rope_scaling: original_context must be a positive whole number, not {original!r}.")
        if not self.low_freq_factor < self.high_freq_factor:
            raise ConfigError("rope_scaling: low_freq_factor must be less than high_freq_factor.")
        if not isinstance(self.truncate, bool):
            raise ConfigError(f"rope_scaling: truncate must be true or false, not {self.truncate!r}.")


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of a `Transformer`. Sizes left at None are derived; see `__post_init__`.

    Section numbers in the comments are those of *Attention Is All You Need* (Vaswani et al., 2017).

    Raises:
        ConfigError: if the sizes or choices do not fit together.
    """

    vocab_size: int
    context_length: int = 512  # largest number of tokens in a sequence
    d_model: int = 512  # width of the residual stream (3.1)
    n_layers: int = 6  # N (3.1)
    n_heads: int = 8  # h (3.2.2)
    n_kv_heads: int | None = None  # grouped-query attention (Ainslie et al., 2023); None: n_heads
    head_dim: int | None = None  # d_k (3.2.2); None: d_model / n_heads
    d_feed_forward: int | None = None  # d_ff (3.3); None: 4 d_model, or for SwiGLU and GeGLU 8/3 d_model

    positions: Positions = "sinusoidal"  # 3.5
    rope_theta: float = 10_000.0  # base of the rotary frequencies
    rope_scaling: RopeScaling | None = None  # for a context longer than that of the pretraining
    rope_layers: tuple[bool, ...] | None = None  # which layers have RoPE (NoPE: Kazemnejad et al., 2023); None: all
    rope_local_theta: float | None = None  # RoPE base of layers with a sliding window (Gemma 3); None: rope_theta
    norm: Norm = "layer"
    norm_placement: NormPlacement = "post"  # post: as in 5.4; the others: see `DecoderLayer`
    norm_eps: float = 1e-5
    activation: Activation = "relu"  # 3.3
    qk_norm: bool = False  # RMSNorm on queries and keys, per head (Henry et al., 2020)
    joint_qk_norm: bool = False  # qk_norm over all heads of a token (OLMo 2, 2025)
    query_pre_attn_scalar: float | None = None  # scores are divided by its square root (Gemma 2); None: head_dim
    sliding_window: int | None = None  # tokens that a query attends to, its own included (Mistral, 2023); None: all
    sliding_window_layers: tuple[bool, ...] | None = None  # which layers have the window; None: every layer
    bias: bool = True  # biases in attention and feed-forward
    attention_output_bias: bool | None = None  # of the output projection; None: as bias
    feed_forward_bias: bool | None = None  # None: as bias
    head_bias: bool = False  # bias of the vocabulary projection
    scale_embeddings: bool = False  # embeddings times sqrt(d_model) (3.4)
    tie_embeddings: bool = True  # one matrix for embedding and vocabulary projection (3.4)
    dropout: float = 0.0  # on embeddings and on the output of each sub-layer (5.4)

    def __post_init__(self) -> None:
        if self.n_kv_heads is None:
            object.__setattr__(self, "n_kv_heads", self.n_heads)
        if self.head_dim is None:
            if self.n_heads and self.d_model % self.n_heads:
                raise ConfigError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}.")
            object.__setattr__(self, "head_dim", self.d_model // max(self.n_heads, 1))
        if self.d_feed_forward is None:
            # A gated layer has three matrices instead of two: 8/3 keeps the parameter count, rounded for fast kernels.
            width = -(-8 * self.d_model // 3 // 64) * 64 if self.activation in GATED else 4 * self.d_model
            object.__setattr__(self, "d_feed_forward", width)
        if self.query_pre_attn_scalar == self.head_dim:  # the default
            object.__setattr__(self, "query_pre_attn_scalar", None)
        for name in ("attention_output_bias", "feed_forward_bias"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, self.bias)
        if isinstance(self.rope_scaling, Mapping):  # as stored in config.json
            object.__setattr__(self, "rope_scaling", RopeScaling(**self.rope_scaling))
        for name in ("sliding_window_layers", "rope_layers"):
            flags = getattr(self, name)
            if isinstance(flags, list):  # as stored in config.json
                object.__setattr__(self, name, tuple(flags))
            if _says_every_layer(getattr(self, name), self.n_layers):  # equal models have equal configs
                object.__setattr__(self, name, None)
        self._check()

    def _check(self) -> None:
        sizes = ("vocab_size", "context_length", "d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim")
        for name in (*sizes, "d_feed_forward"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:  # a bool is an int too
                raise ConfigError(f"{name} must be a positive whole number, not {value!r}.")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}.")
        if self.n_heads % self.kv_heads:
            raise ConfigError(f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}.")
        if self.positions == "rotary" and self.key_dim % 2:
            raise ConfigError(f"rotary positions need an even head_dim, not {self.head_dim}.")
        if self.positions == "sinusoidal" and self.d_model % 2:
            raise ConfigError(f"sinusoidal positions need an even d_model, not {self.d_model}.")
        for name in ("norm_eps", "rope_theta", "rope_local_theta", "query_pre_attn_scalar"):
            is_left_out = getattr(self, name) is None and name in ("rope_local_theta", "query_pre_attn_scalar")
            if not (is_left_out or _is_positive(getattr(self, name))):
                raise ConfigError(f"{name} must be a number above 0, not {getattr(self, name)!r}.")
        if self.rope_scaling is not None:
            self._check_rope_scaling(self.rope_scaling)
        if self.joint_qk_norm and not self.qk_norm:
            raise ConfigError("joint_qk_norm needs qk_norm, which is false.")
        if self.rope_layers is not None:
            _check_flags("rope_layers", self.rope_layers, self.n_layers)
            if self.positions != "rotary":
                raise ConfigError(f"rope_layers needs rotary positions; these are {self.positions}.")
        self._check_sliding_window()
        biases = ("bias", "attention_output_bias", "feed_forward_bias", "head_bias")
        for name in ("qk_norm", "joint_qk_norm", *biases, "scale_embeddings", "tie_embeddings"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be true or false, not {getattr(self, name)!r}.")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout must be in [0, 1), not {self.dropout}.")

    def _check_rope_scaling(self, scaling: RopeScaling) -> None:
        if not isinstance(scaling, RopeScaling):
            raise ConfigError(f"rope_scaling must be a RopeScaling, not {scaling!r}.")
        if self.positions != "rotary":
            raise ConfigError(f"rope_scaling needs rotary positions; these are {self.positions}.")
        if scaling.kind == "dynamic" and self.key_dim < 4:
            raise ConfigError(f"rope_scaling of the kind dynamic needs a head_dim above 2, not {self.head_dim}.")
        if scaling.kind == "yarn" and not self.rope_theta > 1:
            raise ConfigError(f"rope_scaling of the kind yarn needs a rope_theta above 1, not {self.rope_theta}.")

    def _check_sliding_window(self) -> None:
        window, layers = self.sliding_window, self.sliding_window_layers
        if self.rope_local_theta is not None and (window is None or self.positions != "rotary"):
            raise ConfigError("rope_local_theta needs rotary positions and a sliding_window.")
        if window is not None and (type(window) is not int or window < 1):
            raise ConfigError(f"sliding_window must be a positive whole number, not {window!r}.")
        if layers is None:
            return
        _check_flags("sliding_window_layers", layers, self.n_layers)
        if window is None:
            raise ConfigError("sliding_window_layers needs a sliding_window, which is not set.")
        if not any(layers):
            raise ConfigError("sliding_window_layers names no layer: leave out sliding_window.")

    def rotates(self, layer: int) -> bool:
        """Whether this layer has RoPE."""
        return self.positions == "rotary" and (self.rope_layers is None or self.rope_layers[layer])

    def is_local(self, layer: int) -> bool:
        """Whether this layer has the sliding window."""
        return self.sliding_window is not None and (
            self.sliding_window_layers is None or self.sliding_window_layers[layer]
        )

    def window_of(self, layer: int) -> int | None:
        """Tokens that a query of this layer attends to, its own included; None: the whole context."""
        window = self.sliding_window
        return window if self.is_local(layer) and window is not None and window < self.context_length else None

    @property
    def has_window(self) -> bool:
        """Whether any layer has a window smaller than the context."""
        return any(self.window_of(layer) is not None for layer in range(self.n_layers))

    # The derived sizes, which are never None after __post_init__, as `int` for type checkers.
    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads  # type: ignore[return-value]

    @property
    def key_dim(self) -> int:
        """Width of one head's queries, keys and values (d_k, d_v)."""
        return self.head_dim  # type: ignore[return-value]

    @property
    def feed_forward_dim(self) -> int:
        return self.d_feed_forward  # type: ignore[return-value]

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> ModelConfig:
        """The architecture of a preset (see PRESETS), with some fields overridden.

        Raises:
            ConfigError: if there is no such preset, or an override is invalid.
        """
        if name not in PRESETS:
            raise ConfigError(f"there is no preset {name!r}; choose one of {', '.join(PRESETS)}.")
        return cls(**{**PRESETS[name], **overrides})


def _is_positive(value: Any) -> bool:
    """Whether it is a finite number above 0; a bool is none."""
    return not isinstance(value, bool) and isinstance(value, int | float) and 0 < value < math.inf


def _says_every_layer(flags: Any, n_layers: int) -> bool:
    return isinstance(flags, tuple) and len(flags) == n_layers and all(flag is True for flag in flags)


def _check_flags(name: str, flags: Any, n_layers: int) -> None:
    """Raises: ConfigError if it is not true or false for each layer."""
    if not isinstance(flags, tuple) or len(flags) != n_layers or any(type(flag) is not bool for flag in flags):
        raise ConfigError(f"{name} must be true or false for each of {n_layers} layers, not {flags!r}.")


_CHOICES: dict[str, tuple[str, ...]] = {
    "positions": get_args(Positions),
    "norm": get_args(Norm),
    "norm_placement": get_args(NormPlacement),
    "activation": get_args(Activation),
}

PRESETS: dict[str, dict[str, Any]] = {
    # Attention Is All You Need, decoder only: no encoder, so no cross-attention.
    "paper": dict(scale_embeddings=True, dropout=0.1),
    # Language Models are Unsupervised Multitask Learners (Radford et al., 2019).
    "gpt2": dict(positions="learned", norm_placement="pre", activation="gelu", dropout=0.1),
    # As Llama 2 and Qwen3: RoPE, pre-norm with RMSNorm, SwiGLU, grouped-query attention, no biases.
    "modern": dict(
        positions="rotary",
        norm="rms",
        norm_placement="pre",
        norm_eps=1e-6,
        activation="swiglu",
        qk_norm=True,
        n_kv_heads=2,
        bias=False,
    ),
}
