"""The base class of the adapters, one for each `model_type` of the Hub."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from torch import Tensor

from transformer.errors import CheckpointError, ConfigError
from transformer.hub.architectures.config_fields import EXTRA_KEY, ConfigFields
from transformer.hub.architectures.tensor_rules import State, TensorRule
from transformer.hub.weights import as_float
from transformer.inference.weight_memory import UnchangedMappings
from transformer.model.config import ModelConfig

_EMBEDDING, _HEAD = "token_embedding.weight", "head.weight"


class Adapter(ABC):
    """Converts `config.json` and tensor names of one architecture of the Hub to ours, and back."""

    model_type: ClassVar[str]  # in config.json
    class_name: ClassVar[str]  # of the model in transformers
    base_prefix: ClassVar[str] = ""  # of the names of all tensors but the head; files without a head leave it out
    ignored_suffixes: ClassVar[tuple[str, ...]] = ()  # of the names of buffers, which old files have

    # What differs between architectures.

    @abstractmethod
    def read_fields(self, fields: ConfigFields) -> dict[str, Any]:
        """The arguments of our `ModelConfig`, from the fields of a `config.json`.

        Every field that changes the result of the model has to be read here, or checked with `expect`: other fields
        are refused, except those that `config_fields` lists as having no effect.

        Raises:
            CheckpointError: if a field is missing, or has a value that is not supported.
        """

    @abstractmethod
    def write_fields(self, config: ModelConfig) -> dict[str, Any]:
        """The fields of `config.json` for a model of this config, which `read_fields` reads."""

    def extra_fields(self, config: ModelConfig) -> dict[str, Any]:
        """Arguments of `ModelConfig` that have no field on the Hub, and that other programs may ignore."""
        return {}

    def make_config(self, arguments: dict[str, Any]) -> ModelConfig:
        """The config with the arguments of `read_fields` and the extra fields."""
        return ModelConfig(**arguments)

    @abstractmethod
    def tensor_rules(self, config: ModelConfig) -> dict[str, TensorRule]:
        """The rule for each tensor of a file. `{i}` in a name stands for the number of the layer."""

    def ties_head(self, config: ModelConfig) -> bool:
        """Whether a file has one matrix for the embedding and the head."""
        return config.tie_embeddings

    # What is the same for all architectures.

    def model_config(self, fields: Mapping[str, Any]) -> ModelConfig:
        """Our config from a `config.json`.

        Raises:
            CheckpointError: if it is not supported, or contradicts itself.
        """
        config = self._read(fields)
        if not self.represents(config):
            raise CheckpointError(f"config.json says {EXTRA_KEY} {fields.get(EXTRA_KEY)!r}, which no {self} can be.")
        return config

    def hub_config(self, config: ModelConfig) -> dict[str, Any]:
        """The `config.json` of a model of this config.

        Raises:
            ConfigError: if this architecture cannot represent the config.
        """
        if not self.represents(config):
            raise ConfigError(
                f"this model cannot be written as a {self}: that computes something else. Leave out the model type, "
                "and it is written as one that computes the same."
            )
        return self._write(config)

    def represents(self, config: ModelConfig) -> bool:
        """Whether this architecture can represent the config: written and read again, it is the same."""
        try:
            return self._read(self._write(config)) == config
        except CheckpointError:
            return False

    def export_state(self, state: State, config: ModelConfig) -> dict[str, Tensor]:
        """Our state dict under the names of the Hub, without a head that is tied there."""
        tied = self.ties_head(config)
        return {
            theirs: rule.to_hub(state, config)
            for theirs, rule in self._rules(config, state).items()
            if not (tied and rule.ours == (_HEAD,))
        }

    def import_state(
        self, tensors: State, config: ModelConfig, ours: State, keep_half: bool = False
    ) -> dict[str, Tensor]:
        """The tensors of a file under our names, in fp32. One of a tied embedding and head may be missing.

        Args:
            ours: a state dict of a model of this `config`, for its shapes.
            keep_half: matrices in bf16 and fp16 are not converted.

        Raises:
            CheckpointError: if a tensor is missing, has another shape or numbers that are not finite, or does not
                belong to this architecture.
        """
        rules = self._rules(config, ours)
        base = self.base_prefix
        bare = not any(name.startswith(base) for name in tensors)  # the file leaves the prefix out
        state: dict[str, Tensor] = {}
        files = UnchangedMappings(tensors.values())
        for name, tensor in tensors.items():
            theirs = base + name if bare and name not in rules else name
            if theirs not in rules:
                if name.endswith(self.ignored_suffixes):
                    continue
                raise CheckpointError(f"the weights hold {name!r}, for which {self.class_name} has no place.")
            rule = rules[theirs]
            expected = rule.to_hub(ours, config).shape
            if tensor.shape != expected:
                raise CheckpointError(f"{name!r} has shape {tuple(tensor.shape)}, expected {tuple(expected)}.")
            state.update(rule.from_hub(as_float(name, tensor, keep_half), config))
            files.give_back(tensor)  # of which all numbers were read
        present = set(state)
        if config.tie_embeddings:  # one of them is enough; if there is neither, the embedding is reported as missing
            tied = {_EMBEDDING, _HEAD}
            present |= tied if present & tied else {_HEAD}
        missing = [theirs for theirs, rule in rules.items() if not present.issuperset(rule.ours)]
        if missing:
            first = missing[0].removeprefix(base) if bare else missing[0]
            hint = (
                ' If the head of this model is its embedding, set "tie_word_embeddings": true in config.json.'
                if [rules[theirs].ours for theirs in missing] == [(_HEAD,)]
                else ""
            )
            raise CheckpointError(f"the weights lack {len(missing)} tensors, the first of them {first!r}.{hint}")
        return state

    def __str__(self) -> str:
        return f"model of type {self.model_type}"

    def _read(self, fields: Mapping[str, Any]) -> ModelConfig:
        known = ConfigFields(fields)
        try:
            config = self.make_config({**self.read_fields(known), **known.get(EXTRA_KEY, {})})
            known.expect_no_more()
        except (ConfigError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"config.json is not understood: {error}") from error
        return config

    def _write(self, config: ModelConfig) -> dict[str, Any]:
        extra = self.extra_fields(config)
        return {
            "architectures": [self.class_name],
            "model_type": self.model_type,
            **self.write_fields(config),
            "tie_word_embeddings": self.ties_head(config),
            "dtype": "float32",
            **({EXTRA_KEY: extra} if extra else {}),
        }

    def _rules(self, config: ModelConfig, ours: Collection[str]) -> dict[str, TensorRule]:
        """The rules of all layers, for the parameters that the model has."""
        rules: dict[str, TensorRule] = {}
        for theirs, rule in self.tensor_rules(config).items():
            if "{i}" in theirs:
                rules |= {theirs.format(i=i): rule.at_layer(i) for i in range(config.n_layers)}
            else:
                rules[theirs] = rule
        return {theirs: rule for theirs, rule in rules.items() if all(name in ours for name in rule.ours)}
