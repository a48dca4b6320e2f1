"""Llama (Touvron et al., 2023), and the models that are published under its type: TinyLlama, SmolLM, SmolLM2."""

from __future__ import annotations

from typing import Any

from transformer.hub.architectures.config_fields import ConfigFields
from transformer.hub.architectures.llama_like import LlamaLike
from transformer.model.config import ModelConfig


class Llama(LlamaLike):
    """`LlamaForCausalLM`, with optional biases in attention and in the feed-forward network."""

    model_type = "llama"
    class_name = "LlamaForCausalLM"

    def read_fields(self, fields: ConfigFields) -> dict[str, Any]:
        if "use_sliding_window" in fields:
            fields.ignore("sliding_window")  # `use_sliding_window` has to be false
        return {**super().read_fields(fields), "feed_forward_bias": fields.get("mlp_bias", False)}

    def write_fields(self, config: ModelConfig) -> dict[str, Any]:
        return {**super().write_fields(config), "mlp_bias": config.feed_forward_bias}
