"""OLMo 2 (Walsh et al., 2025): Llama with the norms after the sub-layers, and one on all queries and on all keys."""

from __future__ import annotations

from typing import Any

from transformer.hub.architectures.config_fields import ConfigFields
from transformer.hub.architectures.llama_like import LlamaLike
from transformer.hub.architectures.tensor_rules import TensorRule
from transformer.model.config import ModelConfig


class OLMo2(LlamaLike):
    """`Olmo2ForCausalLM`."""

    model_type = "olmo2"
    class_name = "Olmo2ForCausalLM"
    default_norm_eps = 1e-5

    def read_fields(self, fields: ConfigFields) -> dict[str, Any]:
        return {**super().read_fields(fields), "norm_placement": "reordered", "qk_norm": True, "joint_qk_norm": True}

    def write_fields(self, config: ModelConfig) -> dict[str, Any]:
        # The defaults of transformers are the ids of the original model, which a smaller vocabulary does not have.
        return {**super().write_fields(config), **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))}

    def tensor_rules(self, config: ModelConfig) -> dict[str, TensorRule]:
        rules = dict(super().tensor_rules(config))
        del rules["model.layers.{i}.input_layernorm.weight"]
        norms = {"post_attention_layernorm": "attention_norm", "post_feedforward_layernorm": "feed_forward_norm"}
        return rules | {
            f"model.layers.{{i}}.{theirs}.weight": TensorRule(f"layers.{{i}}.{ours}.weight")
            for theirs, ours in norms.items()
        }
