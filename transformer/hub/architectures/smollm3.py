"""SmolLM3 (Hugging Face, 2025): Llama without rotary positions in every fourth layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformer.errors import CheckpointError
from transformer.hub.architectures.config_fields import ConfigFields
from transformer.hub.architectures.sliding_window import SwitchedWindow, each_layer
from transformer.model.config import ModelConfig


class SmolLM3(SwitchedWindow):
    """`SmolLM3ForCausalLM`. With a sliding window, the layers without rotary positions have it."""

    model_type = "smollm3"
    class_name = "SmolLM3ForCausalLM"
    default_kv_heads = 4
    default_rope_theta = 2_000_000.0
    default_tie = True
    default_window = None

    def read_fields(self, fields: ConfigFields) -> dict[str, Any]:
        fields.ignore("max_window_layers")  # transformers does not read it
        arguments = super().read_fields(fields)
        return {
            **arguments,
            "rope_layers": _rope_layers(fields),
            "feed_forward_bias": fields.get("mlp_bias", False),
        }

    def has_window(self, fields: ConfigFields) -> Callable[[int], bool]:
        rotates = _rope_layers(fields)
        return lambda layer: not rotates[layer]

    def write_fields(self, config: ModelConfig) -> dict[str, Any]:
        fields = super().write_fields(config)
        fields.pop("max_window_layers", None)
        rotates = [int(config.rotates(layer)) for layer in range(config.n_layers)]
        # The defaults of transformers are the ids of the original model, which a smaller vocabulary does not have.
        ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
        return {**fields, **ids, "no_rope_layers": rotates, "mlp_bias": config.feed_forward_bias}


def _rope_layers(fields: ConfigFields) -> tuple[bool, ...]:
    """Which layers have rotary positions: those with a 1 in `no_rope_layers`, or by default all but every n-th.

    Raises:
        CheckpointError: if the field is malformed.
    """
    n_layers, interval = fields["num_hidden_layers"], fields.get("no_rope_layer_interval", 4)
    flags = fields.get("no_rope_layers")
    if flags is None:
        if type(interval) is not int or interval < 1:
            raise CheckpointError(f"config.json says no_rope_layer_interval {interval!r}; expected a positive number.")
        return each_layer(fields, lambda layer: (layer + 1) % interval != 0)
    if not isinstance(flags, list) or len(flags) < n_layers or any(flag not in (0, 1) for flag in flags):
        raise CheckpointError(
            f"config.json says no_rope_layers {flags!r}; expected 0 or 1 for each of {n_layers} layers."
        )
    return tuple(flag == 1 for flag in flags[:n_layers])
