"""The base class of Llama and similar architectures: rotary positions, RMSNorm, a gated feed-forward network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from transformer.errors import CheckpointError
from transformer.hub.architectures.adapter import Adapter
from transformer.hub.architectures.config_fields import ConfigFields
from transformer.hub.architectures.tensor_rules import TensorRule, linear
from transformer.model.config import ModelConfig, RopeScaling
from transformer.model.positions import yarn_attention_factor

_TENSORS: dict[str, TensorRule] = {
    "model.embed_tokens.weight": TensorRule("token_embedding.weight"),
    **linear("model.layers.{i}.self_attn.q_proj", "layers.{i}.attention.query"),
    **linear("model.layers.{i}.self_attn.k_proj", "layers.{i}.attention.key"),
    **linear("model.layers.{i}.self_attn.v_proj", "layers.{i}.attention.value"),
    **linear("model.layers.{i}.self_attn.o_proj", "layers.{i}.attention.output"),
    "model.layers.{i}.self_attn.q_norm.weight": TensorRule("layers.{i}.attention.query_norm.weight"),
    "model.layers.{i}.self_attn.k_norm.weight": TensorRule("layers.{i}.attention.key_norm.weight"),
    "model.layers.{i}.input_layernorm.weight": TensorRule("layers.{i}.attention_norm.weight"),
    **linear("model.layers.{i}.mlp.gate_proj", "layers.{i}.feed_forward.gate"),
    **linear("model.layers.{i}.mlp.up_proj", "layers.{i}.feed_forward.up"),
    **linear("model.layers.{i}.mlp.down_proj", "layers.{i}.feed_forward.down"),
    "model.layers.{i}.post_attention_layernorm.weight": TensorRule("layers.{i}.feed_forward_norm.weight"),
    "model.norm.weight": TensorRule("final_norm.weight"),
    "lm_head.weight": TensorRule("head.weight"),
}


_ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn")
_ROPE_NUMBERS_OF = {
    "llama3": ("low_freq_factor", "high_freq_factor"),
    "yarn": ("beta_fast", "beta_slow", "attention_factor", "truncate"),
}
# All numbers in a rope_scaling; each kind reads its own, and ignores the others.
_ROPE_NUMBERS = (
    *("factor", "original_max_position_embeddings", "mscale", "mscale_all_dim", "finetuned"),
    *(name for names in _ROPE_NUMBERS_OF.values() for name in names),
)


class LlamaLike(Adapter):
    """The fields and tensors that these architectures share.

    default_*: for missing fields; None: as many key-value heads as query heads, and heads of width d_model / n_heads.
    """

    base_prefix = "model."
    ignored_suffixes = (".rotary_emb.inv_freq",)
    default_kv_heads: ClassVar[int | None] = None
    default_head_dim: ClassVar[int | None] = None
    default_rope_theta: ClassVar[float] = 10_000.0
    default_norm_eps: ClassVar[float] = 1e-6
    default_tie: ClassVar[bool] = False
    activation_field: ClassVar[str] = "hidden_act"
    activation_names: ClassVar[tuple[str, ...]] = ("silu", "swish")  # two names of the same function

    def read_fields(self, fields: ConfigFields) -> dict[str, Any]:
        fields.expect(self.activation_field, *self.activation_names)
        rope = self.read_rope(fields)
        scaling = rope["rope_scaling"]
        context = fields["max_position_embeddings"]
        if scaling is not None and scaling.kind in ("dynamic", "yarn"):  # the field may be the original context
            assert scaling.original_context is not None
            context = max(context, int(scaling.original_context * scaling.factor))
        return {
            "vocab_size": fields["vocab_size"],
            "context_length": context,
            "d_model": fields["hidden_size"],
            "n_layers": fields["num_hidden_layers"],
            "n_heads": fields["num_attention_heads"],
            "n_kv_heads": fields.get_unless_null("num_key_value_heads", self.default_kv_heads),
            "head_dim": fields.get("head_dim", self.default_head_dim),
            "d_feed_forward": fields["intermediate_size"],
            "positions": "rotary",
            **rope,
            "norm": "rms",
            "norm_placement": "pre",
            "norm_eps": fields.get("rms_norm_eps", self.default_norm_eps),
            "activation": "swiglu",
            "bias": fields.get("attention_bias", False),
            "feed_forward_bias": False,
            "tie_embeddings": fields.get("tie_word_embeddings", self.default_tie),
            **self.read_window(fields),
        }

    def read_rope(self, fields: ConfigFields) -> dict[str, Any]:
        """The base of the rotary frequencies and their scaling, from the fields of transformers 4 or 5."""
        rope = fields.get("rope_scaling") or fields.get("rope_parameters") or {}
        fields.get("rope_parameters")  # ignored if there is a rope_scaling
        theta, scaling = read_rope_parameters(rope, fields, fields.get("rope_theta", self.default_rope_theta))
        return {"rope_theta": theta, "rope_scaling": scaling}

    def write_rope(self, config: ModelConfig) -> dict[str, Any]:
        """The fields that `read_rope` reads, for transformers 4 and 5."""
        rope = write_rope_parameters(config)
        return {
            "rope_theta": config.rope_theta,
            **({"rope_scaling": rope} if config.rope_scaling else {}),
            "rope_parameters": {**rope, "rope_theta": config.rope_theta},
        }

    def read_window(self, fields: ConfigFields) -> dict[str, Any]:
        """The sliding window and the layers that have it; here there is none."""
        fields.expect_full_attention(fields["max_position_embeddings"])
        return {}

    def write_fields(self, config: ModelConfig) -> dict[str, Any]:
        return {
            "vocab_size": config.vocab_size,
            "max_position_embeddings": _original_context(config),
            "hidden_size": config.d_model,
            "num_hidden_layers": config.n_layers,
            "num_attention_heads": config.n_heads,
            "num_key_value_heads": config.kv_heads,
            "head_dim": config.key_dim,
            "intermediate_size": config.feed_forward_dim,
            self.activation_field: self.activation_names[0],
            "rms_norm_eps": config.norm_eps,
            **self.write_rope(config),
            "attention_bias": config.bias,
        }

    def extra_fields(self, config: ModelConfig) -> dict[str, Any]:
        return {"dropout": config.dropout} if config.dropout else {}

    def tensor_rules(self, config: ModelConfig) -> dict[str, TensorRule]:
        return _TENSORS


def read_rope_parameters(
    parameters: Mapping[str, Any], fields: ConfigFields, default_theta: float
) -> tuple[float, RopeScaling | None]:
    """The base of the rotary frequencies and their scaling.

    Args:
        parameters: the value of `rope_parameters` or `rope_scaling`. fields: of the whole config.json.

    Raises:
        CheckpointError: if the kind of scaling is not supported, or a number is missing.
    """
    rope = ConfigFields(parameters)
    kind = rope.get("rope_type", rope.get("type", "default"))
    rope.get("type")
    if kind not in _ROPE_KINDS:
        raise CheckpointError(f"config.json says rope_type {kind!r}; this program computes {', '.join(_ROPE_KINDS)}.")
    rope.expect("partial_rotary_factor", 1.0)
    fields.expect("partial_rotary_factor", 1.0)
    theta = float(rope.get("rope_theta", default_theta))
    fields.ignore("original_max_position_embeddings")  # used only by scaling
    scaling = None if kind == "default" else _read_scaling(kind, rope, fields)
    rope.ignore(*_ROPE_NUMBERS)  # of other kinds
    rope.expect_no_more()
    return theta, scaling


def _read_scaling(kind: Any, rope: ConfigFields, fields: ConfigFields) -> RopeScaling:
    context = fields["max_position_embeddings"]
    original = fields.get("original_max_position_embeddings", rope.get("original_max_position_embeddings", context))
    match kind:
        case "linear":
            return RopeScaling(kind, rope["factor"])
        case "dynamic":
            return RopeScaling(kind, rope["factor"], context)
        case "llama3":
            low, high = rope["low_freq_factor"], rope["high_freq_factor"]
            return RopeScaling(kind, rope["factor"], original, low_freq_factor=low, high_freq_factor=high)
    factor, attention_factor = rope.get("factor", context / original), rope.get("attention_factor")
    scale, scale_all = rope.get("mscale"), rope.get("mscale_all_dim")
    if attention_factor is None and scale and scale_all:
        attention_factor = yarn_attention_factor(factor, scale) / yarn_attention_factor(factor, scale_all)
    return RopeScaling(
        kind,
        factor,
        original,
        beta_fast=rope.get("beta_fast") or 32.0,
        beta_slow=rope.get("beta_slow") or 1.0,
        attention_factor=attention_factor,
        truncate=rope.get("truncate", True),
    )


def write_rope_parameters(config: ModelConfig) -> dict[str, Any]:
    """The parameters that `read_rope_parameters` reads, without the base."""
    scaling = config.rope_scaling
    if scaling is None:
        return {"rope_type": "default"}
    rope: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind in ("llama3", "yarn"):
        rope["original_max_position_embeddings"] = scaling.original_context
    rope |= {name: getattr(scaling, name) for name in _ROPE_NUMBERS_OF.get(scaling.kind, ())}
    if scaling.attention_factor is None:
        rope.pop("attention_factor", None)
    return rope


def _original_context(config: ModelConfig) -> int:
    """`max_position_embeddings`: the context length; with dynamic scaling, the length from which on it applies."""
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "dynamic":
        assert scaling.original_context is not None
        return scaling.original_context
    return config.context_length
