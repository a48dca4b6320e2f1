"""Random options and inputs for predict, chat, evaluate and show, run in this process: none may end with a traceback.

    python -m tools.fuzz_cli --runs 10000 --seed 0

What a command may do: succeed without a word on standard error, refuse its options as argparse does (status 2), or say
one sentence (status 1). It prints every run that did anything else, with the arguments that repeat it, and a count.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import random
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import datasets
import torch

from transformer.cli import main as run_command
from transformer.data.conversation import CHAT_TEMPLATE
from transformer.data.template_files import CHAT_HINT
from transformer.data.tokenizer import Tokenizer
from transformer.hub import checkpoint
from transformer.legacy import model_class, preset_config

_CHARACTERS = [
    "a",
    "The river",
    " ",
    "\n",
    "\t",
    "é",
    "東京",
    "🦞",
    "👩‍👩‍👧",
    "e\u0301",
    "\u202e",
    "\x00",
    "\x1b[31m",
    "\ufffd",
    "\ufeff",
]
_CHARACTERS += [
    "\ud83d",
    "\udcc3\udca9",
    "\udcff",
    "<|endoftext|>",
    "<|pad|>",
    "{{ x }}",
    "%s",
    "\\n",
    ",",
    '"',
    "\x7f",
    "\u2028",
    "𐏿",
]
_NUMBERS = [
    "0",
    "1",
    "2",
    "-1",
    "0.5",
    "1e-45",
    "1e-3",
    "5e-324",
    "1e-400",
    "nan",
    "inf",
    "-inf",
    "1e308",
    "1e400",
    "x",
    "",
]
_NUMBERS += [
    "9" * 30,
    "9" * 5000,
    "0x10",
    "１２",
    "1_0",
    " 3 ",
    "True",
    "None",
    str(2**31 + 1),
    str(2**63),
    str(2**63 - 1),
    "-0.0",
]
_SMALL = ["1", "3", "8", "0", "-1", "1.5", "x", "nan", "9" * 30, ""]  # for what would take as long as it is large
_TEXTS = ["The river rises in the hills, and the river meets the sea near the old town.", "Crème brûlée — 東京 🦞."]


@dataclass(frozen=True)
class Case:
    """A command line, what is typed into it, and the encoding of its terminal."""

    arguments: list[str]
    typed: bytes
    encoding: str


@dataclass(frozen=True)
class Outcome:
    """status: of the command; None: it ended with an exception, whose traceback is in `error`."""

    status: int | None
    out: str
    error: str

    @property
    def fault(self) -> str | None:
        """What is wrong with it."""
        if self.status is None:
            return "an exception"
        if "Traceback" in self.error:
            return "a traceback"
        notes = ("sampling: ", CHAT_HINT, "the context of ")  # what is used, and what was left out of a conversation
        lines = [line for line in self.error.split("\n") if line and not line.startswith(notes)]
        if self.status == 0 and lines:
            return "a message, yet success"
        if self.status == 1 and (len(lines) != 1 or not lines[0].startswith("transformer: ")):
            return "an error that is not one sentence"
        return None if self.status in (0, 1, 2) else f"status {self.status}"


def prepare(folder: Path) -> None:
    """Models and data, right ones and broken ones, that the commands are run on."""
    datasets.utils.logging.set_verbosity(logging.CRITICAL)  # it logs to the stream that was there when it was imported
    tokenizer = Tokenizer.train(_TEXTS * 5, 300, pad="<|pad|>")
    for name, preset in (
        ("modern", "modern"),
        ("gpt2", "gpt2"),
        ("paper", "paper"),
        ("blog", "blog"),
        ("chat", "modern"),
    ):
        torch.manual_seed(0)
        sizes = dict(vocab_size=tokenizer.vocab_size, context_length=16, d_model=16, n_layers=1, n_heads=2)
        config = preset_config(preset, **sizes)
        model = model_class(config)(config).eval()
        tokenizer.chat_template = CHAT_TEMPLATE if name == "chat" else None
        checkpoint.save(model, tokenizer, folder / name)
    modern = {path.name: path.read_bytes() for path in (folder / "modern").iterdir()}
    broken: dict[str, dict[str, bytes]] = {
        "no weights": {"model.safetensors": b""},
        "cut weights": {"model.safetensors": modern["model.safetensors"][:-100]},
        "config is no object": {"config.json": b"[1]"},
        "config is no text": {"config.json": b"\xff\xfe\x00"},
        "no tokenizer": {"tokenizer.json": b"{}"},
        "settings are no object": {"tokenizer_config.json": b'"x"'},
        "another size": {"config.json": modern["config.json"].replace(b'"hidden_size": 16', b'"hidden_size": 32')},
    }
    for name, files in broken.items():
        (folder / name).mkdir()
        for file, content in (modern | files).items():
            (folder / name / file).write_bytes(content)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in _TEXTS)
    files = {
        "text.txt": "\n".join(_TEXTS).encode(),
        "lines.jsonl": lines.encode(),
        "empty.txt": b"",
        "spaces.txt": b" \n\n ",
        "bytes.txt": bytes(range(256)),
        "broken.jsonl": b'{"text": "a"}\n{"text":\n',
        "numbers.jsonl": b'{"text": 1}\n',
        "array.json": b'[{"text": "The river"}]',
        "gzip.txt.gz": b"\x1f\x8b not really",
        "table.csv": b"a,b\n1,2\n",
        "odd.unknown": b"The river",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)


def case(draw: random.Random, folder: Path) -> Case:
    """A random command line."""
    command = draw.choice(["predict", "predict", "chat", "evaluate", "show"])
    arguments = [command, *_COMMANDS[command](draw, folder)]
    typed = "\n".join(_text(draw) for _ in range(draw.randrange(4))).encode("utf-8", "replace")
    if draw.random() < 0.2:
        typed += b"\xff\xc3\n"
    return Case(arguments, typed, draw.choice(["utf-8", "utf-8", "ascii", "latin-1", "cp1252"]))


def run(case: Case) -> Outcome:
    """Run a command line in this process, with standard streams of its own."""
    with _streams(case) as (out, error):
        status: int | None
        try:
            status = run_command(case.arguments)
        except SystemExit as stopped:  # argparse
            status = stopped.code if isinstance(stopped.code, int) else 1
        except BaseException:
            status = None
            traceback.print_exc()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    return Outcome(status, out.getvalue().decode(case.encoding, "replace"), error.getvalue().decode("utf-8", "replace"))


@contextmanager
def _streams(case: Case) -> Iterator[tuple[io.BytesIO, io.BytesIO]]:
    before = sys.stdin, sys.stdout, sys.stderr
    out, error = io.BytesIO(), io.BytesIO()
    sys.stdin = io.TextIOWrapper(io.BytesIO(case.typed), case.encoding)
    sys.stdout = io.TextIOWrapper(out, case.encoding)
    sys.stderr = io.TextIOWrapper(error, "utf-8", "backslashreplace")
    kept = sys.stdin, sys.stdout, sys.stderr
    try:
        yield out, error
    finally:
        sys.stdin, sys.stdout, sys.stderr = before
        for stream in kept:
            stream.detach()


def _text(draw: random.Random) -> str:
    text = "".join(draw.choice(_CHARACTERS) for _ in range(draw.choice([0, 1, 3, 10])))
    return text * draw.choice([1, 1, 1, 200])


def _path(draw: random.Random, folder: Path, names: list[str]) -> str:
    odd = [
        "",
        ".",
        "/",
        "./nowhere",
        "a\x00b",
        "x" * 5000,
        "\udcff",
        "~",
        "/dev/null",
        "/dev/null/x",
        "a/b/c",
        "file://x",
    ]
    return str(folder / draw.choice(names)) if draw.random() < 0.9 else draw.choice(odd)


def _model(draw: random.Random, folder: Path) -> list[str]:
    right = ["modern", "gpt2", "paper", "blog", "chat"]
    broken = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name not in right)
    return ["--model", _path(draw, folder, right if draw.random() < 0.9 else broken)]


def _number(draw: random.Random, *usual: str) -> str:
    return draw.choice(usual if usual and draw.random() < 0.7 else _NUMBERS)


def _some(draw: random.Random, options: dict[str, Callable[[], str]], share: float = 0.3) -> list[str]:
    """Some of the options, each as "--name=value", which may begin with a dash."""
    return [f"{name}={make()}" for name, make in options.items() if draw.random() < share]


def _generation(draw: random.Random, folder: Path) -> list[str]:
    options: dict[str, Callable[[], str]] = {
        "--temperature": lambda: _number(draw, "0", "1e-45", "1e-3", "1", "5"),
        "--top-k": lambda: _number(draw, "0", "1", "50"),
        "--top-p": lambda: _number(draw, "0", "0.5", "1"),
        "--min-p": lambda: _number(draw, "0", "0.1", "1"),
        "--repetition-penalty": lambda: _number(draw, "1", "0.5", "1e300", "1e-300"),
        "--seed": lambda: _number(draw, "0", str(2**63 - 1)),
        "--min-tokens": lambda: draw.choice(["0", "1", *_SMALL]),
        "--stop": lambda: _text(draw) or "x",
        "--system": lambda: _text(draw),
        "--template-option": lambda: f"{draw.choice(['tools', 'bos_token', _text(draw)])}={_text(draw)}",
    }
    options["--dtype"] = lambda: draw.choice(["auto", "fp32", "bf16", "int8"])
    flags = [flag for flag in ("--enable-thinking", "--no-enable-thinking") if draw.random() < 0.05]
    return [
        *_model(draw, folder),
        "--max-tokens",
        draw.choice(_SMALL[:3] * 5 + _SMALL),
        *_some(draw, options, 0.15),
        *flags,
    ]


def _predict(draw: random.Random, folder: Path) -> list[str]:
    options = {"--num-outputs": lambda: draw.choice(["1", "2", "3", *_SMALL])}
    flags = ["--chat"] if draw.random() < 0.1 else []
    return [*_generation(draw, folder), *_some(draw, options, 0.2), *flags, "--", _text(draw)]


def _evaluate(draw: random.Random, folder: Path) -> list[str]:
    data = sorted(path.name for path in folder.iterdir() if path.is_file())
    options: dict[str, Callable[[], str]] = {
        "--context": lambda: _number(draw, "8", "16"),
        "--stride": lambda: _number(draw, "1", "4"),
        "--detokenize": lambda: draw.choice(["wikitext", "x"]),
        "--dtype": lambda: draw.choice(["auto", "fp32", "bf16", "int8"]),
        "--data-config": lambda: _text(draw),
    }
    data = data if draw.random() < 0.5 else ["text.txt", "lines.jsonl"]
    split = "train" if draw.random() < 0.8 else draw.choice(["validation", "test", "", "train[:1]", "é"])
    flags = ["--json"] if draw.random() < 0.3 else []
    return [
        *[*_model(draw, folder), f"--data={_path(draw, folder, data)}", f"--split={split}"],
        *[*_some(draw, options, 0.15), *flags],
    ]


def _show(draw: random.Random, folder: Path) -> list[str]:
    output = draw.choice(
        [str(folder / "page.out"), str(folder / "new" / "page.out"), str(folder / "modern"), "", "/dev/null/x"]
    )
    output = output if draw.random() < 0.9 else "a\x00b"
    return [draw.choice(["attention", "tokens"]), *_model(draw, folder), f"--output={output}", "--", _text(draw)]


_COMMANDS: dict[str, Callable[[random.Random, Path], list[str]]] = {
    "predict": _predict,
    "chat": _generation,
    "evaluate": _evaluate,
    "show": _show,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    counts, kinds = Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("XDG_CACHE_HOME", str(Path(temporary) / "cache"))
        folder = Path(temporary) / "files"
        folder.mkdir()
        prepare(folder)
        os.chdir(temporary)
        for number in range(options.runs):
            one = case(random.Random(f"{options.seed}-{number}"), folder)
            outcome = run(one)
            counts[f"{one.arguments[0]} status {outcome.status}"] += 1
            if outcome.fault:
                kinds[f"{outcome.fault}: {outcome.error.strip().splitlines()[-1][:150]}"] += 1
                if kinds.total() <= 20:
                    print(f"--- run {number}: {outcome.fault}\n{one}\n{outcome.error[-1500:]}", flush=True)
    print(json.dumps(dict(sorted(counts.items())), indent=1))
    for kind, count in kinds.most_common():
        print(f"{count:6,} {kind}")
    print(f"{options.runs:,} runs, {kinds.total():,} of them at fault")
    return 1 if kinds else 0


if __name__ == "__main__":
    sys.exit(main())
