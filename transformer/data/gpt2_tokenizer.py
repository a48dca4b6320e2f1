"""A byte-level BPE tokenizer from `vocab.json` and `merges.txt`, the files of GPT-2 (Radford et al., 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

from transformer.data.added_tokens import add_missing

CLASSES = ("GPT2Tokenizer", "Qwen2Tokenizer")  # of transformers; `tokenizer_class` has their rules
_END = "<|endoftext|>"
_BY_DEFAULT = {
    "GPT2Tokenizer": {"bos_token": _END, "eos_token": _END, "unk_token": _END},
    "Qwen2Tokenizer": {"eos_token": _END, "unk_token": _END, "pad_token": _END},
}


def open_vocabulary(vocabulary: Path, merges: Path, settings: Mapping[str, Any], kind: str) -> Backend:
    """The tokenizer of a `vocab.json` and a `merges.txt`, without the rules of its class.

    Args:
        settings: of the `tokenizer_config.json`, with the special tokens and `add_bos_token`.
        kind: one of CLASSES, which have default special tokens.

    Raises:
        Exception: if the files cannot be read.
    """
    backend = Backend(BPE.from_file(str(vocabulary), str(merges)))
    settings = {**_BY_DEFAULT[kind], **settings}
    add_missing(backend, settings)
    bos = settings.get("bos_token")
    if settings.get("add_bos_token") and bos:
        content = bos if isinstance(bos, str) else bos["content"]
        backend.post_processor = TemplateProcessing(
            single=f"{content} $A", special_tokens=[(content, backend.token_to_id(content))]
        )
    return backend
