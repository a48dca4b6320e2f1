"""What Llama and its descendants share: rotary positions, RMSNorm before each sub-layer, a gated feed-forward."""

from __future__ import annotations

from typing import Any, ClassVar

from transformer.hub.architectures.adapter import Adapter
from transformer.hub.architectures.config_fields import ConfigFields
from transformer.hub.architectures.tensor_rules import TensorRule, linear
from transformer.model.config import ModelConfig

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


class LlamaLike(Adapter):
    """The fields and tensors that Llama's descendants have under the same names; each adds its own.

    `default_kv_heads` and `default_head_dim` are what a missing field means in this architecture; None: as many
    key-value heads as query heads, and heads that together are as wide as the model.
    """

    base_prefix = "model."
    ignored_suffixes = (".rotary_emb.inv_freq",)
    default_kv_heads: ClassVar[int | None] = None
    default_head_dim: ClassVar[int | None] = None

    def read_fields(self, fields: ConfigFields) -> dict[str, Any]:
        fields.expect_full_attention()
        fields.expect("hidden_act", "silu")
        return {
            "vocab_size": fields["vocab_size"],
            "context_length": fields["max_position_embeddings"],
            "d_model": fields["hidden_size"],
            "n_layers": fields["num_hidden_layers"],
            "n_heads": fields["num_attention_heads"],
            "n_kv_heads": fields.get("num_key_value_heads", self.default_kv_heads),
            "head_dim": fields.get("head_dim", self.default_head_dim),
            "d_feed_forward": fields["intermediate_size"],
            "positions": "rotary",
            "rope_theta": _read_rope(fields),
            "norm": "rms",
            "norm_placement": "pre",
            "norm_eps": fields["rms_norm_eps"],
            "activation": "swiglu",
            "bias": fields.get("attention_bias", False),
            "feed_forward_bias": False,
            "tie_embeddings": fields.get("tie_word_embeddings", False),
        }

    def write_fields(self, config: ModelConfig) -> dict[str, Any]:
        return {
            "vocab_size": config.vocab_size,
            "max_position_embeddings": config.context_length,
            "hidden_size": config.d_model,
            "num_hidden_layers": config.n_layers,
            "num_attention_heads": config.n_heads,
            "num_key_value_heads": config.kv_heads,
            "head_dim": config.key_dim,
            "intermediate_size": config.feed_forward_dim,
            "hidden_act": "silu",
            "rms_norm_eps": config.norm_eps,
            "rope_theta": config.rope_theta,  # transformers 4 reads this, transformers 5 the next
            "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
            "attention_bias": config.bias,
        }

    def extra_fields(self, config: ModelConfig) -> dict[str, Any]:
        return {"dropout": config.dropout} if config.dropout else {}

    def tensor_rules(self, config: ModelConfig) -> dict[str, TensorRule]:
        return _TENSORS


def _read_rope(fields: ConfigFields) -> float:
    """The base of the rotary frequencies, from one of the places where versions of transformers write it.

    Raises:
        CheckpointError: if the positions are scaled.
    """
    rope = ConfigFields(fields.get("rope_parameters") or fields.get("rope_scaling") or {})
    rope.expect("rope_type", "default")
    rope.expect("type", "default")
    rope.expect("partial_rotary_factor", 1.0)
    fields.expect("partial_rotary_factor", 1.0)
    theta = float(rope.get("rope_theta", fields.get("rope_theta", 10_000.0)))
    rope.expect_no_more()
    return theta
