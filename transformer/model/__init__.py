"""The architecture, written by hand. Read config.py first, then positions, attention, layers and transformer."""

from transformer.model.config import PRESETS, ModelConfig, RopeScaling
from transformer.model.kv_cache import KVCache
from transformer.model.transformer import Transformer

__all__ = ["PRESETS", "KVCache", "ModelConfig", "RopeScaling", "Transformer"]
