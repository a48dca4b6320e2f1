"""Qwen3 (Yang et al., 2025): Llama with an RMSNorm on the queries and keys of each head."""

from __future__ import annotations

from typing import Any

from transformer.hub.architectures.config_fields import ConfigFields
from transformer.hub.architectures.llama_like import LlamaLike


class Qwen3(LlamaLike):
    """`Qwen3ForCausalLM`. Its feed-forward network has no biases."""

    model_type = "qwen3"
    class_name = "Qwen3ForCausalLM"
    default_kv_heads = 32
    default_head_dim = 128

    def read_fields(self, fields: ConfigFields) -> dict[str, Any]:
        fields.ignore("sliding_window")  # it counts only with use_sliding_window, which is refused
        return {**super().read_fields(fields), "qk_norm": True}
