"""Tokens that are in the settings of a tokenizer and missing in its `tokenizer.json`.

They are added as by `AutoTokenizer` of transformers 5: those of `added_tokens_decoder`, or else those of the older
files added_tokens.json and special_tokens_map.json, and then the special tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


def merge_older_files(
    settings: Mapping[str, Any], special_tokens_map: Mapping[str, Any], added_tokens: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings of a `tokenizer_config.json`, merged with a special_tokens_map.json and an added_tokens.json.

    These two are used only if the settings have no `added_tokens_decoder`.
    """
    merged = dict(settings)
    if "added_tokens_decoder" not in settings:
        merged |= special_tokens_map
    if isinstance(extra := merged.get("extra_special_tokens"), dict):  # special tokens with names of their own
        merged |= extra
    if "added_tokens_decoder" in settings:
        return merged
    special = {token.content for token in _special(merged)}
    numbered = {
        str(id): {"content": content, "special": content in special, "normalized": content not in special}
        for content, id in added_tokens.items()
    }
    return merged | ({"added_tokens_decoder": numbered} if numbered else {})


def add_missing(backend: Backend, settings: Mapping[str, Any]) -> None:
    """Add the tokens of `settings` that the tokenizer lacks or has with other flags.

    Raises:
        Exception: if the settings are malformed.
    """
    present = {id: repr(token) for id, token in backend.get_added_tokens_decoder().items()}
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    numbered = settings.get("added_tokens_decoder") or {}
    named = {token.content for token in _special(settings, only_named=True)}
    for _, fields in sorted(numbered.items(), key=lambda item: int(item[0])):
        token = _token(fields, special=bool(fields.get("special")) or fields["content"] in named)
        if repr(token) not in present.values():
            backend.add_tokens([token])
        known.add(token.content)
    for token in _special(settings):
        if token.content not in known:
            backend.add_special_tokens([token])
            known.add(token.content)


def _special(settings: Mapping[str, Any], only_named: bool = False) -> Iterator[AddedToken]:
    """The special tokens: those with a standard name, those with a name of the model, and those without a name."""
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    own = [name for name in settings if name.endswith("_token") and name not in _NAMED]
    values = [settings.get(name) for name in (*_NAMED, *([] if only_named else own))]
    if not only_named:
        values += extra.values() if isinstance(extra, Mapping) else extra
    for value in values:
        named = isinstance(value, Mapping) and isinstance(value.get("content"), str)
        if value and (named or isinstance(value, str)):
            yield _token(value, special=True)


def _token(value: str | Mapping[str, Any], special: bool) -> AddedToken:
    if isinstance(value, str):
        return AddedToken(value, special=special, normalized=False)
    flags = {name: bool(value[name]) for name in _FLAGS if name in value}
    return AddedToken(value["content"], special=special, **flags)
