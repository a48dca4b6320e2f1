"""Twenty small texts of the kinds that people upload to train on: deterministic, ordinary, without tricks."""

from __future__ import annotations

import json
import random

from models import SENTENCES

_SUBJECTS = (
    "the old harbour",
    "a narrow street",
    "our neighbour",
    "the night train",
    "every second winter",
    "the library",
)
_VERBS = ("reminds us of", "leads to", "was painted like", "never resembled", "is older than", "stands opposite")
_OBJECTS = ("the market", "a quiet river", "the first snow", "an open window", "the station", "somebody's garden")


def _sentences(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    made = (f"{draw.choice(_SUBJECTS)} {draw.choice(_VERBS)} {draw.choice(_OBJECTS)}" for _ in range(count))
    return [f"{one[0].upper()}{one[1:]}{draw.choice('.....!?')}" for one in made]


def _prose(paragraphs: int, seed: int) -> str:
    return "\n\n".join(" ".join(_sentences(6, seed + i)) for i in range(paragraphs)) + "\n"


def _rows(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _chat(number: int, turns: int) -> dict[str, object]:
    texts = _sentences(2 * turns, 1000 + number)
    roles = ("user", "assistant") * turns
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]}


_CODE = '''def mean(values):
    """The arithmetic mean of some numbers."""
    total = 0.0
    for value in values:
        total += value
    return total / len(values)


class Counter{n}:
    def __init__(self, start={n}):
        self.count = start

    def add(self, step=1):
        if step < 0:
            raise ValueError("a step is not negative")
        self.count += step
        return self.count
'''

ORDINARY_TEXTS: dict[str, str] = {
    "prose": _prose(40, 1),
    "short prose": _prose(3, 2),
    "one paragraph": " ".join(_sentences(12, 3)),
    "repeated sentences": "\n".join(SENTENCES * 10),
    "one sentence a line": "\n".join(_sentences(200, 4)) + "\n",
    "poem": "\n\n".join("\n".join(line.rstrip(".!?") + "," for line in _sentences(4, 50 + i)) for i in range(12)),
    "code": "\n\n".join(_CODE.replace("{n}", str(n)) for n in range(8)),
    "markdown": "# A guide\n\n"
    + "\n\n".join(
        f"## Part {i}\n\n* {a}\n* {b}\n\n```\nmake run-{i}\n```"
        for i, (a, b) in enumerate(zip(_sentences(12, 5), _sentences(12, 6), strict=True))
    ),
    "table": "| place | visitors | open |\n|---|---|---|\n"
    + "\n".join(f"| {_OBJECTS[i % 6]} | {137 * i % 900} | {'yes' if i % 3 else 'no'} |" for i in range(60)),
    "csv": "place,year,visitors\n" + "\n".join(f"{_OBJECTS[i % 6]},{1950 + i},{137 * i % 900}" for i in range(80)),
    "log": "\n".join(
        f"2026-03-{1 + i % 28:02d} 08:{i % 60:02d}:07 INFO request {i} took {31 * i % 97} ms" for i in range(120)
    ),
    "dialogue": "\n".join(f"{'ANNA' if i % 2 else 'BEN'}: {text}" for i, text in enumerate(_sentences(120, 7))),
    "windows line ends": _prose(10, 8).replace("\n", "\r\n"),
    "german": "\n".join(
        f"Im Jahr {1900 + i} wurde die Brücke über den großen Fluß zum {i}. Mal geöffnet." for i in range(60)
    ),
    "japanese": "\n".join(f"{i}年の春、川のそばの古い町で市場が開かれました。雨が降っていました。" for i in range(60)),
    "json lines of texts": _rows([{"text": _prose(2, 100 + i)} for i in range(20)]),
    "prompts": _rows(
        [
            {"prompt": f"Question: where is {o}?\nAnswer:", "completion": f" {s}"}
            for o, s in zip(_OBJECTS * 8, _sentences(48, 9), strict=True)
        ]
    ),
    "short completions": _rows(
        [
            {"prompt": f"{s} True or false?", "completion": (" True.", " False.")[i % 2]}
            for i, s in enumerate(_sentences(40, 10))
        ]
    ),
    "conversations": _rows([_chat(i, 1) for i in range(40)]),
    "long conversations": _rows([_chat(i, 5) for i in range(12)]),
}
