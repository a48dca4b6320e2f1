"""How many answers of a model to "What is TITLE?" have the form of an answer, for titles that it has not seen?

python -m experiments.answers --data ENWIKI --titles titles.txt     # the default model; a minute on two cores

An answer has the form if it begins by naming what was asked about, is one to four whole sentences, and ends by itself.
Whether it is true is not judged: a model of this size knows little.
"""

from __future__ import annotations

import random
import re
from argparse import ArgumentParser
from collections import Counter
from itertools import islice
from pathlib import Path

from transformer.cli import DEFAULT_MODEL
from transformer.data.article_questions import sentences
from transformer.data.corpus import columns_of
from transformer.hub.checkpoint import load
from transformer.hub.generation_config import read_sampling
from transformer.hub.text_sources import find_text
from transformer.inference import Generator, SamplingOptions
from transformer.inference.chat import answer, messages_of
from transformer.inference.generator import StopReason

QUESTIONS = ("What is {}?", "Who was {}?")
MOST_SENTENCES = 4
MAX_TOKENS = 200
_BEFORE_THE_NAME = 12  # characters that may stand before it, as in "The term"
_SENTENCE_END = re.compile(r"""[.!?]["”')]*$""")
_DISAMBIGUATION = re.compile(r"\s*\([^()]*\)$")


def fault_of(name: str, text: str, stop_reason: StopReason | None) -> str | None:
    """Why a text has not the form of an answer about `name`; None if it has."""
    text = text.strip()
    if stop_reason == "length":
        return "does not end"
    if name.lower() not in text[: _BEFORE_THE_NAME + len(name)].lower():
        return "does not begin with the name"
    if not _SENTENCE_END.search(text):
        return "ends within a sentence"
    if len(sentences(text)) > MOST_SENTENCES:
        return f"is longer than {MOST_SENTENCES} sentences"
    return None


def main() -> None:
    parser = ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--data", required=True, help="a corpus with titles, whose validation split is asked about")
    parser.add_argument("--titles", type=Path, help="a file with more titles, one in a line")
    parser.add_argument("--count", type=int, default=200, help="titles to ask about")
    parser.add_argument("--show", type=int, default=10, help="answers to print")
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    rng = random.Random(0)
    generator = Generator(*load(options.model), options.dtype)
    sampling = SamplingOptions(**{"max_tokens": MAX_TOKENS, **read_sampling(options.model), "seed": 0})
    faults: Counter[str | None] = Counter()
    for number, title in enumerate(unseen_titles(options.data, options.titles, options.count)):
        name = _DISAMBIGUATION.sub("", title)
        question = rng.choice(QUESTIONS).format(name)
        generation = answer(generator, messages_of(question), sampling)
        text = "".join(generation).strip()
        fault = fault_of(name, text, generation.stop_reason)
        faults[fault] += 1
        if number < options.show or fault:
            print(f"{question}\n  {text!r}" + (f"\n  {fault}" if fault else ""), flush=True)
    asked = faults.total()
    print(f"{faults.pop(None, 0)} of {asked} answers have the form of an answer; sampling: {sampling}")
    for fault, count in faults.most_common():
        print(f"{count} {fault}")


def unseen_titles(data: str, more: Path | None, count: int) -> list[str]:
    """Titles of the validation articles of `data` and the lines of `more`, without those of its training articles."""
    seen = {title for (title,) in columns_of(find_text(data), ["title"])}
    titles = [title for (title,) in columns_of(find_text(data, split="validation"), ["title"])]
    if more:
        titles += [line.strip() for line in more.read_text(encoding="utf-8").splitlines() if line.strip()]
    return list(islice(dict.fromkeys(title for title in titles if title not in seen), count))


if __name__ == "__main__":
    main()
