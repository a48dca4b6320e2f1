"""Mistral (Jiang et al., 2023): Llama's architecture, in the first versions with a sliding attention window."""

from __future__ import annotations

from typing import Any

from transformer.errors import CheckpointError
from transformer.hub.architectures.config_fields import ConfigFields
from transformer.hub.architectures.llama_like import LlamaLike
from transformer.model.config import ModelConfig

_DEFAULT_WINDOW = 4096  # of transformers, for a missing `sliding_window`; null is no window


class Mistral(LlamaLike):
    """`MistralForCausalLM`. Either all layers have a window, `sliding_window`, or none has."""

    model_type = "mistral"
    class_name = "MistralForCausalLM"
    default_kv_heads = 8

    def read_fields(self, fields: ConfigFields) -> dict[str, Any]:
        fields.ignore("attention_bias", "max_window_layers", "use_sliding_window")  # transformers does not read them
        return {**super().read_fields(fields), "bias": False}

    def read_window(self, fields: ConfigFields) -> dict[str, Any]:
        window = fields.get_unless_null("sliding_window", _DEFAULT_WINDOW)
        expected = "full_attention" if window is None else "sliding_attention"
        if other := {str(kind) for kind in fields.get("layer_types", [])} - {expected}:
            raise CheckpointError(
                f"config.json says layer_types {min(other)!r}; with sliding_window {window!r} expected {expected}."
            )
        return {"sliding_window": window}

    def write_fields(self, config: ModelConfig) -> dict[str, Any]:
        fields = super().write_fields(config)
        del fields["attention_bias"]
        return {**fields, "sliding_window": config.sliding_window}
