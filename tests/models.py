"""Small models and texts for the tests."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from transformer.data.tokenizer import Tokenizer
from transformer.hub import checkpoint
from transformer.hub.architectures import adapter_for
from transformer.legacy import model_class, preset_config
from transformer.model import ModelConfig, Transformer

SENTENCES = [
    "The lobster is blue in life, and turns red on cooking.",
    "In 1889 the tower was the tallest in the world; it is 300 metres high.",
    "Naïve café owners sold crème brûlée for £5 — or €6 — to the 東京 tourists 🦞.",
    "The river rises in the hills, and the river meets the sea near the old town.",
]

# What single architectures of the Hub have beside the modern preset; of two layers.
FEATURES: dict[str, dict[str, Any]] = {
    "local": {"sliding_window": 5, "sliding_window_layers": (True, False)},
    "nope": {"rope_layers": (True, False), "qk_norm": False},
    "reordered": {"norm_placement": "reordered", "joint_qk_norm": True},
    "sandwich": {
        **dict(norm_placement="sandwich", activation="geglu", scale_embeddings=True, query_pre_attn_scalar=20),
        **dict(sliding_window=5, sliding_window_layers=(True, False), rope_local_theta=50.0),
    },
}


def tiny_config(preset: str = "modern", **overrides: object) -> ModelConfig:
    """The preset, or the modern one with one of FEATURES, at a size that a test computes in milliseconds."""
    if preset in FEATURES:
        preset, overrides = "modern", {**FEATURES[preset], **overrides}
    sizes = dict(vocab_size=300, context_length=32, d_model=32, n_layers=2, n_heads=4, dropout=0.0)
    return preset_config(preset, **{**sizes, **overrides})


def new_model(config: ModelConfig) -> Transformer:
    """A model of the class that computes this architecture."""
    return model_class(config)(config)


def tiny_model(preset: str = "modern", seed: int = 0, **overrides: object) -> Transformer:
    """A model with weights of a size at which mistakes show: every layer changes the result."""
    torch.manual_seed(seed)
    model = new_model(tiny_config(preset, **overrides)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def tiny_tokenizer(vocab_size: int = 300) -> Tokenizer:
    """A byte-level BPE trained on a few sentences."""
    return Tokenizer.train(SENTENCES * 5, vocab_size, pad="<|pad|>")


def tiny_model_directory(path: str | Path, preset: str = "modern", **overrides: object) -> Path:
    """A model directory with random weights."""
    tokenizer = tiny_tokenizer()
    checkpoint.save(tiny_model(preset, vocab_size=tokenizer.vocab_size, **overrides), tokenizer, path)
    return Path(path)


def model_config(fields: Mapping[str, Any]) -> ModelConfig:
    """Our config from the fields of a `config.json`."""
    return adapter_for(fields.get("model_type")).model_config(fields)
