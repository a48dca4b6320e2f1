"""Which sampling settings write text that is most like real text?

python -m experiments.sampling --data ENWIKI --prompts 200          # the default model; about an hour on two cores

Prompts are the first tokens of validation articles. For every setting of a grid, each is continued by 200 tokens, and
three figures are taken, beside the same figures of the articles' own next 200 tokens:

- repeated: share of the 4-grams of words that stood in the same text before
- distinct: different words as a share of all words
- loops: share of the texts that end in a phrase that is said at least three times in a row

The distance of a setting is the sum of how far its figures are from those of real text, each in units of the real one's
standard deviation between texts. Prompts are read from one half of the articles with --half first, the other with
second, so that a choice made on one can be checked on the other.
"""

from __future__ import annotations

import json
import math
import statistics
from argparse import ArgumentParser
from dataclasses import dataclass
from itertools import islice, product

from transformer.cli import DEFAULT_MODEL
from transformer.hub.checkpoint import load
from transformer.hub.text_sources import documents
from transformer.inference import Generator, SamplingOptions

PROMPT_TOKENS = 32
NEW_TOKENS = 200
_GRID = {
    "temperature": (0.6, 0.7, 0.8, 0.9, 1.0),
    "top_p": (0.9, 0.95, 1.0),
    "min_p": (0.0, 0.05, 0.1),
    "repetition_penalty": (1.0, 1.05, 1.1, 1.2),
}
_BATCH = 25
_LEAST_SPREAD = 0.01  # of a figure: few texts can happen to have no spread at all
_LONGEST_PHRASE = 40  # words that a loop may repeat


@dataclass(frozen=True)
class Figures:
    """Of one text: share of repeated 4-grams and of distinct words, and whether it ends in a loop."""

    repeated: float
    distinct: float
    loop: bool


def figures(text: str) -> Figures:
    """The figures of a text, whose words are what stands between white space."""
    words = text.lower().split()
    grams = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    repeated = 1 - len(set(grams)) / len(grams) if grams else 0.0
    return Figures(repeated, len(set(words)) / max(1, len(words)), ends_in_loop(words))


def ends_in_loop(words: list[str], times: int = 3) -> bool:
    """Whether the last words are one phrase, said `times` times in a row or more."""
    for length in range(1, min(_LONGEST_PHRASE, len(words) // times) + 1):
        phrase = words[-length:]
        if all(words[-length * (n + 1) : len(words) - length * n] == phrase for n in range(1, times)):
            return True
    return False


def main() -> None:
    parser = ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--data", required=True, help="a corpus with a validation split")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--half", choices=("first", "second"), default="first")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tokens", type=int, default=NEW_TOKENS, help="length of each text")
    options = parser.parse_args()
    model, tokenizer = load(options.model)
    generator = Generator(model, tokenizer, options.dtype)
    prompts, real = [], []
    need = PROMPT_TOKENS + options.tokens
    for number, document in enumerate(documents(options.data, split="validation")):
        if number % 2 != (options.half == "second"):
            continue
        ids = next(iter(tokenizer.encode_documents([document.text])))
        # Several places of long articles: there are fewer articles than prompts.
        for start in range(0, max(1, len(ids) - need), 4 * need):
            if len(ids) >= start + need:
                prompts.append(tokenizer.decode(ids[start : start + PROMPT_TOKENS]))
                real.append(figures(tokenizer.decode(ids[start + PROMPT_TOKENS : start + need])))
    step = max(1, len(prompts) // options.prompts)
    prompts, real = prompts[::step][: options.prompts], real[::step][: options.prompts]
    if not prompts:
        parser.error(f"no article of {options.data} is as long as a prompt and its text, {need} tokens")
    print(f"{len(prompts)} prompts of {PROMPT_TOKENS} tokens; real text: {_table(real)}")
    spread = {name: statistics.pstdev(getattr(one, name) for one in real) for name in ("repeated", "distinct")}
    rows = []
    for values in product(*_GRID.values()):
        setting = dict(zip(_GRID, values, strict=True))
        sampling = SamplingOptions(max_tokens=options.tokens, min_tokens=options.tokens, top_k=0, seed=0, **setting)
        made = []
        waiting = iter(prompts)
        while batch := list(islice(waiting, _BATCH)):
            made += [figures(one.text) for one in generator.generate_batch(batch, sampling)]
        distance = sum(
            abs(_mean(made, name) - _mean(real, name)) / max(spread[name], _LEAST_SPREAD)
            for name in ("repeated", "distinct")
        ) + 10 * max(0.0, _mean(made, "loop") - _mean(real, "loop"))
        rows.append((distance, setting, made))
        print(f"{json.dumps(setting)} {_table(made)} distance {distance:.3f}", flush=True)
    rows.sort(key=lambda row: row[0])
    print("\nclosest to real text:")
    for distance, setting, made in rows[:10]:
        print(f"{distance:.3f} {json.dumps(setting)} {_table(made)}")


def _mean(made: list[Figures], name: str) -> float:
    return math.fsum(getattr(one, name) for one in made) / len(made)


def _table(made: list[Figures]) -> str:
    return (
        f"repeated {_mean(made, 'repeated'):.3f}, distinct {_mean(made, 'distinct'):.3f}, "
        f"loops {_mean(made, 'loop'):.1%}"
    )


if __name__ == "__main__":
    main()
