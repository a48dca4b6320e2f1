"""Random weights in the shapes of models that are published, as files in bf16: what a benchmark of the real ones needs.

The context is shorter than theirs: a table of positions and a cache take memory that no text of a benchmark uses.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from transformer.hub.architectures import adapter_for
from transformer.model import ModelConfig, Transformer
from transformer.model.config import RopeScaling

CONTEXT = 1024
_LLAMA3 = RopeScaling("llama3", factor=32.0, original_context=8192, low_freq_factor=1.0, high_freq_factor=4.0)
# Of each: its type on the Hub, and its sizes and choices.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "smollm2-135m": (
        "llama",
        dict(d_model=576, n_layers=30, n_heads=9, n_kv_heads=3, d_feed_forward=1536, vocab_size=49152, norm_eps=1e-5)
        | dict(rope_theta=1e5),
    ),
    "qwen3-0.6b": (
        "qwen3",
        dict(d_model=1024, n_layers=28, n_heads=16, n_kv_heads=8, d_feed_forward=3072, vocab_size=151936)
        | dict(norm_eps=1e-6, rope_theta=1e6, head_dim=128, qk_norm=True),
    ),
    "llama-3.2-1b": (
        "llama",
        dict(d_model=2048, n_layers=16, n_heads=32, n_kv_heads=8, d_feed_forward=8192, vocab_size=128256)
        | dict(norm_eps=1e-5, rope_theta=5e5, rope_scaling=_LLAMA3),
    ),
}


def shape_config(name: str) -> ModelConfig:
    """The architecture of the published model, with a shorter context."""
    choices = {"qk_norm": False, "tie_embeddings": True, **SHAPES[name][1]}
    return ModelConfig.preset("modern", context_length=CONTEXT, dropout=0.0, **choices)


def write_shape(name: str, directory: Path) -> None:
    """A model directory without a tokenizer, its weights drawn from a normal distribution, and norms of 1."""
    config, adapter = shape_config(name), adapter_for(SHAPES[name][0])
    with torch.device("meta"):  # names and shapes alone
        model = Transformer(config, initialize=False)
    tensors = {}
    for theirs, like in adapter.export_state(model.state_dict(), config).items():
        tensors[theirs] = torch.ones(like.shape, dtype=torch.bfloat16)
        if like.dim() > 1:
            tensors[theirs].normal_(std=0.02)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    fields = adapter.hub_config(config) | {"dtype": "bfloat16"}
    (directory / "config.json").write_text(json.dumps(fields), encoding="utf-8")
