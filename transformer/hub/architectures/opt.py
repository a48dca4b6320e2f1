"""OPT (Zhang et al., 2022): learned positions, ReLU, and LayerNorm before or after each sub-layer.

With LayerNorm after, it also represents the model of *Attention Is All You Need*: its sinusoids are saved as a table of
learned positions, and its embedding is saved multiplied by sqrt(d_model).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from transformer.hub.architectures.adapter import Adapter
from transformer.hub.architectures.config_fields import ConfigFields
from transformer.hub.architectures.tensor_rules import State, TensorRule, linear
from transformer.model.config import ModelConfig
from transformer.model.positions import sinusoids

_UNUSED_ROWS = 2  # at the start of the table of positions


class _Positions(TensorRule):
    """The table of positions, after the unused rows."""

    def to_hub(self, state: State, config: ModelConfig) -> Tensor:
        return _with_unused_rows(state[self.ours[0]])

    def from_hub(self, tensor: Tensor, config: ModelConfig) -> dict[str, Tensor]:
        return {self.ours[0]: tensor[_UNUSED_ROWS:].contiguous()}


class _Sinusoids(TensorRule):
    """The table of sinusoids, which is saved but not loaded: our model computes it."""

    def to_hub(self, state: State, config: ModelConfig) -> Tensor:
        return _with_unused_rows(sinusoids(config.context_length, config.d_model))

    def from_hub(self, tensor: Tensor, config: ModelConfig) -> dict[str, Tensor]:
        return {}


class _ScaledEmbedding(TensorRule):
    """The embedding, multiplied by sqrt(d_model) in the file, since OPT does not scale it."""

    def to_hub(self, state: State, config: ModelConfig) -> Tensor:
        return state[self.ours[0]] * math.sqrt(config.d_model)

    def from_hub(self, tensor: Tensor, config: ModelConfig) -> dict[str, Tensor]:
        if config.tie_embeddings:
            return {}  # lm_head.weight has the same matrix unscaled, and so without rounding
        return {self.ours[0]: tensor / math.sqrt(config.d_model)}


_TENSORS: dict[str, TensorRule] = {
    "model.decoder.embed_tokens.weight": TensorRule("token_embedding.weight"),
    "model.decoder.embed_positions.weight": _Positions("position_embedding.weight"),
    **linear("model.decoder.layers.{i}.self_attn.q_proj", "layers.{i}.attention.query"),
    **linear("model.decoder.layers.{i}.self_attn.k_proj", "layers.{i}.attention.key"),
    **linear("model.decoder.layers.{i}.self_attn.v_proj", "layers.{i}.attention.value"),
    **linear("model.decoder.layers.{i}.self_attn.out_proj", "layers.{i}.attention.output"),
    **linear("model.decoder.layers.{i}.self_attn_layer_norm", "layers.{i}.attention_norm"),
    **linear("model.decoder.layers.{i}.fc1", "layers.{i}.feed_forward.up"),
    **linear("model.decoder.layers.{i}.fc2", "layers.{i}.feed_forward.down"),
    **linear("model.decoder.layers.{i}.final_layer_norm", "layers.{i}.feed_forward_norm"),
    **linear("model.decoder.final_layer_norm", "final_norm"),
    "lm_head.weight": TensorRule("head.weight"),
}


class OPT(Adapter):
    """`OPTForCausalLM`."""

    model_type = "opt"
    class_name = "OPTForCausalLM"
    base_prefix = "model."

    def read_fields(self, fields: ConfigFields) -> dict[str, Any]:
        fields.expect_full_attention(fields["max_position_embeddings"])
        fields.expect("activation_function", "relu")
        fields.expect("word_embed_proj_dim", fields["hidden_size"])
        fields.expect("enable_bias", True)
        fields.expect("layer_norm_elementwise_affine", True)
        return {
            "vocab_size": fields["vocab_size"],
            "context_length": fields["max_position_embeddings"],
            "d_model": fields["hidden_size"],
            "n_layers": fields["num_hidden_layers"],
            "n_heads": fields["num_attention_heads"],
            "d_feed_forward": fields["ffn_dim"],
            "positions": "learned",
            "norm_placement": "pre" if fields.get("do_layer_norm_before", True) else "post",
            "activation": "relu",
            "dropout": fields.get("dropout", 0.1),
            "tie_embeddings": fields.get("tie_word_embeddings", True),
        }

    def write_fields(self, config: ModelConfig) -> dict[str, Any]:
        return {
            "vocab_size": config.vocab_size,
            "max_position_embeddings": config.context_length,
            "hidden_size": config.d_model,
            "word_embed_proj_dim": config.d_model,
            "num_hidden_layers": config.n_layers,
            "num_attention_heads": config.n_heads,
            "ffn_dim": config.feed_forward_dim,
            "activation_function": "relu",
            "do_layer_norm_before": config.norm_placement == "pre",
            "dropout": config.dropout,
            "attention_dropout": 0.0,
        }

    def extra_fields(self, config: ModelConfig) -> dict[str, Any]:
        extra: dict[str, Any] = {}
        if config.positions == "sinusoidal":
            extra["positions"] = "sinusoidal"
        if config.scale_embeddings:
            extra["scale_embeddings"] = True
        if config.tie_embeddings != self.ties_head(config):
            extra["tie_embeddings"] = config.tie_embeddings
        return extra

    def ties_head(self, config: ModelConfig) -> bool:
        # A head tied to the scaled embedding would be scaled too.
        return config.tie_embeddings and not config.scale_embeddings

    def tensor_rules(self, config: ModelConfig) -> dict[str, TensorRule]:
        rules = dict(_TENSORS)
        if config.positions == "sinusoidal":
            rules["model.decoder.embed_positions.weight"] = _Sinusoids()
        if config.scale_embeddings:
            rules["model.decoder.embed_tokens.weight"] = _ScaledEmbedding("token_embedding.weight")
        return rules


def _with_unused_rows(table: Tensor) -> Tensor:
    return torch.cat([table.new_zeros(_UNUSED_ROWS, table.shape[1]), table])
