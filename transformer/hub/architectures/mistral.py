"""Mistral (Jiang et al., 2023): Llama's architecture, in the first versions with a sliding attention window."""

from __future__ import annotations

import logging
from typing import Any

from transformer.hub.architectures.config_fields import ConfigFields
from transformer.hub.architectures.llama_like import LlamaLike
from transformer.model.config import ModelConfig

logger = logging.getLogger(__name__)

_DEFAULT_WINDOW = 4096  # what transformers takes for a missing `sliding_window`; null is no window


class Mistral(LlamaLike):
    """`MistralForCausalLM`, with texts of at most one window.

    Within its window every token attends to all tokens before it. A longer context would need a window in attention,
    which is not implemented: the context length of such a model is its window.
    """

    model_type = "mistral"
    class_name = "MistralForCausalLM"
    default_kv_heads = 8

    def read_fields(self, fields: ConfigFields) -> dict[str, Any]:
        fields.ignore("attention_bias")  # transformers does not read it
        arguments = {**super().read_fields(fields), "bias": False}
        window = fields.get("sliding_window", _DEFAULT_WINDOW)
        if window and window < arguments["context_length"]:
            logger.warning(
                "Attention windows are not implemented: the context of this model is its window of %s tokens, instead "
                "of %s.",
                f"{window:,}",
                f"{arguments['context_length']:,}",
            )
            arguments["context_length"] = window
        return arguments

    def write_fields(self, config: ModelConfig) -> dict[str, Any]:
        fields = super().write_fields(config)
        del fields["attention_bias"]
        return {**fields, "sliding_window": None}
