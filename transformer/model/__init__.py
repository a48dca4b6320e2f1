"""The architecture, by hand: tensors in, tensors out. Read config, positions, attention, layers, transformer."""

from transformer.model.attention import KeyValueCache
from transformer.model.config import PRESETS, ModelConfig
from transformer.model.transformer import Transformer

__all__ = ["PRESETS", "KeyValueCache", "ModelConfig", "Transformer"]
