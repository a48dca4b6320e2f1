"""Gemma 3 (Gemma Team, 2025) for text: most layers have a sliding window and another rotary base.

Gemma's norms multiply by 1 + w. Our weight is the sum, so that the norm is the same as in other models.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from transformer.errors import CheckpointError
from transformer.hub.architectures.config_fields import ConfigFields
from transformer.hub.architectures.llama_like import LlamaLike, read_rope_parameters, write_rope_parameters
from transformer.hub.architectures.sliding_window import read_layers, write_layers
from transformer.hub.architectures.tensor_rules import State, TensorRule
from transformer.model.config import ModelConfig

_WINDOW, _LOCAL_THETA = 4096, 10_000.0  # defaults of the window, and of the rotary base of layers with it
_NORMS = {
    "model.norm": "final_norm",
    "model.layers.{i}.input_layernorm": "layers.{i}.attention_norm",
    "model.layers.{i}.post_attention_layernorm": "layers.{i}.attention_output_norm",
    "model.layers.{i}.pre_feedforward_layernorm": "layers.{i}.feed_forward_norm",
    "model.layers.{i}.post_feedforward_layernorm": "layers.{i}.feed_forward_output_norm",
    "model.layers.{i}.self_attn.q_norm": "layers.{i}.attention.query_norm",
    "model.layers.{i}.self_attn.k_norm": "layers.{i}.attention.key_norm",
}


class _OnePlus(TensorRule):
    """The weight of a norm, which is 1 less in the file."""

    def to_hub(self, state: State, config: ModelConfig) -> Tensor:
        return state[self.ours[0]] - 1

    def from_hub(self, tensor: Tensor, config: ModelConfig) -> dict[str, Tensor]:
        return {self.ours[0]: tensor + 1}


def _pattern(config: ModelConfig) -> dict[str, int]:
    """`sliding_window_pattern`, which the first versions of transformers read instead of layer_types: every n-th layer
    has no window."""
    local = [config.is_local(layer) for layer in range(config.n_layers)]
    pattern = [*local, False].index(False) + 1
    follows = local == [(layer + 1) % pattern != 0 for layer in range(config.n_layers)]
    return {"sliding_window_pattern": pattern} if follows else {}


class Gemma3Text(LlamaLike):
    """`Gemma3ForCausalLM`, with the `model_type` without images."""

    model_type = "gemma3_text"
    class_name = "Gemma3ForCausalLM"
    default_kv_heads = 4
    default_head_dim = 256
    default_rope_theta = 1_000_000.0
    default_tie = True
    activation_field = "hidden_activation"
    activation_names = ("gelu_pytorch_tanh", "gelu_new")

    def read_fields(self, fields: ConfigFields) -> dict[str, Any]:
        return {
            **super().read_fields(fields),
            "activation": "geglu",
            "norm_placement": "sandwich",
            "qk_norm": True,
            "scale_embeddings": True,
            "query_pre_attn_scalar": fields.get("query_pre_attn_scalar", 256),
        }

    def read_rope(self, fields: ConfigFields) -> dict[str, Any]:
        """The base and scaling for layers without a window, and the base for those with one, which have no scaling."""
        kinds = ConfigFields(fields.get("rope_parameters", {}))
        whole = {**kinds.get("full_attention", {}), **fields.get("rope_scaling", {})}
        theta, scaling = read_rope_parameters(whole, fields, fields.get("rope_theta", self.default_rope_theta))
        base = fields.get("rope_local_base_freq", _LOCAL_THETA)
        local_theta, local_scaling = read_rope_parameters(kinds.get("sliding_attention", {}), fields, base)
        if local_scaling is not None:
            raise CheckpointError(
                f"config.json says rope_type {local_scaling.kind!r} for sliding_attention; this program scales the "
                "frequencies of full_attention alone."
            )
        kinds.expect_no_more()
        has_local = bool(self.read_window(fields))
        return {
            "rope_theta": theta,
            "rope_scaling": scaling,
            "rope_local_theta": local_theta if has_local else None,
        }

    def write_rope(self, config: ModelConfig) -> dict[str, Any]:
        rope, local_theta = write_rope_parameters(config), config.rope_local_theta or _LOCAL_THETA
        return {
            "rope_theta": config.rope_theta,
            "rope_local_base_freq": local_theta,
            **({"rope_scaling": rope} if config.rope_scaling else {}),
            "rope_parameters": {
                "full_attention": {**rope, "rope_theta": config.rope_theta},
                "sliding_attention": {"rope_type": "default", "rope_theta": local_theta},
            },
        }

    def read_window(self, fields: ConfigFields) -> dict[str, Any]:
        fields.ignore("_sliding_window_pattern", "max_window_layers")  # transformers does not read them
        fields.expect("use_sliding_window", True)
        pattern = fields.get("sliding_window_pattern", 6)
        if type(pattern) is not int or pattern < 1:
            raise CheckpointError(f"config.json says sliding_window_pattern {pattern!r}; expected a positive number.")
        window = fields.get_unless_null("sliding_window", _WINDOW)
        return read_layers(fields, window, lambda layer: (layer + 1) % pattern != 0)

    def write_fields(self, config: ModelConfig) -> dict[str, Any]:
        return {
            **super().write_fields(config),
            **write_layers(config),
            **_pattern(config),
            "sliding_window": config.sliding_window or _WINDOW,  # transformers requires one, also without such layers
            "query_pre_attn_scalar": config.query_pre_attn_scalar or config.key_dim,
        }

    def tensor_rules(self, config: ModelConfig) -> dict[str, TensorRule]:
        norms: dict[str, TensorRule] = {
            f"{theirs}.weight": _OnePlus(f"{ours}.weight") for theirs, ours in _NORMS.items()
        }
        return {**super().tensor_rules(config), **norms}
