"""The chat templates of a model directory, wherever it keeps them, by their names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformer.errors import CheckpointError

DEFAULT = "default"  # the name of the template that is used unless another one is asked for
FOLDER = "additional_chat_templates"  # of NAME.jinja each
CHAT_HINT = "This model has a chat template, and continues a prompt as plain text unless it is asked otherwise:"
_FILE = "chat_template.jinja"
_MAX_BYTES = 2**20


def read_templates(directory: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """The templates in files of their own or, where there are none, in `tokenizer_config.json`.

    Args:
        settings: of the `tokenizer_config.json`.

    Raises:
        CheckpointError: if a file is too large for a template, or no text.
    """
    files = {DEFAULT: directory / _FILE} | {path.stem: path for path in sorted(directory.glob(f"{FOLDER}/*.jinja"))}
    templates = {name: _read(path) for name, path in files.items() if path.exists()}
    return templates or _in_settings(settings.get("chat_template"))


def in_settings(templates: Mapping[str, str]) -> str | list[dict[str, str]]:
    """The templates as a `tokenizer_config.json` has them."""
    if list(templates) == [DEFAULT]:
        return templates[DEFAULT]
    return [{"name": name, "template": template} for name, template in templates.items()]


def remove_files(directory: Path) -> None:
    """Delete the templates in files of their own, which would come before those in `tokenizer_config.json`."""
    for path in (directory / _FILE, *directory.glob(f"{FOLDER}/*.jinja")):
        path.unlink(missing_ok=True)


def _in_settings(said: Any) -> dict[str, str]:
    if isinstance(said, list):
        said = {one.get("name"): one.get("template") for one in said if isinstance(one, dict)}
    named = said if isinstance(said, dict) else {DEFAULT: said}
    return {str(name): template for name, template in named.items() if isinstance(template, str)}


def _read(path: Path) -> str:
    if path.stat().st_size > _MAX_BYTES:
        raise CheckpointError(f"{path} has {path.stat().st_size:,} bytes, more than any chat template needs.")
    try:
        return path.read_text(encoding="utf-8")
    except ValueError as error:
        raise CheckpointError(f"{path} is no text: {error}.") from error
