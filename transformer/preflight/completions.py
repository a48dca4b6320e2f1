"""What there is to learn in completions: are they answers, or known without learning?"""

from __future__ import annotations

from collections import Counter

from transformer.data.document import join_pieces
from transformer.preflight.check import Expected, Finding
from transformer.preflight.subject import Subject

_CHARACTERS = 2**20  # of the corpus are read
_LEAST = 8  # completions; with fewer nothing is said of them
_MOST_OF = 0.5  # of them are copies: then the model learns to copy
_NEARLY_ALL = 0.9  # of them are one
_LONG = 20  # characters; a shorter answer may well be in a long prompt
_SHOWN = 60


def completions(subject: Subject) -> Finding:
    """Completions are neither all the same nor copies of their prompts."""
    expected = Expected("different from one another, and not to be found in their prompts")
    pairs = _pairs(subject)
    if len(pairs) < _LEAST:
        return expected.passed(f"{len(pairs)} with a prompt: too few to tell")
    answer, count = Counter(answer for _, answer in pairs).most_common(1)[0]
    equal = sum(prompt == answer for prompt, answer in pairs) / len(pairs)
    inside = sum(len(answer) >= _LONG and answer in prompt for prompt, answer in pairs) / len(pairs)
    measured = (
        f"{len({answer for _, answer in pairs}):,} different of {len(pairs):,}; {inside:.0%} are in their prompts, "
        f"{equal:.0%} are the prompt"
    )
    if count >= _NEARLY_ALL * len(pairs):
        return expected.warned(
            measured,
            f"{count:,} of {len(pairs):,} completions are {answer[:_SHOWN]!r}: the model learns to answer every prompt "
            "with it; look at the column the completions come from.",
        )
    if equal >= _MOST_OF:
        return expected.warned(
            measured,
            f"{equal:.0%} of the completions are their prompt again: the model learns to repeat its prompt; look at "
            "the columns that prompts and completions come from.",
        )
    if inside >= _MOST_OF:
        return expected.warned(
            measured,
            f"{inside:.0%} of the completions are in their prompts word for word: the model learns to copy, which is "
            "right only if answers are to be quoted; else take them out of the prompts.",
        )
    return expected.passed(measured)


def _pairs(subject: Subject) -> list[tuple[str, str]]:
    """Prompts, each with what is learned after it, of the first documents of the corpus that have any."""
    found: list[tuple[str, str]] = []
    read = 0
    for document in join_pieces(subject.read(_CHARACTERS)):
        prompt = ""
        for text, learned in document.parts:
            if not learned:
                prompt += text
            elif prompt and text.strip():
                found.append((prompt.strip(), text.strip()))
                prompt = ""
        read += len(document.text)
        if not found and read > _CHARACTERS // 8:
            break
    return found
