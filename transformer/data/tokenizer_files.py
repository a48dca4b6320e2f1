"""The files of a tokenizer: `tokenizer.json`, BERT's or GPT-2's vocabulary, and what its settings say. They may be
untrusted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from transformer.data import gpt2_tokenizer, prefix_space, tokenizer_safety, wordpiece
from transformer.errors import CheckpointError
from transformer.files import read_json

TEMPLATE_FILE = "chat_template.jinja"
_FILES = ("tokenizer.json", "vocab.txt", "vocab.json")  # the first that a directory has
_MAX_BYTES = 33 * 2**20  # of a file: the largest known, of 262,144 tokens, has 32
_MAX_TEMPLATE_BYTES = 2**20


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer as it was read.

    end_of_text, pad: tokens. settings: of `tokenizer_config.json`. end_ids: with which a generated text ends.
    """

    backend: Backend
    end_of_text: str | None
    pad: str | None
    settings: dict[str, Any]
    chat_template: str | None
    end_ids: list[int]


def read_files(path: Path) -> TokenizerFiles:
    """Read a `tokenizer.json`, BERT's `vocab.txt` or GPT-2's `vocab.json` (with the `merges.txt` beside it), or a
    directory that holds one.

    Raises:
        CheckpointError: if it is not there, cannot be read, or is refused by `tokenizer_safety`.
    """
    if path.is_dir():
        path = next((path / name for name in _FILES if (path / name).exists()), path / _FILES[0])
    settings = _optional_json(path.with_name("tokenizer_config.json"))
    config = _optional_json(path.with_name("config.json"))
    with reported(f"{path} is not a tokenizer that can be read"):
        backend = _open(path, settings, config)
        fault = tokenizer_safety.fault(backend)
    if fault:
        raise CheckpointError(f"{path} is refused: {fault}.")
    backend.no_truncation()  # what a file says of these is how somebody else used it once
    backend.no_padding()
    wordpiece.leave_texts_bare(backend)
    prefix_space.apply_setting(backend, settings, config)
    ends = _end_ids(path.parent)
    pad = token_of(settings.get("pad_token"))
    if pad is None and backend.token_to_id(wordpiece.PAD) is not None:
        pad = wordpiece.PAD
    end = token_of(settings.get("eos_token")) or next(filter(None, map(backend.id_to_token, ends)), None)
    return TokenizerFiles(backend, end, pad, settings, _chat_template(path.parent, settings), ends)


def _open(path: Path, settings: Mapping[str, Any], config: Mapping[str, Any]) -> Backend:
    """The tokenizer of a file, whose name says of what kind it is.

    Raises:
        CheckpointError: if it is not there, is too large, or is part of a tokenizer of another kind.
        Exception: if it cannot be read.
    """
    merges = path.with_name("merges.txt")
    pair = path.name == "vocab.json"
    if not path.exists() or (pair and prefix_space.tokenizer_class(settings, config) != "GPT2Tokenizer"):
        raise CheckpointError(
            f'{path.parent} has no tokenizer.json. Make one: python -c "from transformers import AutoTokenizer as A; '
            f"A.from_pretrained('{path.parent}').save_pretrained('{path.parent}')\""
        )
    if pair and not merges.exists():
        raise CheckpointError(f"{path.parent} has a vocab.json without its merges.txt.")
    for file in (path, merges) if pair else (path,):
        if file.is_file() and file.stat().st_size > _MAX_BYTES:
            raise CheckpointError(f"{file} has {file.stat().st_size:,} bytes, more than any tokenizer needs.")
    if pair:
        return gpt2_tokenizer.open_vocabulary(path, merges, settings)
    return wordpiece.open_vocabulary(path) if path.suffix == ".txt" else Backend.from_buffer(path.read_bytes())


@contextmanager
def reported(failure: str) -> Iterator[None]:
    """What the library raises, as our error that begins with `failure`: bare Exception, or a panic, which is none."""
    try:
        yield
    except CheckpointError:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise CheckpointError(
                f"{failure}: {str(error).splitlines()[0] if str(error) else 'no reason given'}."
            ) from error
        raise


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def token_of(value: Any) -> str | None:
    """A token of a `tokenizer_config.json`: a string, or an object whose "content" is one."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) and value else None


def _end_ids(directory: Path) -> list[int]:
    """The ids with which a generated text ends, as `generate()` of transformers has them; none if nothing is said."""
    for name in ("generation_config.json", "config.json"):
        said = _optional_json(directory / name).get("eos_token_id")
        ids = [id for id in (said if isinstance(said, list) else [said]) if type(id) is int and 0 <= id < 2**32]
        if ids:
            return ids
    return []


def _chat_template(directory: Path, settings: Mapping[str, Any]) -> str | None:
    """The template in a file of its own or in `tokenizer_config.json`; of several, the one called "default"."""
    path = directory / TEMPLATE_FILE
    if path.exists():
        if path.stat().st_size > _MAX_TEMPLATE_BYTES:
            raise CheckpointError(f"{path} has {path.stat().st_size:,} bytes, more than any chat template needs.")
        try:
            return path.read_text(encoding="utf-8")
        except ValueError as error:
            raise CheckpointError(f"{path} is no text: {error}.") from error
    said = settings.get("chat_template")
    said = templates(said).get("default", said)
    return said if isinstance(said, str) else None


def templates(said: Any) -> dict[str, Any]:
    """Several chat templates by their names."""
    if not isinstance(said, list):
        return {}
    return {str(one.get("name")): one.get("template") for one in said if isinstance(one, dict)}
