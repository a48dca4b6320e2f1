"""Training of a byte-level BPE vocabulary."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence

from tokenizers import Tokenizer as Backend
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

from transformer.errors import ConfigError

_LONGEST_RUN = 256  # characters; longer runs without white space, or of white space, are split
_LONG_RUN = re.compile(rf"\S{{{_LONGEST_RUN + 1},}}|\s{{{_LONGEST_RUN + 1},}}")
_MOST_TOKENS = 2**22  # the trainer allocates memory for the full vocabulary at its start
TRAINING_CHARACTERS = 2**24  # more text needs more memory and time, with nearly the same vocabulary


def train_bpe(
    texts: Iterable[str], vocab_size: int, end_of_text: str, pad: str | None, whole: Sequence[str]
) -> Backend:
    """Train a tokenizer; the arguments are those of `Tokenizer.train`."""
    named = [end_of_text, *([pad] if pad else []), *whole]
    least = 256 + len(named)
    if vocab_size < least:
        raise ConfigError(f"a byte-level vocabulary needs at least {least} tokens, not {vocab_size}.")
    if vocab_size > _MOST_TOKENS:
        raise ConfigError(f"a vocabulary of {vocab_size:,} tokens is too large: at most {_MOST_TOKENS:,} are trained.")
    backend = Backend(BPE())
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=named,
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    lines = (part for text in texts for line in io.StringIO(text) for part in cut_runs(line))  # with their ends
    backend.train_from_iterator(_evenly(lines, TRAINING_CHARACTERS), trainer)
    backend.post_processor = TemplateProcessing(
        single=f"{end_of_text} $A", special_tokens=[(end_of_text, backend.token_to_id(end_of_text))]
    )
    return _as_text(backend, whole)


def cut_runs(line: str) -> Iterator[str]:
    """Split a line within runs of more than `_LONGEST_RUN` characters without white space, or of white space."""
    start = 0
    for run in _LONG_RUN.finditer(line):
        for stop in range(run.start() + _LONGEST_RUN, run.end(), _LONGEST_RUN):
            yield line[start:stop]
            start = stop
    yield line[start:]


def _evenly(lines: Iterable[str], characters: int) -> list[str]:
    """Every line, or every 2nd, 4th, 8th …, so that they have at most this many characters in total."""
    kept: list[str] = []
    length, step = 0, 1
    for number, line in enumerate(lines):
        if number % step:
            continue
        kept.append(line)
        length += len(line)
        while length > characters and len(kept) > 1:
            kept, step = kept[::2], 2 * step
            length = sum(map(len, kept))
    return kept


def _as_text(backend: Backend, whole: Sequence[str]) -> Backend:
    """Make the tokens in `whole` regular ones: the trainer makes them special, which decoding skips."""
    fields = json.loads(backend.to_str())
    for token in fields["added_tokens"]:
        token["special"] = token["content"] not in whole
    return Backend.from_str(json.dumps(fields))
