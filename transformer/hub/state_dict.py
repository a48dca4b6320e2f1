"""Our parameter names and those of the Hub's architectures.

Each table is read as: the Hub's tensor on the left is made of ours on the right. `{i}` is the layer.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from transformer.errors import CheckpointError
from transformer.hub.config_mapping import hub_architecture, hub_config
from transformer.hub.weights import as_float
from transformer.model.config import ModelConfig
from transformer.model.positions import sinusoids

_OPT_OFFSET = 2  # OPT's table of positions begins with two rows that are never used

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Same:
    """The tensor as it is."""

    ours: str

    def to_hub(self, state: State, config: ModelConfig) -> Tensor:
        return state[self.ours]

    def from_hub(self, tensor: Tensor, config: ModelConfig) -> dict[str, Tensor]:
        return {self.ours: tensor}


@dataclass(frozen=True)
class Stacked:
    """Several tensors one after the other along the output; transposed if they are matrices of GPT-2's Conv1D."""

    ours: tuple[str, ...]

    def to_hub(self, state: State, config: ModelConfig) -> Tensor:
        stacked = torch.cat([state[name] for name in self.ours])
        return stacked.t().contiguous() if stacked.dim() == 2 else stacked

    def from_hub(self, tensor: Tensor, config: ModelConfig) -> dict[str, Tensor]:
        stacked = tensor.t() if tensor.dim() == 2 else tensor
        parts = stacked.chunk(len(self.ours))
        return {name: part.contiguous() for name, part in zip(self.ours, parts, strict=True)}


@dataclass(frozen=True)
class ScaledEmbedding:
    """The embedding with sqrt(d_model) multiplied in, for an architecture that does not scale."""

    ours: str

    def to_hub(self, state: State, config: ModelConfig) -> Tensor:
        return state[self.ours] * math.sqrt(config.d_model) if config.scale_embeddings else state[self.ours]

    def from_hub(self, tensor: Tensor, config: ModelConfig) -> dict[str, Tensor]:
        if config.scale_embeddings and config.tie_embeddings:
            return {}  # the same matrix stands unscaled, and therefore exact, in lm_head.weight
        return {self.ours: tensor / math.sqrt(config.d_model) if config.scale_embeddings else tensor}


@dataclass(frozen=True)
class OptPositions:
    """The table of positions, behind OPT's two unused rows; sinusoids are written out."""

    ours: str

    def to_hub(self, state: State, config: ModelConfig) -> Tensor:
        if config.positions == "sinusoidal":
            table = sinusoids(config.context_length, config.d_model)
        else:
            table = state[self.ours]
        return torch.cat([table.new_zeros(_OPT_OFFSET, config.d_model), table])

    def from_hub(self, tensor: Tensor, config: ModelConfig) -> dict[str, Tensor]:
        return {} if config.positions == "sinusoidal" else {self.ours: tensor[_OPT_OFFSET:].contiguous()}


Rule = Same | Stacked | ScaledEmbedding | OptPositions


def _linear(theirs: str, ours: str) -> dict[str, Rule]:
    return {f"{theirs}.{part}": Same(f"{ours}.{part}") for part in ("weight", "bias")}


def _conv1d(theirs: str, *ours: str) -> dict[str, Rule]:
    return {f"{theirs}.{part}": Stacked(tuple(f"{name}.{part}" for name in ours)) for part in ("weight", "bias")}


LLAMA: dict[str, Rule] = {  # and Qwen3, which adds the two norms of queries and keys
    "model.embed_tokens.weight": Same("token_embedding.weight"),
    **_linear("model.layers.{i}.self_attn.q_proj", "layers.{i}.attention.query"),
    **_linear("model.layers.{i}.self_attn.k_proj", "layers.{i}.attention.key"),
    **_linear("model.layers.{i}.self_attn.v_proj", "layers.{i}.attention.value"),
    **_linear("model.layers.{i}.self_attn.o_proj", "layers.{i}.attention.output"),
    "model.layers.{i}.self_attn.q_norm.weight": Same("layers.{i}.attention.query_norm.weight"),
    "model.layers.{i}.self_attn.k_norm.weight": Same("layers.{i}.attention.key_norm.weight"),
    "model.layers.{i}.input_layernorm.weight": Same("layers.{i}.attention_norm.weight"),
    **_linear("model.layers.{i}.mlp.gate_proj", "layers.{i}.feed_forward.gate"),
    **_linear("model.layers.{i}.mlp.up_proj", "layers.{i}.feed_forward.up"),
    **_linear("model.layers.{i}.mlp.down_proj", "layers.{i}.feed_forward.down"),
    "model.layers.{i}.post_attention_layernorm.weight": Same("layers.{i}.feed_forward_norm.weight"),
    "model.norm.weight": Same("final_norm.weight"),
    "lm_head.weight": Same("head.weight"),
}

GPT2: dict[str, Rule] = {
    "transformer.wte.weight": Same("token_embedding.weight"),
    "transformer.wpe.weight": Same("position_embedding.weight"),
    **_linear("transformer.h.{i}.ln_1", "layers.{i}.attention_norm"),
    **_conv1d(
        "transformer.h.{i}.attn.c_attn",
        "layers.{i}.attention.query",
        "layers.{i}.attention.key",
        "layers.{i}.attention.value",
    ),
    **_conv1d("transformer.h.{i}.attn.c_proj", "layers.{i}.attention.output"),
    **_linear("transformer.h.{i}.ln_2", "layers.{i}.feed_forward_norm"),
    **_conv1d("transformer.h.{i}.mlp.c_fc", "layers.{i}.feed_forward.up"),
    **_conv1d("transformer.h.{i}.mlp.c_proj", "layers.{i}.feed_forward.down"),
    **_linear("transformer.ln_f", "final_norm"),
    "lm_head.weight": Same("head.weight"),
}

OPT: dict[str, Rule] = {
    "model.decoder.embed_tokens.weight": ScaledEmbedding("token_embedding.weight"),
    "model.decoder.embed_positions.weight": OptPositions("position_embedding.weight"),
    **_linear("model.decoder.layers.{i}.self_attn.q_proj", "layers.{i}.attention.query"),
    **_linear("model.decoder.layers.{i}.self_attn.k_proj", "layers.{i}.attention.key"),
    **_linear("model.decoder.layers.{i}.self_attn.v_proj", "layers.{i}.attention.value"),
    **_linear("model.decoder.layers.{i}.self_attn.out_proj", "layers.{i}.attention.output"),
    **_linear("model.decoder.layers.{i}.self_attn_layer_norm", "layers.{i}.attention_norm"),
    **_linear("model.decoder.layers.{i}.fc1", "layers.{i}.feed_forward.up"),
    **_linear("model.decoder.layers.{i}.fc2", "layers.{i}.feed_forward.down"),
    **_linear("model.decoder.layers.{i}.final_layer_norm", "layers.{i}.feed_forward_norm"),
    **_linear("model.decoder.final_layer_norm", "final_norm"),
    "lm_head.weight": Same("head.weight"),
}

# Buffers that old files of these architectures hold beside the trained weights.
_IGNORED_SUFFIXES = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")

_TIED = {"token_embedding.weight", "head.weight"}

# What stands before the names of all but the head; files of the model without its head leave it out, as GPT-2's own do.
_BASE = {
    "Qwen3ForCausalLM": "model.",
    "LlamaForCausalLM": "model.",
    "GPT2LMHeadModel": "transformer.",
    "OPTForCausalLM": "model.",
}

_TABLES = {"Qwen3ForCausalLM": LLAMA, "LlamaForCausalLM": LLAMA, "GPT2LMHeadModel": GPT2, "OPTForCausalLM": OPT}


def hub_state(state: State, config: ModelConfig) -> dict[str, Tensor]:
    """Our state dict under the Hub's names. A tied head is left out where the Hub's architecture ties it too."""
    architecture = hub_architecture(config)
    if architecture is None:
        return {name: tensor for name, tensor in state.items() if not (config.tie_embeddings and name == "head.weight")}
    tied = hub_config(config)["tie_word_embeddings"]
    return {
        theirs: rule.to_hub(state, config)
        for theirs, rule in _rows(architecture, config)
        if _names(rule) <= state.keys() | _computed(config) and not (tied and theirs == "lm_head.weight")
    }


def model_state(tensors: State, config: ModelConfig, ours: State) -> dict[str, Tensor]:
    """The Hub's tensors under our names, in fp32. Of a tied embedding and head there may be only one.

    Args:
        ours: a state dict of a model of this `config`, of which the shapes alone are looked at.

    Raises:
        CheckpointError: if a tensor is missing, has another shape, holds anything but finite numbers, or has no place
            in this architecture. Tensors have the names that they have in the file.
    """
    architecture = hub_architecture(config)
    rules = dict(_rows(architecture, config)) if architecture else {name: Same(name) for name in ours}
    base = _BASE[architecture] if architecture else ""
    bare = not any(name.startswith(base) for name in tensors)  # the file leaves out what stands before most names
    rules = {theirs: rule for theirs, rule in rules.items() if _names(rule) <= ours.keys() | _computed(config)}
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        theirs = base + name if bare and name not in rules else name
        if theirs not in rules:
            if name.endswith(_IGNORED_SUFFIXES):
                continue
            raise CheckpointError(f"the weights hold {name!r}, for which {architecture or 'the model'} has no place.")
        rule = rules[theirs]
        expected = rule.to_hub(ours, config).shape
        if tensor.shape != expected:
            raise CheckpointError(f"{name!r} has shape {tuple(tensor.shape)}, expected {tuple(expected)}.")
        state.update(rule.from_hub(as_float(name, tensor), config))
    present = set(state)
    if config.tie_embeddings:  # either name will do; if there is neither, the embedding is what is missing
        present |= _TIED if present & _TIED else {"head.weight"}
    missing = [theirs for theirs, rule in rules.items() if not _names(rule) <= present | _computed(config)]
    if missing:
        first = missing[0].removeprefix(base) if bare else missing[0]
        hint = (
            ""
            if missing != ["lm_head.weight"]
            else (' If the head of this model is its embedding, set "tie_word_embeddings": true in config.json.')
        )
        raise CheckpointError(f"the weights lack {len(missing)} tensors, the first of them {first!r}.{hint}")
    return state


def _rows(architecture: str, config: ModelConfig) -> list[tuple[str, Rule]]:
    """The table of an architecture with a row for each layer."""
    rows: list[tuple[str, Rule]] = []
    for theirs, rule in _TABLES[architecture].items():
        if "{i}" not in theirs:
            rows.append((theirs, rule))
            continue
        for i in range(config.n_layers):
            ours: Any = rule.ours
            ours = tuple(name.format(i=i) for name in ours) if isinstance(ours, tuple) else ours.format(i=i)
            rows.append((theirs.format(i=i), dataclasses.replace(rule, ours=ours)))
    return rows


def _names(rule: Rule) -> set[str]:
    return set(rule.ours) if isinstance(rule.ours, tuple) else {rule.ours}


def _computed(config: ModelConfig) -> set[str]:
    """Our names of tables that are written to the Hub though we hold no weights for them."""
    return {"position_embedding.weight"} if config.positions == "sinusoidal" else set()
