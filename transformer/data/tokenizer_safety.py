"""Checks of an untrusted tokenizer for rules that would need excessive time or memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tokenizers import Regex
from tokenizers import Tokenizer as Backend
from tokenizers.normalizers import Replace

_MAX_GROWTH = 1000  # times that the replacements of a tokenizer may lengthen a text
_MAX_PATTERN = 2**14  # characters of a regular expression


def fault(backend: Backend) -> str | None:
    """Why `backend` is unsafe, in words; None: it is safe."""
    parts = [json.loads(part.__getstate__()) for part in (backend.normalizer, backend.pre_tokenizer) if part]
    decoder = json.loads(backend.decoder.__getstate__()) if backend.decoder else {}
    for pattern in filter(None, (_regex(rule) for rule in _rules([*parts, decoder]))):
        if len(pattern) > _MAX_PATTERN or repeats_choices(pattern):
            return f"its regular expression {pattern[:80]!r} may take forever: too long, or a repetition of repetitions"
    for rules in (*parts[:1], decoder):
        growth = 1.0
        for rule in _rules(rules):
            growth *= _growth(rule)
        if growth > _MAX_GROWTH:
            return f"its replacements make a text up to {growth:,.0f} times longer"
    return None


def repeats_choices(pattern: str) -> bool:
    """Whether a regular expression has an unbounded repetition of a group with a repetition or an alternative in it.

    Such a group can match a text in exponentially many ways, all of which are tried if the match fails. The regular
    expressions of well-known tokenizers have none.
    """
    open_groups = [False]  # for each: whether it has a repetition or an alternative
    i = 0
    while i < len(pattern):
        character = pattern[i]
        if character == "\\":
            i += 1
        elif character == "[":
            i = _end_of_class(pattern, i)
        elif character == "(":
            open_groups.append(False)
        elif character == "|":
            open_groups[-1] = True
        elif character == ")" and len(open_groups) > 1:
            holds = open_groups.pop()
            if holds and _is_unbounded(pattern, i + 1):
                return True
            open_groups[-1] |= holds
        if character != "(" and _is_unbounded(pattern, i + 1):
            open_groups[-1] = True
        i += 1
    return False


def _is_unbounded(pattern: str, i: int) -> bool:
    """Whether there is an unbounded repetition operator at index `i`."""
    if pattern[i : i + 1] == "{":
        return pattern[i : pattern.find("}", i) + 1].endswith(",}")
    return pattern[i : i + 1] in ("*", "+")


def _end_of_class(pattern: str, start: int) -> int:
    """The index of the bracket that closes the character class that starts at `start`; classes may be nested."""
    depth, i = 0, start
    while i < len(pattern):
        if pattern[i] == "\\":
            i += 1
        elif pattern[i] == "[":
            depth += 1
        elif pattern[i] == "]" and pattern[start:i] not in ("[", "[^"):  # a first bracket is a literal
            depth -= 1
            if depth == 0:
                return i
        i += 1
    return i


def _rules(part: Any) -> Iterator[dict[str, Any]]:
    """Every object in the JSON of a part of a tokenizer."""
    if isinstance(part, dict):
        yield part
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from _rules(inner)


def _regex(rule: dict[str, Any]) -> str | None:
    pattern = rule.get("pattern")
    return pattern.get("Regex") if isinstance(pattern, dict) else None


def _growth(rule: dict[str, Any]) -> float:
    """How many times longer a rule can make a text."""
    if rule.get("type") == "Prepend":
        return max(1, len(rule["prepend"]))
    if rule.get("type") != "Replace":
        return 1
    content, pattern = rule["content"], rule["pattern"]
    if "Regex" not in pattern:
        return max(1.0, len(content) / max(1, len(pattern["String"])))
    # An expression that matches the empty string is also replaced between all characters.
    matches_nothing = len(Replace(Regex(pattern["Regex"]), "#").normalize_str("\u0378")) > 1
    return max(1, len(content) + matches_nothing)
