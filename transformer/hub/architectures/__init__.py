"""The architectures of the Hub that this program opens and writes, one module each.

| features | written as |
|---|---|
| rotary, RMSNorm before, SwiGLU, QK-norm | qwen3 |
| the same without QK-norm | llama |
| that with biases on queries, keys and values alone | qwen2 |
| that with layers without rotary positions | smollm3 |
| rotary, RMSNorm of what each sub-layer adds, SwiGLU, QK-norm of all heads together | olmo2 |
| rotary, RMSNorm before and after each sub-layer, GeGLU, embeddings times sqrt(d_model) | gemma3_text |
| learned positions, LayerNorm before, GELU | gpt2 |
| LayerNorm, ReLU, sinusoidal or learned positions | opt |
| all else, such as heads averaged or summed | our own format |

The table is for newly built models. A model that was opened is written as what it was. How to add an architecture is
in docs/adding-an-architecture.md.
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

# A newly built model is written as the first that computes the same, so that a new architecture is added at the end.
ADAPTERS: dict[str, Adapter] = {
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
    """The adapter of the `model_type` of a `config.json`.

    Raises:
        CheckpointError: if there is none.
    """
    if isinstance(model_type, str) and model_type in ADAPTERS:
        return ADAPTERS[model_type]
    raise CheckpointError(
        f"config.json says model_type {model_type!r}; this program opens {', '.join(sorted(ADAPTERS))}."
    )


def default_adapter(config: ModelConfig) -> Adapter:
    """The adapter of a newly built model: the first that computes what `config` says."""
    return next(adapter for adapter in ADAPTERS.values() if adapter.represents(config))
