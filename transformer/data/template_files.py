"""The chat templates in the files of a model directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformer.errors import CheckpointError

DEFAULT = "default"  # name of the template that is used unless another one is selected
FOLDER = "additional_chat_templates"  # has NAME.jinja for each template
CHAT_HINT = "This model has a chat template, and continues a prompt as plain text unless it is asked otherwise:"
_FILE = "chat_template.jinja"
_MAX_BYTES = 2**20


def read_templates(directory: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """The templates by name, from .jinja files or, if there are none, from `tokenizer_config.json`.

    Args:
        settings: of the `tokenizer_config.json`.

    Raises:
        CheckpointError: if a file is too large for a template, or is not text.
    """
    files = {DEFAULT: directory / _FILE} | {path.stem: path for path in sorted(directory.glob(f"{FOLDER}/*.jinja"))}
    templates = {name: _read(path) for name, path in files.items() if path.exists()}
    return templates or _from_setting(settings.get("chat_template"))


def to_setting(templates: Mapping[str, str]) -> str | list[dict[str, str]]:
    """The value of `chat_template` in a `tokenizer_config.json`."""
    if list(templates) == [DEFAULT]:
        return templates[DEFAULT]
    return [{"name": name, "template": template} for name, template in templates.items()]


def remove_files(directory: Path) -> None:
    """Delete the .jinja files, which would override the templates in `tokenizer_config.json`."""
    for path in (directory / _FILE, *directory.glob(f"{FOLDER}/*.jinja")):
        path.unlink(missing_ok=True)


def _from_setting(value: Any) -> dict[str, str]:
    if isinstance(value, list):
        value = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
    named = value if isinstance(value, dict) else {DEFAULT: value}
    return {str(name): template for name, template in named.items() if isinstance(template, str)}


def _read(path: Path) -> str:
    if path.stat().st_size > _MAX_BYTES:
        raise CheckpointError(f"{path} has {path.stat().st_size:,} bytes, more than any chat template needs.")
    try:
        return path.read_text(encoding="utf-8")
    except ValueError as error:
        raise CheckpointError(f"{path} is not text: {error}.") from error
