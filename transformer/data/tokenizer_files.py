"""Reading the files of a tokenizer: `tokenizer.json` or the vocabulary of BERT or GPT-2, and the settings.

The files may be untrusted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from transformer.data import added_tokens, gpt2_tokenizer, template_files, tokenizer_class, tokenizer_safety, wordpiece
from transformer.errors import CheckpointError
from transformer.files import read_json

_FILES = ("tokenizer.json", "vocab.txt", "vocab.json")  # the first that exists is read
_MAX_BYTES = 33 * 2**20  # of a file: the largest known one, of 262,144 tokens, has 32 MB
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True)
class TokenizerFiles:
    """The contents of a tokenizer's files.

    end_of_text, pad: tokens. settings: of `tokenizer_config.json`. chat_templates: by name. end_ids: ids of the tokens
    that end a generated text.
    """

    backend: Backend
    end_of_text: str | None
    pad: str | None
    settings: dict[str, Any]
    chat_templates: dict[str, str]
    end_ids: list[int]


def read_files(path: Path) -> TokenizerFiles:
    """Read a `tokenizer.json`, BERT's `vocab.txt`, GPT-2's `vocab.json` with its `merges.txt`, or a directory with one.

    Raises:
        CheckpointError: if it does not exist, cannot be read, or is rejected by `tokenizer_safety`.
    """
    if path.is_dir():
        path = next((path / name for name in _FILES if (path / name).exists()), path / _FILES[0])
    found = [_optional_json(path.with_name(name)) for name in _SETTINGS]
    config = _optional_json(path.with_name("config.json"))
    with reported(f"{path} is not a tokenizer that can be read"):
        settings = added_tokens.merge_older_files(*found)
        backend = _open(path, settings, config)
        added_tokens.add_missing(backend, settings)
        fault = tokenizer_safety.fault(backend)
    if fault:
        raise CheckpointError(f"{path} is refused: {fault}.")
    backend.no_truncation()  # settings of another use of the tokenizer
    backend.no_padding()
    wordpiece.remove_post_processor(backend)
    tokenizer_class.apply_class(backend, settings, config)
    ends = _end_ids(path.parent)
    pad = token_of(settings.get("pad_token"))
    if pad is None and backend.token_to_id(wordpiece.PAD) is not None:
        pad = wordpiece.PAD
    end = token_of(settings.get("eos_token")) or next(filter(None, map(backend.id_to_token, ends)), None)
    turn_end = backend.token_to_id(token_of(settings.get("eot_token")) or "")
    ends += [] if turn_end is None else [turn_end]
    return TokenizerFiles(backend, end, pad, settings, template_files.read_templates(path.parent, settings), ends)


def _open(path: Path, settings: Mapping[str, Any], config: Mapping[str, Any]) -> Backend:
    """The tokenizer of a file, in the format of its name.

    Raises:
        CheckpointError: if it does not exist, is too large, or has an unsupported format.
        Exception: if it cannot be read.
    """
    merges = path.with_name("merges.txt")
    pair, kind = path.name == "vocab.json", tokenizer_class.tokenizer_class(settings, config)
    if not path.exists() or (pair and kind not in gpt2_tokenizer.CLASSES):
        sentencepiece = path.with_name("tokenizer.model").exists()
        raise CheckpointError(
            f"{path.parent} has no tokenizer.json{', only a tokenizer.model' if sentencepiece else ''}. Make one: "
            f"{'pip install transformers sentencepiece protobuf; ' if sentencepiece else ''}"
            'python -c "from transformers import AutoTokenizer as A; '
            f"A.from_pretrained('{path.parent}').save_pretrained('{path.parent}')\""
        )
    if pair and not merges.exists():
        raise CheckpointError(f"{path.parent} has a vocab.json without its merges.txt.")
    for file in (path, merges) if pair else (path,):
        if file.is_file() and file.stat().st_size > _MAX_BYTES:
            raise CheckpointError(f"{file} has {file.stat().st_size:,} bytes, more than any tokenizer needs.")
    if pair:
        return gpt2_tokenizer.open_vocabulary(path, merges, settings, kind)
    return wordpiece.open_vocabulary(path) if path.suffix == ".txt" else Backend.from_buffer(path.read_bytes())


@contextmanager
def reported(failure: str) -> Iterator[None]:
    """Convert exceptions and panics of the library to CheckpointError, with a message that starts with `failure`."""
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
    """The ids `eos_token_id` of `generation_config.json` and `config.json`."""
    found: list[Any] = []
    for name in ("generation_config.json", "config.json"):
        value = _optional_json(directory / name).get("eos_token_id")
        found += value if isinstance(value, list) else [value]
    return list(dict.fromkeys(id for id in found if type(id) is int and 0 <= id < 2**32))
