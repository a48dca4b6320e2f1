"""Parsing of the options of a run, from the command line and from the file or preset of `--config`."""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path
from typing import Any

import tyro
import yaml

from transformer.errors import ConfigError
from transformer.training.option_effects import flag, refuse_without_effect
from transformer.training.option_metadata import Alias, Option
from transformer.training.train_config import OPTIONS, RENAMED, TrainConfig

_PRESETS = Path(__file__).with_name("presets")
_ALIASES = {f"--{alias.name}": flag(name) for name, option in OPTIONS.items() for alias in option.find(Alias)}


def parse(arguments: list[str], program: str = "train.py") -> TrainConfig:
    """The configuration of a run from its command line, whose options override those of `--config`.

    Args:
        program: name of the command, for messages.

    Raises:
        ConfigError: if a file or an option in it is wrong, or an option has no effect.
        SystemExit: if an argument is wrong, with a message on standard error.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    known, rest = first.parse_known_args([_resolve_alias(argument) for argument in arguments])
    if "--no-preflight" in rest or "--preflight=False" in rest:
        raise ConfigError("--no-preflight was replaced: write --preflight off.")
    for argument in rest:
        name = argument.partition("=")[0]
        if name.startswith("--") and (new := RENAMED.get(name[2:].replace("-", "_"))):
            raise ConfigError(f"{name} was renamed: write {flag(new)}.")
    options = read(known.config) if known.config else {}
    on_the_command_line = _given(rest)
    if "data" in on_the_command_line:  # the data_config of the file belongs to the data set of the file
        options.pop("data_config", None)
    # `data` is the only required option: on the command line, unless the file has it.
    default = TrainConfig.from_options(**{"data": tyro.MISSING, **options})
    description = (
        "Train a decoder-only Transformer.\n\n--config NAME|FILE: begin with the options of a preset "
        f"({', '.join(presets())}) or of a YAML or TOML file; other options override them."
    )
    flat = (tyro.conf.OmitArgPrefixes,)  # --learning-rate, not --optimization.learning-rate
    config = tyro.cli(TrainConfig, prog=program, description=description, args=rest, default=default, config=flat)
    refuse_without_effect(config, {*on_the_command_line, *options}, options.keys() - on_the_command_line)
    return config


def _given(arguments: list[str]) -> set[str]:
    """The names of the options on a command line."""
    names = {one.partition("=")[0][2:].replace("-", "_") for one in arguments if one.startswith("--")}
    return OPTIONS.keys() & (names | {name.removeprefix("no_") for name in names})


def _resolve_alias(argument: str) -> str:
    """--dataset-config=x as --data-config=x."""
    name, equals, value = argument.partition("=")
    return _ALIASES.get(name.replace("_", "-"), name) + equals + value


def presets() -> list[str]:
    """The names of the presets of runs."""
    return sorted(path.stem for path in _PRESETS.glob("*.yaml"))


def read(name: str) -> dict[str, Any]:
    """The options in a YAML or TOML file, or of a preset. Names may have hyphens or underscores.

    Raises:
        ConfigError: if there is no such file or preset, or it has an unknown option or a wrong value.
    """
    path = _PRESETS / f"{name}.yaml" if name in presets() else Path(name)
    try:
        text = path.read_text(encoding="utf-8")
        options = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"there is no config {name}: expected {', '.join(presets())} or a file.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: of TOML, of UTF-8, of dates and numbers
        raise ConfigError(f"{name} cannot be read: {error}.") from error
    if options is None:
        raise ConfigError(f"{name} is empty: expected options and their values.")
    if not isinstance(options, dict):
        raise ConfigError(f"{name} holds {type(options).__name__}: expected options and their values.")
    options = {str(key).replace("-", "_"): value for key, value in options.items()}
    for key, value in options.items():
        if key == "preflight" and isinstance(value, bool):  # YAML reads off as false
            options[key] = value = "stop" if value else "off"
        if key in RENAMED:
            raise ConfigError(f"{key} in {name} was renamed: write {RENAMED[key]}.")
        if key not in OPTIONS:
            raise ConfigError(f"{name} has an option {key} that does not exist: see train.py --help.")
        options[key] = _converted(f"{key} in {name}", value, OPTIONS[key])
    return options


def _converted(what: str, value: Any, option: Option) -> Any:
    """A value of a file converted to the type of the option; YAML reads 2e-3 as a string."""
    if value is None and option.is_optional:
        return None
    kind = option.base
    try:
        if kind is tuple:
            return (value,) if isinstance(value, str) else tuple(str(one) for one in value)
        if isinstance(value, bool) != (kind is bool):
            raise ValueError
        if kind is int and int(value) != float(value):
            raise ValueError
        if kind is str and not isinstance(value, str | int | float):  # a number may be a name
            raise ValueError
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{what} is {value!r:.80}: expected {option.expected}.") from None
