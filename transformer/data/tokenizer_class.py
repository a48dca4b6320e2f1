"""The rules of a tokenizer (normalizer, pre-tokenizer, decoder) as in `AutoTokenizer` of transformers 5.

A specific class, such as GPT2Tokenizer, uses the vocabulary of a `tokenizer.json` and replaces the rules in it by its
own. The general class (PreTrainedTokenizerFast, TokenizersBackend) uses the rules in the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import Regex, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Metaspace, PreTokenizer, Split

_BYTE_LEVEL = ("RobertaTokenizer", "CodeGenTokenizer", "GPTNeoXTokenizer")  # only `add_prefix_space` is applied
# The classes of model types whose settings have none.
_OF_MODELS = {
    "gpt2": "GPT2Tokenizer",
    "opt": "GPT2Tokenizer",
    "qwen2": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "gemma3_text": "GemmaTokenizer",
}
_MISNAMED = ("qwen2",)  # the class in the settings is ignored
_GENERAL = ("mistral", "olmo2", "olmo3")  # the general class, even if the settings have another one
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def apply_class(backend: Backend, settings: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Set the rules of the tokenizer's class, with the `add_prefix_space` of its settings.

    Args:
        settings: of the `tokenizer_config.json`. config: the model's `config.json`; both may be empty.
    """
    kind, space = tokenizer_class(settings, config), settings.get("add_prefix_space")
    if not isinstance(backend.model, BPE):
        return
    part = json.loads(backend.pre_tokenizer.__getstate__()) if backend.pre_tokenizer else None
    byte_level = [rule for rule in _rules(part) if rule["type"] == "ByteLevel"]
    if kind == "GPT2Tokenizer":
        backend.normalizer = None
        backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=bool(space)), decoders.ByteLevel()
    elif kind == "Qwen2Tokenizer":
        backend.normalizer = normalizers.NFC()
        words = Split(Regex(_QWEN2_WORDS), behavior="isolated")
        letters = ByteLevel(add_prefix_space=bool(space), use_regex=False)
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.Sequence([words, letters]), decoders.ByteLevel()
    elif kind == "GemmaTokenizer":
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.pre_tokenizer = Split(" ", behavior="merged_with_previous")
        backend.decoder = _metaspace_decoder(strip=False)
    elif kind == "LlamaTokenizer" and not byte_level:
        # Older files have a normalizer instead, which adds a space even before a space.
        space = True if space is None else space
        scheme = ("always" if settings.get("legacy") else "first") if space else "never"
        backend.normalizer = None
        backend.pre_tokenizer = Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
        backend.decoder = _metaspace_decoder(strip=bool(space))
    elif byte_level and kind in _BYTE_LEVEL:
        for rule in byte_level:
            rule["add_prefix_space"] = bool(space)
        backend.pre_tokenizer = _pre_tokenizer(part)


def tokenizer_class(settings: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The class that transformers uses for the tokenizer, without "Fast"; "" for the general one."""
    model_type = str(config.get("model_type"))
    named = settings.get("tokenizer_class") or config.get("tokenizer_class")
    if model_type in _GENERAL:
        return ""
    if not named or model_type in _MISNAMED:
        return _OF_MODELS.get(model_type, "")
    return str(named).removesuffix("Fast")


def _metaspace_decoder(strip: bool) -> decoders.Decoder:
    joined = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*joined, decoders.Strip(" ", 1, 0)] if strip else joined)


def _rules(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A rule, or those of a sequence."""
    return [] if part is None else part.get("pretokenizers", [part])


def _pre_tokenizer(part: dict[str, Any] | None) -> PreTokenizer:
    """A pre-tokenizer from JSON, which the library reads only as part of a tokenizer."""
    whole = json.loads(Backend(BPE()).to_str()) | {"pre_tokenizer": part}
    made: PreTokenizer = Backend.from_str(json.dumps(whole)).pre_tokenizer
    return made
