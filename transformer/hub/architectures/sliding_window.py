"""The fields of `config.json` for layers with a sliding window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from transformer.errors import CheckpointError
from transformer.hub.architectures.config_fields import ConfigFields
from transformer.hub.architectures.llama_like import LlamaLike
from transformer.model.config import ModelConfig

_LOCAL, _GLOBAL = "sliding_attention", "full_attention"
_MOST_LAYERS = 10_000


def each_layer(fields: ConfigFields, rule: Callable[[int], bool]) -> tuple[bool, ...]:
    """The rule applied to each layer.

    Raises:
        CheckpointError: if there are more than `_MOST_LAYERS` layers.
    """
    n_layers = fields["num_hidden_layers"]
    if n_layers > _MOST_LAYERS:
        raise CheckpointError(f"config.json says num_hidden_layers {n_layers:,}; expected at most {_MOST_LAYERS:,}.")
    return tuple(rule(layer) for layer in range(n_layers))


def read_layers(fields: ConfigFields, window: int | None, rule: Callable[[int], bool]) -> dict[str, Any]:
    """The window and the layers that have it, according to `layer_types`, or to the rule if there is no such field.

    Raises:
        CheckpointError: if `layer_types` has another type or not one for each layer, or the window is missing.
    """
    types = fields.get("layer_types")
    if types is None:
        local = each_layer(fields, rule)
    else:
        if other := {str(kind) for kind in types} - {_LOCAL, _GLOBAL}:
            raise CheckpointError(f"config.json says layer_types {min(other)!r}; expected {_LOCAL} or {_GLOBAL}.")
        if len(types) != fields["num_hidden_layers"]:
            raise CheckpointError(
                f"config.json says layer_types of {len(types)} layers; expected {fields['num_hidden_layers']}."
            )
        local = tuple(kind == _LOCAL for kind in types)
    if not any(local):
        return {}
    if window is None:
        raise CheckpointError(f"config.json says that layers have {_LOCAL}, but no sliding_window.")
    return {"sliding_window": window, "sliding_window_layers": local}


def write_layers(config: ModelConfig) -> dict[str, Any]:
    """The window, and `layer_types`."""
    kinds = [_LOCAL if config.is_local(layer) else _GLOBAL for layer in range(config.n_layers)]
    return {"sliding_window": config.sliding_window, "layer_types": kinds}


class SwitchedWindow(LlamaLike):
    """An architecture with a sliding window if `use_sliding_window` is true."""

    default_window: ClassVar[int | None] = 4096  # for a missing `sliding_window`; null is no window

    def has_window(self, fields: ConfigFields) -> Callable[[int], bool]:
        """The rule for layers with a window if there is no `layer_types`: those from `max_window_layers` on."""
        first = fields.get("max_window_layers", 28)
        return lambda layer: layer >= first

    def read_window(self, fields: ConfigFields) -> dict[str, Any]:
        rule = self.has_window(fields)
        window = fields.get_unless_null("sliding_window", self.default_window)
        if fields.get("use_sliding_window", False):
            return read_layers(fields, window, lambda layer: window is not None and rule(layer))
        return super().read_window(fields)

    def write_fields(self, config: ModelConfig) -> dict[str, Any]:
        fields = super().write_fields(config)
        if config.sliding_window is None:
            return {**fields, "use_sliding_window": False}
        first = next(layer for layer in range(config.n_layers) if config.is_local(layer))
        # Versions of transformers that do not know layer_types read max_window_layers.
        return {**fields, "use_sliding_window": True, **write_layers(config), "max_window_layers": first}
