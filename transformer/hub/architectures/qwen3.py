"""Qwen3 (Yang et al., 2025): Llama with an RMSNorm on the queries and keys of each head."""

from __future__ import annotations

from typing import Any

from transformer.hub.architectures.config_fields import ConfigFields
from transformer.hub.architectures.sliding_window import SwitchedWindow


class Qwen3(SwitchedWindow):
    """`Qwen3ForCausalLM`."""

    model_type = "qwen3"
    class_name = "Qwen3ForCausalLM"
    default_kv_heads = 32
    default_head_dim = 128

    def read_fields(self, fields: ConfigFields) -> dict[str, Any]:
        return {**super().read_fields(fields), "qk_norm": True}
