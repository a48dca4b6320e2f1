"""GPT-2 (Radford et al., 2019): learned positions, LayerNorm before each sub-layer, GELU."""

from __future__ import annotations

from typing import Any

from transformer.hub.architectures.adapter import Adapter
from transformer.hub.architectures.config_fields import ConfigFields
from transformer.hub.architectures.tensor_rules import Conv1D, TensorRule, linear
from transformer.model.config import ModelConfig

_TENSORS: dict[str, TensorRule] = {
    "transformer.wte.weight": TensorRule("token_embedding.weight"),
    "transformer.wpe.weight": TensorRule("position_embedding.weight"),
    **linear("transformer.h.{i}.ln_1", "layers.{i}.attention_norm"),
    **linear(
        "transformer.h.{i}.attn.c_attn",
        "layers.{i}.attention.query",
        "layers.{i}.attention.key",
        "layers.{i}.attention.value",
        rule=Conv1D,
    ),
    **linear("transformer.h.{i}.attn.c_proj", "layers.{i}.attention.output", rule=Conv1D),
    **linear("transformer.h.{i}.ln_2", "layers.{i}.feed_forward_norm"),
    **linear("transformer.h.{i}.mlp.c_fc", "layers.{i}.feed_forward.up", rule=Conv1D),
    **linear("transformer.h.{i}.mlp.c_proj", "layers.{i}.feed_forward.down", rule=Conv1D),
    **linear("transformer.ln_f", "final_norm"),
    "lm_head.weight": TensorRule("head.weight"),
}


class GPT2(Adapter):
    """`GPT2LMHeadModel`."""

    model_type = "gpt2"
    class_name = "GPT2LMHeadModel"
    base_prefix = "transformer."
    ignored_suffixes = (".attn.bias", ".attn.masked_bias")  # the causal mask

    def read_fields(self, fields: ConfigFields) -> dict[str, Any]:
        fields.expect_full_attention(fields["n_positions"])
        fields.expect("activation_function", "gelu_new", "gelu_pytorch_tanh")  # two names of one function
        fields.expect("scale_attn_weights", True)
        fields.ignore("reorder_and_upcast_attn", "n_ctx")  # the same result; an old name of n_positions
        return {
            "vocab_size": fields["vocab_size"],
            "context_length": fields["n_positions"],
            "d_model": fields["n_embd"],
            "n_layers": fields["n_layer"],
            "n_heads": fields["n_head"],
            "d_feed_forward": fields.get("n_inner"),
            "positions": "learned",
            "norm_placement": "pre",
            "norm_eps": fields.get("layer_norm_epsilon", 1e-5),
            "activation": "gelu",
            "dropout": fields.get("resid_pdrop", 0.1),
            "tie_embeddings": fields.get("tie_word_embeddings", True),
        }

    def write_fields(self, config: ModelConfig) -> dict[str, Any]:
        return {
            "vocab_size": config.vocab_size,
            "n_positions": config.context_length,
            "n_embd": config.d_model,
            "n_layer": config.n_layers,
            "n_head": config.n_heads,
            "n_inner": config.feed_forward_dim,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": config.norm_eps,
            "embd_pdrop": config.dropout,
            "resid_pdrop": config.dropout,
            "attn_pdrop": 0.0,
        }

    def tensor_rules(self, config: ModelConfig) -> dict[str, TensorRule]:
        return _TENSORS
