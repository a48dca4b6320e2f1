"""The architectures of the Hub that can be loaded and saved, one module each.

A newly built model is saved as the architecture with its features; a loaded model keeps its architecture.
docs/adding-an-architecture.md says how to add one.

| features | saved as |
|---|---|
| rotary positions, RMSNorm before each sub-layer, SwiGLU, QK-norm | qwen3 |
| the same without QK-norm | llama |
| the same as llama, with biases on queries, keys and values only | qwen2 |
| the same as llama, with layers without rotary positions | smollm3 |
| rotary positions, RMSNorm after each sub-layer, SwiGLU, QK-norm of all heads together | olmo2 |
| rotary positions, RMSNorm before and after each sub-layer, GeGLU, embeddings times sqrt(d_model) | gemma3_text |
| learned positions, LayerNorm before each sub-layer, GELU | gpt2 |
| LayerNorm, ReLU, sinusoidal or learned positions | opt |
| all others, such as heads that are averaged or summed | our own format |
"""

from __future__ import annotations

from transformer.errors import CheckpointError
from transformer.hub.architectures.adapter import Adapter
from transformer.hub.architectures.gemma3_text import Gemma3Text
from transformer.hub.architectures.gpt2 import GPT2
from transformer.hub.architectures.llama import Llama
from transformer.hub.architectures.mistral import Mistral
from transformer.hub.architectures.olmo2 import OLMo2
from transformer.hub.architectures.opt import OPT
from transformer.hub.architectures.own_format import OwnFormat
from transformer.hub.architectures.qwen2 import Qwen2
from transformer.hub.architectures.qwen3 import Qwen3
from transformer.hub.architectures.smollm3 import SmolLM3
from transformer.model.config import ModelConfig

ADAPTERS: dict[str, Adapter] = {  # in the order in which they are tried for a newly built model
    adapter.model_type: adapter
    for adapter in (
        Qwen3(),
        Llama(),
        GPT2(),
        OPT(),
        Qwen2(),
        Mistral(),
        SmolLM3(),
        OLMo2(),
        Gemma3Text(),
        OwnFormat(),
    )
}


def adapter_for(model_type: object) -> Adapter:
    """The adapter for the `model_type` of a `config.json`.

    Raises:
        CheckpointError: if there is none.
    """
    if isinstance(model_type, str) and model_type in ADAPTERS:
        return ADAPTERS[model_type]
    raise CheckpointError(
        f"config.json says model_type {model_type!r}; this program opens {', '.join(sorted(ADAPTERS))}."
    )


def default_adapter(config: ModelConfig) -> Adapter:
    """The adapter for a newly built model: the first that can represent its config."""
    return next(adapter for adapter in ADAPTERS.values() if adapter.represents(config))
