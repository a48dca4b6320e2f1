"""The architecture, by hand: tensors in, tensors out. Begin with config, end with transformer."""

from transformer.model.config import PRESETS, ModelConfig, RopeScaling
from transformer.model.kv_cache import KVCache
from transformer.model.transformer import Transformer

__all__ = ["PRESETS", "KVCache", "ModelConfig", "RopeScaling", "Transformer"]
