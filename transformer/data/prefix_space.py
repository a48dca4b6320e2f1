"""`add_prefix_space` of a `tokenizer_config.json`, as `AutoTokenizer` of transformers 5 takes it.

A class of its own there, such as GPT2Tokenizer, builds its rules again and has the setting override what
`tokenizer.json` says. The general class (PreTrainedTokenizerFast, TokenizersBackend) does not look at it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Metaspace, PreTokenizer

# Classes that build a ByteLevel rule from the setting; without it they put no space in front.
_BYTE_LEVEL = ("GPT2Tokenizer", "Qwen2Tokenizer", "RobertaTokenizer", "CodeGenTokenizer", "GPTNeoXTokenizer")
_METASPACE = ("LlamaTokenizer",)
_OF_MODELS = {"gpt2": "GPT2Tokenizer", "opt": "GPT2Tokenizer", "qwen3": "Qwen2Tokenizer"}  # where no class is named


def apply_setting(backend: Backend, settings: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Have the tokenizer put a space in front of texts, or none, as the settings say.

    Args:
        settings: of the `tokenizer_config.json`. config: the model's `config.json`; both may be empty.
    """
    kind, said = tokenizer_class(settings, config), settings.get("add_prefix_space")
    part = json.loads(backend.pre_tokenizer.__getstate__()) if backend.pre_tokenizer else None
    byte_level = [rule for rule in _rules(part) if rule["type"] == "ByteLevel"]
    if byte_level and kind in _BYTE_LEVEL:
        for rule in byte_level:
            rule["add_prefix_space"] = bool(said)
        backend.pre_tokenizer = _pre_tokenizer(part)
    elif not byte_level and kind in _METASPACE and said is not None and isinstance(backend.model, BPE):
        # Llama's; older files write the same as a normalizer, which puts a space in front of one that is there too.
        scheme = ("always" if settings.get("legacy") else "first") if said else "never"
        backend.normalizer = None
        backend.pre_tokenizer = Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
        joined = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        backend.decoder = decoders.Sequence([*joined, decoders.Strip(" ", 1, 0)] if said else joined)


def tokenizer_class(settings: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The class that transformers opens the tokenizer as, without "Fast"; "" for the general one."""
    named = settings.get("tokenizer_class") or config.get("tokenizer_class")
    return str(named or _OF_MODELS.get(str(config.get("model_type")), "")).removesuffix("Fast")


def _rules(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A rule, or those of a sequence."""
    return [] if part is None else part.get("pretokenizers", [part])


def _pre_tokenizer(part: dict[str, Any] | None) -> PreTokenizer:
    """The library makes one of JSON only as a part of a tokenizer."""
    whole = json.loads(Backend(BPE()).to_str()) | {"pre_tokenizer": part}
    made: PreTokenizer = Backend.from_str(json.dumps(whole)).pre_tokenizer
    return made
