"""GPT-2's tokenizer (Radford et al., 2019) from the two files that it was first published in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


def open_vocabulary(vocabulary: Path, merges: Path, settings: Mapping[str, Any]) -> Backend:
    """The tokenizer of a `vocab.json` and a `merges.txt`, with the special tokens of a `tokenizer_config.json`.

    Raises:
        Exception: if they cannot be read.
    """
    backend = Backend(BPE.from_file(str(vocabulary), str(merges)))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    numbered = sorted(settings.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0]))
    for _, token in numbered:
        backend.add_tokens([_added(token, special=bool(token.get("special")))])
    named = [value for name, value in settings.items() if name.endswith("_token")]
    special = [*named, *(settings.get("additional_special_tokens") or []), "<|endoftext|>"]
    backend.add_special_tokens([_added(token, special=True) for token in special if isinstance(token, str | dict)])
    bos = settings.get("bos_token", "<|endoftext|>")
    if settings.get("add_bos_token"):
        content = _added(bos, special=True).content
        backend.post_processor = TemplateProcessing(
            single=f"{content} $A", special_tokens=[(content, backend.token_to_id(content))]
        )
    return backend


def _added(token: str | Mapping[str, Any], special: bool) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, special=special)
    flags = {name: bool(token[name]) for name in _FLAGS if name in token}
    return AddedToken(token["content"], special=special, **flags)
