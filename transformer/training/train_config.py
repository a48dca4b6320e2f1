"""The configuration of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformer.errors import ConfigError
from transformer.training.option_groups import ModelOptions, OptimizationOptions, RunOptions, TextOptions
from transformer.training.option_metadata import FormerName, Mark, Option, options_of

_GROUPS = {"text": TextOptions, "model": ModelOptions, "optimization": OptimizationOptions, "run": RunOptions}
OPTIONS: dict[str, Option] = {option.name: option for group in _GROUPS.values() for option in options_of(group)}
# The present names of options by their earlier names.
RENAMED = {former.name: name for name, option in OPTIONS.items() for former in option.find(FormerName)}


@dataclass(frozen=True)
class TrainConfig:
    """The options of a training run, in groups; command lines and config files have them without their group."""

    text: TextOptions
    model: ModelOptions = field(default_factory=ModelOptions)
    optimization: OptimizationOptions = field(default_factory=OptimizationOptions)
    run: RunOptions = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        if self.model.start_from_bigrams and (self.text.stream or self.model.init_from or self.model.embeddings_from):
            raise ConfigError("start_from_bigrams excludes stream, init_from and embeddings_from.")
        if self.text.short_window_share and not self.text.short_window_length < self.model.context_length:
            raise ConfigError(
                f"short_window_length must be below context_length ({self.model.context_length}), "
                f"not {self.text.short_window_length}."
            )

    @classmethod
    def from_options(cls, data: str, output: str = RunOptions.output, **options: Any) -> TrainConfig:
        """A configuration from options of all groups, by name, as on the command line.

        Raises:
            ConfigError: if an option is unknown or has an invalid value.
        """
        options |= {"data": data, "output": output}
        if unknown := options.keys() - OPTIONS.keys():
            raise ConfigError(f"there is no option {min(unknown)}: see train.py --help.")
        return cls(**{name: group(**_of(group, options)) for name, group in _GROUPS.items()})

    def with_options(self, **options: Any) -> TrainConfig:
        """A copy with these options changed."""
        return TrainConfig.from_options(**{**self.options(), **options})

    def options(self) -> dict[str, Any]:
        """All options by name."""
        return {
            option.name: getattr(group, option.name) for group in self._groups() for option in options_of(type(group))
        }

    def changed(self) -> dict[str, Any]:
        """The options that are not at their default."""
        return {name: value for name, value in self.options().items() if value != OPTIONS[name].default}

    def identity(self) -> dict[str, Any]:
        """The options that must be the same when a run is resumed, as JSON. Of a path only the last part counts."""
        fixed = {name: value for name, value in self.options().items() if Mark.MAY_CHANGE not in OPTIONS[name].metadata}
        for name, value in fixed.items():
            if value and Mark.PATH in OPTIONS[name].metadata:
                fixed[name] = Path(value).name
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fixed.items()}

    def _groups(self) -> tuple[TextOptions, ModelOptions, OptimizationOptions, RunOptions]:
        return self.text, self.model, self.optimization, self.run


def _of(group: type, options: dict[str, Any]) -> dict[str, Any]:
    """The options that belong to this group."""
    return {option.name: options[option.name] for option in options_of(group) if option.name in options}
