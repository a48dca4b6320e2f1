"""Qwen2 and Qwen2.5 (Yang et al., 2024): Llama with biases on queries, keys and values."""

from __future__ import annotations

from typing import Any

from transformer.hub.architectures.config_fields import ConfigFields
from transformer.hub.architectures.sliding_window import SwitchedWindow
from transformer.model.config import ModelConfig


class Qwen2(SwitchedWindow):
    """`Qwen2ForCausalLM`. The output projection and the feed-forward network have no biases."""

    model_type = "qwen2"
    class_name = "Qwen2ForCausalLM"
    default_kv_heads = 32

    def read_fields(self, fields: ConfigFields) -> dict[str, Any]:
        fields.ignore("attention_bias")  # transformers does not read it
        return {**super().read_fields(fields), "bias": True, "attention_output_bias": False}

    def write_fields(self, config: ModelConfig) -> dict[str, Any]:
        fields = super().write_fields(config)
        del fields["attention_bias"]
        return fields
