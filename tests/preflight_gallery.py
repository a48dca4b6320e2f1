# ruff: noqa: T201
"""Ordinary texts and settings, on which preflight fails nothing, and planted mistakes, each of which it names.

    python -m tests.preflight_gallery [--complete] [NAME ...]

prints the verdicts of all of them, and for each check how often it failed and warned. Without --complete only the
checks of text and batches are made, which need no model.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import json
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from transformer.data.batches import IGNORE_INDEX, Batch, EpochBatches, Windows
from transformer.errors import TransformerError
from transformer.preflight import Report, preflight
from transformer.training.distributed import Engine
from transformer.training.run_components import RunComponents, build
from transformer.training.train_config import TrainConfig

ROOT = Path(__file__).parents[1]
SMALL = dict(context_length=32, d_model=32, n_layers=1, n_heads=2, batch_size=8, precision="fp32", vocab_size=300)
WORDS = (  # noqa: SIM905
    "the of and a in to is was for on as with by he that at from his it an were are which this be has had its or not "
    "but have first one new city school world time state year game war team season area house river station century "
    "church album song film book series town family company building road music party line government part work "
    "system people"
).split()


# ---- texts ----


def chance(seed: int = 0) -> random.Random:
    return random.Random(seed)


def sentences(count: int, seed: int = 0, words: list[str] = WORDS) -> list[str]:
    pick = chance(seed)
    return [
        " ".join(pick.choices(words, k=pick.randint(5, 14))).capitalize() + pick.choice(".!?") for _ in range(count)
    ]


def prose(count: int = 250, seed: int = 0) -> str:
    found = sentences(count, seed)
    return "\n\n".join(" ".join(found[i : i + 6]) for i in range(0, count, 6)) + "\n"


def syllables(letters: str, count: int, seed: int = 0) -> list[str]:
    pick = chance(seed)
    return ["".join(pick.choices(letters, k=pick.randint(2, 6))) for _ in range(count)]


def script(letters: str, seed: int = 0, end: str = ". ") -> str:
    pick, words = chance(seed), syllables(letters, 150, seed)
    return "".join(" ".join(pick.choices(words, k=pick.randint(4, 12))) + end for _ in range(200))


def lines(make: Callable[[random.Random, int], str], count: int = 300, seed: int = 0) -> str:
    pick = chance(seed)
    return "".join(make(pick, number) + "\n" for number in range(count))


def of_files(pattern: str) -> str:
    return "\n".join(path.read_text() for path in sorted(ROOT.glob(pattern))[:8])[:40_000]


def rows(make: Callable[[random.Random, int], dict[str, Any]], count: int = 120, seed: int = 0) -> str:
    pick = chance(seed)
    return "".join(json.dumps(make(pick, number), ensure_ascii=False) + "\n" for number in range(count))


def say(pick: random.Random, least: int = 4, most: int = 12) -> str:
    return " ".join(pick.choices(WORDS, k=pick.randint(least, most)))


def words_of(pick: random.Random, number: int = 1) -> str:
    return " ".join(pick.choices(WORDS, k=number))


def question(pick: random.Random, number: int) -> dict[str, Any]:
    return {"prompt": f"Question {number}: {say(pick)}?\nAnswer:", "completion": f" {say(pick)}."}


def conversation(pick: random.Random, number: int) -> dict[str, Any]:
    turns = [(role, say(pick) + ".") for _ in range(pick.randint(1, 3)) for role in ("user", "assistant")]
    system = [("system", "Answer briefly.")] if number % 2 else []
    return {"messages": [{"role": role, "content": text} for role, text in [*system, *turns]]}


def quoted(pick: random.Random, number: int) -> dict[str, Any]:
    passage = [say(pick, 6, 9) for _ in range(4)]
    return {"prompt": f"{'. '.join(passage)}.\nWhat is said of it?", "completion": f" {passage[number % 4]}"}


def padded(text: str, width: int) -> str:
    return (text * width)[:width]


# ---- cases ----


@dataclass(frozen=True)
class Case:
    """A run that is right.

    text: of its file, or of several by name. warns: the checks that rightly warn of it. foreign: a tokenizer beside the
    checkout, or a model, without which it is left out.
    """

    name: str
    text: str | bytes | dict[str, str]
    suffix: str = ".txt"
    options: dict[str, Any] = field(default_factory=dict)
    warns: tuple[str, ...] = ()
    foreign: str = ""

    def config(self, folder: Path) -> TrainConfig:
        """Write its text and say how it is trained."""
        data = folder / "data"
        if isinstance(self.text, dict):
            data.mkdir(parents=True)
            for name, text in self.text.items():
                (data / name).write_text(text, encoding="utf-8")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            data = data.with_suffix(self.suffix)
            data.write_bytes(self.text if isinstance(self.text, bytes) else self.text.encode())
        return TrainConfig.from_options(
            data=str(data),
            output=str(folder / "out"),
            token_cache=str(folder / "tokens"),
            **{**SMALL, "device": "cpu", **self.options},
        )


def texts() -> list[Case]:
    """Texts of all kinds, with the same small settings."""
    digits = "0123456789"
    repeated, marked = "repeated tokens", "markers in the text"
    twice = "validation in training"
    return [
        Case("prose", prose()),
        Case("python files", of_files("transformer/model/*.py")),
        Case("python, a token for each space", of_files("transformer/data/*.py"), options=dict(vocab_size=257)),
        Case("c files", of_files("transformer/inference/native/*.c"), warns=(twice,)),
        Case("README", (ROOT / "README.md").read_text()),
        Case(
            "markdown documents",
            {"train.jsonl": rows(lambda p, n: {"text": f"# {words_of(p, 2)}\n\n{say(p)}\n\n---\n"})},
            warns=(marked,),
        ),
        Case(
            "markdown table",
            lines(lambda p, n: f"| {words_of(p):12} | {p.randint(1, 999):6} | {'-' * p.randint(1, 20):20} |"),
        ),
        Case(
            "csv",
            "id,name,value,flag\n"
            + lines(lambda p, n: f"{n},{words_of(p)},{p.random():.4f},{p.choice(['yes', 'no'])}"),
        ),
        Case("tsv", lines(lambda p, n: "\t".join(words_of(p) for _ in range(5)))),
        Case("poem", "\n\n".join("\n".join(f"{say(chance(4 * n + i), 4, 6)}," for i in range(4)) for n in range(60))),
        Case("chat log", lines(lambda p, n: f"[12:{n % 60:02}] <{p.choice(['anna', 'ben', 'cleo'])}> {say(p)}")),
        Case(
            "program log",
            lines(lambda p, n: f"[INFO] 2024-01-{n % 28 + 1:02} worker {p.randint(1, 9)}: {say(p)}"),
            warns=(marked,),
        ),
        Case("log with levels", lines(lambda p, n: f"[{p.choice(['INFO', 'WARNING', 'ERROR', 'DEBUG'])}] {say(p)}")),
        Case("one long line", " ".join(sentences(300))),
        Case("no final line end", prose(60).rstrip()),
        Case("tiny file", " ".join(sentences(6))),
        Case("tiny file of one window", " ".join(sentences(1)) + " It was."),
        Case("one character", "a" * 4000, warns=(repeated, twice)),
        Case("two characters", "ab" * 3000, warns=(repeated, twice)),
        Case("dashes", lines(lambda p, n: f"{say(p)}\n{'-' * p.randint(20, 60)}")),
        Case(
            "indented deeply",
            lines(lambda p, n: " " * (4 * (n % 20)) + words_of(p, 2)),
            options=dict(vocab_size=257),
            warns=(repeated,),
        ),
        Case("blank lines", ("\n" * 12).join(sentences(200)), warns=(repeated,)),
        Case("tabs", lines(lambda p, n: "\t" * p.randint(0, 12) + words_of(p))),
        Case("lines of one length", lines(lambda p, n: padded(say(p), 15)), options=dict(vocab_size=257)),
        Case(
            "records of fixed width",
            lines(lambda p, n: f"{n:08}{words_of(p):>14}{p.randint(0, 10**8):09}"),
            options=dict(vocab_size=257),
            warns=(repeated,),
        ),
        Case("one line again and again", "the same line of text stands here\n" * 400, warns=(twice, marked)),
        Case("one paragraph again and again", prose(12) * 30, warns=(twice,)),
        Case(
            "licence header in each document",
            {"train.jsonl": rows(lambda p, n: {"text": f"Copyright the authors\n{say(p, 20, 60)}"})},
            warns=(marked,),
        ),
        Case("russian", script("абвгдежзийклмнопрстуфхцчшщыьэюя")),
        Case("greek", script("αβγδεζηθικλμνξοπρστυφχψωάέήίόύώ")),
        Case(
            "chinese",
            script("的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动", end="。"),
        ),
        Case("japanese", script("あいうえおかきくけこさしすせそたちつてとアイウエオ日本語東京", end="。\n")),
        Case("arabic", script("ابتثجحخدذرزسشصضطظعغفقكلمنهوي")),
        Case("hindi", script("कखगघचछजझटठडढणतथदधनपफबभमयरलवशषसहािीुूेैोौ")),
        Case("korean", script("가나다라마바사아자차카타파하고노도로모보소오조초코토포호")),
        Case("german", script("abcdefghijklmnoprstuvwzäöüß")),
        Case("french", script("aeiourstnldmpcéèêàçùîôœ« »")),
        Case("portuguese capitals", script("AEIOURSTNLDMPCÃÕÇÁÉÍÂÊÔ")),
        Case("emoji", script("😀😎🎉🦞🚀👍🌍❤️") + prose(50)),
        Case("several scripts", script("абвгд") + prose(50) + script("的一是在不") + script("αβγδε")),
        Case("dna", lines(lambda p, n: "".join(p.choices("ACGT", k=70)), 120)),
        Case("base64", base64.encodebytes(chance().randbytes(6000)).decode()),
        Case(
            "hex dump", lines(lambda p, n: f"{16 * n:08x}  " + " ".join(f"{p.randint(0, 255):02x}" for _ in range(16)))
        ),
        Case("numbers", lines(lambda p, n: "".join(p.choices(digits, k=p.randint(1, 12))))),
        Case("counting", lines(lambda p, n: str(n), 1500)),
        Case(
            "yaml in a text file",
            lines(lambda p, n: f'- id: {n}\n  name: "{words_of(p)}"\n  tags: []'),
            warns=(marked, twice),
        ),
        Case(
            "html",
            lines(lambda p, n: f'<tr class="row"><td><s>{words_of(p)}</s></td><td>{say(p)}</td></tr>'),
            warns=(marked, twice),
        ),
        Case(
            "xml",
            lines(
                lambda p, n: (
                    f"  <entry>\n    <start>{n}</start>\n    <end>{n + 1}</end>\n    <t>{say(p)}</t>\n  </entry>"
                )
            ),
            warns=(marked, twice),
        ),
        Case(
            "latex",
            lines(lambda p, n: f"\\section{{{words_of(p, 2)}}}\n{say(p)} $x_{n} = \\frac{{1}}{{{n + 1}}}$ \\\\"),
        ),
        Case("sql", lines(lambda p, n: f"INSERT INTO users VALUES ({n}, '{words_of(p)}', NULL);"), warns=(marked,)),
        Case("ini", lines(lambda p, n: f"[SECTION_{n}]\nname = {words_of(p)}\nvalue = {p.randint(0, 99)}\n")),
        Case(
            "subtitles",
            lines(
                lambda p, n: (
                    f"{n + 1}\n00:{n // 60:02}:{n % 60:02},000 --> 00:{n // 60:02}:{n % 60:02},900\n[MUSIC] {say(p)}\n"
                ),
                200,
            ),
        ),
        Case("dictionary", lines(lambda p, n: f"{words_of(p)} (n.): {say(p)}; see {words_of(p)}.")),
        Case(
            "play",
            lines(lambda p, n: f"{p.choice(['HAMLET', 'OPHELIA', 'HORATIO'])}.\n{say(p)}.\n[Exit]\n"),
            warns=(marked,),
        ),
        Case("diff", lines(lambda p, n: f"{p.choice('+- ')}    {words_of(p)} = {words_of(p)}({p.randint(0, 9)})")),
        Case(
            "chess",
            lines(
                lambda p, n: (
                    f'[Event "{words_of(p)}"]\n[Result "1-0"]\n1. e4 e5 2. Nf3 {p.choice(["Nc6", "d6"])} 3. Bb5 1-0\n'
                )
            ),
            warns=(marked, twice),
        ),
        Case(
            "ascii art",
            lines(lambda p, n: "".join(p.choices(" .:-=+*#%@", weights=[20, 3, 1, 1, 1, 1, 1, 1, 1, 1], k=60)), 150),
        ),
        Case(
            "board",
            lines(lambda p, n: "+---+---+---+\n" + "| {} | {} | {} |".format(*p.choices("XO ", k=3))),
            warns=(marked, twice),
        ),
        Case("word list", "\n".join(sorted({w for s in range(12) for w in syllables("abcdefghijklmnop", 150, s)}))),
        Case("minified", "".join(f"function f{n}(a,b){{return a+b*{n}}};" for n in range(400))),
        Case(
            "mail",
            lines(
                lambda p, n: (
                    f"From: {words_of(p)}@example.org\nSubject: {say(p, 2, 4)}\n\n{say(p)}.\n\n-- \n{words_of(p)}\n"
                ),
                100,
            ),
            warns=(marked,),
        ),
        Case("windows line ends", prose().replace("\n", "\r\n")),
        Case(
            "wikitext",
            "".join(f" = {words_of(chance(n), 2).title()} = \n\n {say(chance(n), 20, 60)} . \n\n" for n in range(60)),
        ),
        Case("stories between end-of-text", "\n<|endoftext|>\n".join(prose(12, n) for n in range(30)), warns=(marked,)),
        Case(
            "words separated by unknown",
            {"train.jsonl": rows(lambda p, n: {"text": say(p, 20, 50).replace(" the ", " <unk> ")})},
            options=dict(whole_tokens=("<unk>",)),
        ),
        # ---- layouts of fine-tuning ----
        Case("rows of text", rows(lambda p, n: {"text": say(p, 10, 40)}), ".jsonl"),
        Case("short rows", rows(lambda p, n: {"text": words_of(p, 2)}, 400), ".jsonl", warns=(twice,)),
        Case("empty rows", rows(lambda p, n: {"text": say(p, 10, 40) if n % 3 else ""}), ".jsonl"),
        Case("prompts and completions", rows(question), ".jsonl"),
        Case("conversations", rows(conversation), ".jsonl"),
        Case(
            "labels",
            rows(
                lambda p, n: {"prompt": f"{say(p, 8, 20)}\nLabel:", "completion": p.choice([" positive", " negative"])},
                200,
            ),
            ".jsonl",
            dict(context_length=256),
        ),
        Case("quoted answers", rows(quoted), ".jsonl", options=dict(context_length=128), warns=("completions",)),
        Case(
            "long prompts",
            rows(lambda p, n: {"prompt": say(p, 40, 70), "completion": " " + say(p, 10, 20)}),
            ".jsonl",
            warns=("something to learn",),
        ),
        Case(
            "llama 2's layout",
            rows(lambda p, n: {"text": f"<s>[INST] {say(p)}? [/INST] {say(p)}. </s>"}),
            ".jsonl",
            warns=(marked,),
        ),
        Case(
            "chatml as text",
            rows(
                lambda p, n: {
                    "text": f"<|im_start|>user\n{say(p)}<|im_end|>\n<|im_start|>assistant\n{say(p)}<|im_end|>"
                }
            ),
            ".jsonl",
            warns=(marked,),
        ),
        Case(
            "instruction layout",
            rows(lambda p, n: {"text": f"### Instruction:\n{say(p)}\n\n### Response:\n{say(p)}"}),
            ".jsonl",
            warns=(marked,),
        ),
    ]


def settings() -> list[Case]:
    """The same text trained in all ways."""
    text, folder = prose(300), {"train.txt": prose(300), "validation.txt": prose(60, 9)}
    options: dict[str, dict[str, Any]] = {
        **{f"preset {preset}": dict(preset=preset, n_layers=2) for preset in ("paper", "gpt2", "modern", "blog")},
        "vocabulary of 260": dict(vocab_size=260),
        "vocabulary of 1,000": dict(vocab_size=1000),
        "context of 8": dict(context_length=8),
        "context of 2,048": dict(context_length=2048, batch_size=2),
        "batch larger than the text": dict(batch_size=512),
        "batch of one": dict(batch_size=1),
        "windows that overlap": dict(window_stride=7),
        "windows that begin like prompts": dict(prompt_share=0.5),
        "all windows begin like prompts": dict(prompt_share=0.99, window_stride=16),
        "documents apart": dict(separate_documents=True),
        "three passes": dict(max_epochs=3, gradient_accumulation_steps=2),
        "muon": dict(optimizer="muon"),
        "dropout and bf16": dict(dropout=0.2, precision="bf16"),
        "five minutes": dict(max_minutes=0.01),
    }
    apart = ("documents apart",)
    return [
        *(Case(name, text, options=chosen) for name, chosen in options.items() if name not in apart),
        Case("documents apart", rows(lambda p, n: {"text": say(p, 8, 20)}), ".jsonl", dict(separate_documents=True)),
        Case("prompts apart", rows(question), ".jsonl", dict(separate_documents=True, prompt_share=0.3)),
        Case("validation split", folder),
        Case("streamed", folder, options=dict(stream=True, max_steps=20)),
        Case(
            "streamed rows",
            {"train.jsonl": rows(question, 300), "validation.jsonl": rows(question, 30, 1)},
            options=dict(stream=True, max_steps=20),
        ),
        Case(
            "streamed over several blocks",
            {"train.txt": prose(4_000), "validation.txt": prose(60, 9)},
            options=dict(stream=True, max_steps=20, context_length=8, batch_size=512),
        ),
    ]


def fine_tuning() -> list[Case]:
    """From the model in weights/, and with the tokenizers of others."""
    weights = dict(init_from=str(ROOT / "weights"), context_length=64, learning_rate=5e-4)
    russian = script("абвгдежзийклмнопрстуфхцчшщыьэюя")
    few, spaces = "bytes per token", "repeated tokens"
    gpt2, bert = "tokenizers/gpt2", "tokenizers/bert-base-uncased"
    return [
        Case("weights, prose", prose(), options=weights),
        Case("weights, python", of_files("transformer/model/*.py"), options=weights),
        Case("weights, README", (ROOT / "README.md").read_text(), options=weights),
        Case(
            "weights, table",
            lines(lambda p, n: f"| {words_of(p):12} | {p.randint(1, 999):6} |"),
            options=weights,
            warns=(few, spaces),
        ),
        Case("weights, conversations", rows(conversation), ".jsonl", weights),
        Case("weights, prompts and completions", rows(question), ".jsonl", weights),
        Case("weights, another language", russian, options=weights, warns=(few,)),
        Case("weights, tiny file", " ".join(sentences(8)), options=weights),
        Case("gpt2's tokenizer", prose(), foreign=gpt2),
        Case("gpt2's tokenizer, another language", russian, foreign=gpt2, warns=(few,)),
        Case("bert's tokenizer", prose(), foreign=bert),
        Case("bert's tokenizer, code", of_files("transformer/data/*.py"), foreign=bert),
        Case("bert's tokenizer, accents", script("aeiourstnldmpcéèêàçùîôœ"), foreign=bert),
    ]


def ordinary() -> list[Case]:
    """All runs that are right."""
    return [*texts(), *settings(), *fine_tuning()]


# ---- planted mistakes ----

Collate = Callable[[np.ndarray, np.ndarray], None]


@dataclass(frozen=True)
class Mistake:
    """A run that is wrong. named: checks, one of which names it, with one of these verdicts and all of these words.

    collate: what changes inputs and targets of each batch. plant: what changes the parts of the run otherwise.
    silent: checks that must not take it for something else.
    """

    name: str
    named: tuple[str, ...]
    words: tuple[str, ...] = ()
    case: Case = Case("prose", prose())
    collate: Collate | None = None
    plant: Callable[[RunComponents], RunComponents] = lambda parts: parts
    verdicts: tuple[str, ...] = ("fail",)
    silent: tuple[str, ...] = ()


class Collated(EpochBatches):
    """Batches that go through a function before they are given out."""

    def __init__(self, source: EpochBatches, collate: Collate) -> None:
        super().__init__(source.windows, source.batch_size, source.seed)
        self.collate = collate

    def next(self) -> Batch:
        batch = super().next()
        self.collate(batch.inputs.numpy(), batch.targets.numpy())
        return batch


class InOrder(EpochBatches):
    """Windows in the order of the text."""

    def indices(self, batch: int) -> np.ndarray:
        first = batch * self.batch_size % len(self.windows)
        return np.arange(first, min(first + self.batch_size, len(self.windows)))


class Repeated(EpochBatches):
    """The first windows again and again."""

    def indices(self, batch: int) -> np.ndarray:
        return np.arange(self.batch_size)


def left_padding(pad: int) -> Collate:
    """The text at the right of its row, padding before it, counted."""

    def collate(inputs: np.ndarray, targets: np.ndarray) -> None:
        for row in range(len(inputs)):
            n = 9 + row % 5
            inputs[row, n:], targets[row, n:] = inputs[row, :-n].copy(), targets[row, :-n].copy()
            inputs[row, :n], targets[row, : n - 1] = pad, pad
            targets[row, n - 1] = inputs[row, n]

    return collate


def overwritten(column: int, id: int, also_input: bool = False) -> Collate:
    """One column of the targets is one token."""

    def collate(inputs: np.ndarray, targets: np.ndarray) -> None:
        targets[:, column] = id
        if also_input:
            inputs[:, column + 1] = id

    return collate


def shifted(by: int) -> Collate:
    """Targets that are the inputs `by` places on."""

    def collate(inputs: np.ndarray, targets: np.ndarray) -> None:
        targets[:] = np.roll(inputs, -by, axis=1)
        targets[:, len(targets[0]) - by :] = IGNORE_INDEX

    return collate


def masked(inputs: np.ndarray, targets: np.ndarray) -> None:
    """Nothing is learned."""
    targets[:] = IGNORE_INDEX


def other_inputs(inputs: np.ndarray, targets: np.ndarray) -> None:
    """Tokens by chance."""
    inputs[:] = np.random.default_rng(int(inputs.sum())).integers(0, 256, inputs.shape)


def with_source(kind: type[EpochBatches]) -> Callable[[RunComponents], RunComponents]:
    return lambda parts: dataclasses.replace(parts, source=kind(parts.source.windows, 8, 0))  # type: ignore[attr-defined]


def with_stream(
    change: Callable[[np.ndarray, int], None], learned: bool | None = None
) -> Callable[[RunComponents], RunComponents]:
    """Other tokens than those of the text, or other ones to learn."""

    def plant(parts: RunComponents) -> RunComponents:
        assert parts.training is not None
        old = parts.training
        tokens = old.stream.tokens.copy()
        change(tokens, parts.tokenizer.end_of_text_id)
        mask = old.stream.loss_mask if learned is None else np.full(len(tokens), learned)
        stream = dataclasses.replace(old.stream, tokens=tokens, loss_mask=mask)
        training = Windows(stream, old.length, old.pad_id, (old.first, old.stop))
        validation = parts.validation
        if validation.stream is old.stream and learned is None:
            validation = Windows(stream, old.length, old.pad_id, (validation.first, validation.stop))
        return dataclasses.replace(parts, source=EpochBatches(training, 8, 0), training=training, validation=validation)

    return plant


def unlearned_validation(parts: RunComponents) -> RunComponents:
    old = parts.validation
    stream = dataclasses.replace(old.stream, loss_mask=np.zeros(len(old.stream.tokens), bool))
    return dataclasses.replace(parts, validation=Windows(stream, old.length, old.pad_id, (old.first, old.stop)))


def end_often(tokens: np.ndarray, end: int) -> None:
    tokens[40::50] = end


def one_by_one(tokens: np.ndarray, end: int) -> None:
    tokens[7::100] = 65


def misread(text: str, codec: str) -> str:
    return text.encode().decode(codec, errors="replace")


def mistakes() -> list[Mistake]:
    """Runs that are wrong in their text or batches."""
    warned = ("warn",)
    in_text, follow, padding = "rows in the text", "targets follow inputs", "padding in the targets"
    french = "".join(f"{s} Voilà l'été à la fenêtre, déjà très âgé.\n" for s in sentences(100))
    russian = script("абвгдежзийклмнопрстуфхцчшщыьэюя")
    spaces = of_files("transformer/model/*.py")

    def of_rows(make: Callable[[random.Random, int], dict[str, Any]]) -> Case:
        return Case("rows", rows(make), ".jsonl")

    def same(pick: random.Random, number: int) -> dict[str, Any]:
        return {"prompt": f"{say(pick)}?", "completion": " I do not know."}

    def echoed(pick: random.Random, number: int) -> dict[str, Any]:
        text = say(pick)
        return {"prompt": f"{text}\n", "completion": text}

    def given_away(pick: random.Random, number: int) -> dict[str, Any]:
        answer = say(pick, 6, 10)
        return {"prompt": f"Context: {say(pick)}. {answer}. {say(pick)}.\nAnswer:", "completion": f" {answer}"}

    def separated(pick: random.Random, number: int) -> dict[str, Any]:
        return {"text": f"{say(pick)} [SEP]"}

    return [
        Mistake("padding counted", (padding,), ("of the targets are padding",), collate=left_padding(0)),
        Mistake("padding counted, an ordinary token", (padding,), ("per real token",), collate=left_padding(77)),
        Mistake("padding counted, a space, in code", (padding,), (), Case("code", spaces), left_padding(220)),
        Mistake(
            "a token in every row", (in_text, "the same in every row"), ("id 77",), collate=overwritten(12, 77, True)
        ),
        Mistake("last target overwritten", (in_text,), ("column 31 (the last)",), collate=overwritten(-1, 9)),
        Mistake("first target overwritten", (in_text, follow), ("column 0 (the first)",), collate=overwritten(0, 9)),
        Mistake("targets not shifted", (follow,), ("shifted by 0",), collate=shifted(0)),
        Mistake("targets shifted by two", (follow,), ("shifted by 2",), collate=shifted(2)),
        Mistake("inputs of another text", (in_text,), ("not this text",), collate=other_inputs),
        Mistake("batches without targets", ("something to learn",), ("masks all",), collate=masked, silent=(follow,)),
        Mistake(
            "nothing is learned", ("something to learn",), ("No token",), plant=with_stream(lambda *_: None, False)
        ),
        Mistake("validation without targets", ("something to learn",), ("validation",), plant=unlearned_validation),
        Mistake("no shuffling", ("shuffling",), ("in its order",), plant=with_source(InOrder), verdicts=warned),
        Mistake("the same windows again", ("order of the batches",), ("repeats",), plant=with_source(Repeated)),
        Mistake(
            "ends where no document ends", ("special tokens",), ("no document ends",), plant=with_stream(end_often)
        ),
        Mistake("tokens of another text", ("tokens back to text",), ("differs",), plant=with_stream(one_by_one)),
        Mistake("[SEP] after each text", ("markers in the text",), ("[SEP]",), of_rows(separated)),
        Mistake("all completions equal", ("completions",), ("I do not know",), of_rows(same), verdicts=warned),
        Mistake(
            "completions that are their prompts", ("completions",), ("prompt again",), of_rows(echoed), verdicts=warned
        ),
        Mistake("answers in their prompts", ("completions",), ("word for word",), of_rows(given_away), verdicts=warned),
        Mistake(
            "UTF-8 read as cp1252",
            ("encoding of the text",),
            ("'é'", "cp1252"),
            Case("mojibake", misread(french, "cp1252")),
            verdicts=warned,
        ),
        Mistake(
            "UTF-8 read as Latin-1",
            ("encoding of the text",),
            ("read as",),
            Case("mojibake", misread(french, "latin-1")),
            verdicts=warned,
        ),
        Mistake(
            "Russian read as cp1251",
            ("encoding of the text",),
            ("cp1251",),
            Case("mojibake", russian.encode().decode("cp1251", errors="ignore")),
            verdicts=warned,
        ),
        Mistake(
            "characters lost",
            ("encoding of the text",),
            ("U+FFFD",),
            Case("lost", french.encode("latin-1").decode("utf-8", errors="replace")),
            verdicts=warned,
        ),
        Mistake(
            "a thousand passes",
            ("passes over the text",),
            ("1,000 times",),
            Case("prose", prose(), options=dict(max_epochs=1000)),
            verdicts=warned,
        ),
        Mistake(
            "validation text that is learned",
            ("validation in training",),
            ("in the training text too",),
            Case("twice", {"train.jsonl": rows(question, 200), "validation.jsonl": rows(question, 50)}),
            verdicts=warned,
        ),
        Mistake(
            "a tokenizer of another language",
            ("unknown tokens",),
            ("another language",),
            Case("chinese", script("麵鱻龘靐齉龗灪爨麤籲鸞癵驫"), foreign="tokenizers/bert-base-uncased"),
            verdicts=("fail", "warn"),
            silent=(in_text, "validation in its text", padding, "tokens back to text", follow),
        ),
        Mistake(
            "a vocabulary of another language",
            ("bytes per token",),
            ("another kind of text or language",),
            Case("russian", russian, foreign="tokenizers/gpt2"),
            verdicts=warned,
            silent=(in_text, "validation in its text", padding, "tokens back to text", follow),
        ),
    ]


# ---- running them ----


@cache
def engine() -> Engine:
    return Engine("cpu")


def foreign(name: str) -> Path:
    """A folder beside the checkout."""
    return Path(os.environ.get("SHARED_DATA", ROOT.parent / "shared")) / name


def examine(case: Case, folder: Path, complete: bool = False, mistake: Mistake | None = None) -> Report:
    """Preflight of a run as it would begin, or its checks of text and batches alone."""
    config = case.config(folder)
    if case.foreign:
        config = config.with_options(tokenizer=str(foreign(case.foreign)))
    parts = build(config, engine())
    if mistake:
        if mistake.collate:
            assert isinstance(parts.source, EpochBatches)
            parts = dataclasses.replace(parts, source=Collated(parts.source, mistake.collate))
        parts = mistake.plant(parts)
    return preflight(parts, config, engine(), with_model=complete)


def wrong(case: Case, report: Report) -> list[str]:
    """What was said of a run that is right and should not have been."""
    return [
        f"{check.name} ({check.verdict}): {check.cause_and_cure}"
        for check in report.checks
        if check.verdict == "fail" or (check.verdict == "warn" and check.name not in case.warns)
    ]


def unsaid(mistake: Mistake, report: Report) -> list[str]:
    """What should have been said of a mistake and was not, or was and is not true."""
    by_name = {check.name: check for check in report.checks}
    found = [by_name[name] for name in mistake.named if name in by_name]
    said = any(c.verdict in mistake.verdicts and all(w in c.cause_and_cure for w in mistake.words) for c in found)
    lines = [] if said else [f"{', '.join(mistake.named)} should {' or '.join(mistake.verdicts)}: {found}"]
    return lines + [
        f"{check.name}: {check.cause_and_cure}"
        for check in report.checks
        if check.verdict == "fail" and check.name in mistake.silent
    ]


def main() -> int:
    """Print what is said of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="those alone whose names have these words in them")
    parser.add_argument("--complete", action="store_true", help="make all checks, those of the model too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    failed, warned, named = Counter[str](), Counter[str](), Counter[str]()
    faults = 0
    runs = [*((case.name, case, None) for case in ordinary()), *((m.name, m.case, m) for m in mistakes())]
    runs = [run for run in runs if all(word in run[0] for word in options.names)]
    for name, case, mistake in runs:
        if case.foreign and not foreign(case.foreign).exists():
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                report = examine(case, Path(folder), options.complete, mistake)
            except TransformerError as error:
                print(f"{name}: refused before: {error}", flush=True)
                faults += 1
                continue
        said = unsaid(mistake, report) if mistake else wrong(case, report)
        faults += bool(said)
        if mistake:
            named.update(check.name for check in (*report.failed, *report.warned))
        else:
            failed.update(check.name for check in report.failed)
            warned.update(check.name for check in report.warned)
        found = ", ".join(f"{c.name} {c.verdict}" for c in (*report.failed, *report.warned)) or "nothing"
        print(f"{'WRONG' if said else 'right'}  {'mistake ' * bool(mistake)}{name}: {found}", flush=True)
        for line in said:
            print(f"       {line}", flush=True)
    print(f"\n{len(runs)} runs, {faults} judged wrongly. Of each check: failed, warned, and named in mistakes")
    for name in sorted({*failed, *warned, *named}):
        print(f"  {name:24} {failed[name]:3} {warned[name]:3} {named[name]:3}")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
