"""The format of models that no architecture of the Hub can represent: our own config and tensor names."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from transformer.hub.architectures.adapter import Adapter
from transformer.hub.architectures.config_fields import ConfigFields
from transformer.hub.architectures.tensor_rules import TensorRule
from transformer.legacy import saved_config
from transformer.model.config import ModelConfig


class OwnFormat(Adapter):
    """Any `ModelConfig`, such as that of the original project, whose heads are averaged or summed.

    `transformers` cannot load it.
    """

    model_type = "decoder_only_transformer"
    class_name = "Transformer"

    def read_fields(self, fields: ConfigFields) -> dict[str, Any]:
        fields.ignore("tie_word_embeddings")  # also in the extra fields
        return {}

    def write_fields(self, config: ModelConfig) -> dict[str, Any]:
        return {}

    def extra_fields(self, config: ModelConfig) -> dict[str, Any]:
        return dataclasses.asdict(config)

    def make_config(self, arguments: dict[str, Any]) -> ModelConfig:
        return saved_config(arguments)

    def tensor_rules(self, config: ModelConfig) -> dict[str, TensorRule]:
        return {}

    def _rules(self, config: ModelConfig, ours: Collection[str]) -> dict[str, TensorRule]:
        return {name: TensorRule(name) for name in ours}
