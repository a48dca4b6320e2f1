"""A fuzzer of training: random options, config files, models, tokenizers and data, in this process, with tiny models.

    python -m tests.fuzz_training --runs 10000

A run of train.py has to end with status 0 and a model that opens and is what the options say, or with one sentence
(a TransformerError, or the usage message of the command line). Everything else is a finding: another exception, a
traceback, more than 20 seconds of processor time, a value that cannot be right and is accepted, text that is not what
the file holds, a changed input file. Cog's two entry points are called with random inputs within and beyond the bounds
of their schema.

Run number n of a seed is the same run every time: --only n makes it again, and shows what it says.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import functools
import hashlib
import io
import json
import logging
import math
import multiprocessing
import os
import random
import re
import resource
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
import fuzz_files  # noqa: E402  # found by the line before
from fuzz_files import Data  # noqa: E402

SECONDS = 20  # of processor time that a run may take; on a busy machine the clock says nothing
BUSY = 20  # times as much may pass on the clock
MEMORY = 8 * 2**30  # bytes of addresses that a worker may take beyond what it has: what asks for more is refused
RUNS_OF_A_WORKER = 400
TINY = {
    "d-model": "16",
    "n-layers": "1",
    "n-heads": "2",
    "context-length": "16",
    "vocab-size": "300",
    "batch-size": "2",
    "max-steps": "1",
}
WITHOUT_PREFLIGHT = ("--preflight", "off")

NUMBERS = ["", "x", "nan", "1e", "0x10", "1,5", "--", "None", "[1]"]
HUGE = ["1000000000", "9223372036854775807", "18446744073709551616", "1" + 40 * "0"]
WRONG_INT = [*NUMBERS[:-2], "1.5", "-1", "-9223372036854775809"]
WRONG_FLOAT = [*NUMBERS[:-2], "-1", "-inf", "-1e-300"]


@dataclass(frozen=True)
class Option:
    """Values of an option: those that are right in every run here, those that never are, and those that may be."""

    right: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    either: tuple[str, ...] = ()


def whole(*right: str, wrong: tuple[str, ...] = ("0",), huge: bool = True) -> Option:
    return Option(right, (*WRONG_INT, *wrong), tuple(HUGE) if huge else ())


def number(*right: str, wrong: tuple[str, ...] = (), either: tuple[str, ...] = ()) -> Option:
    return Option(right, (*WRONG_FLOAT, *wrong), either)


def choice(*right: str, either: tuple[str, ...] = ()) -> Option:
    return Option(right, ("", "x", "None", right[0].upper() + "x", "0"), either)


BEYOND = ("/dev/null/x", "\udcff", "a" * 300, "", ".", "~", "a/b/c", "./no/such", "-", "/", "name:with:colons", "ü 東")
PATHS = Option(either=BEYOND)
OPTIONS: dict[str, Option] = {
    "data-config": Option(either=("x", "wikitext-2-raw-v1", "", "None")),
    "clean": Option(("None",), ("", "x", "wiki"), ("wikipedia",)),
    "token-cache": PATHS,
    "window-stride": whole("1", "8", "16"),
    "prompt-share": number("0", "0.5", "0.99", wrong=("1", "2", "inf")),
    "vocab-size": whole("257", "300", "400", wrong=("0", "1", "255", "256")),
    "whole-tokens": Option(("<unk>",), (), ("", "<|endoftext|>", "a", " ", "\n", "the", "Ġ", "\udcff", "x" * 1000)),
    "preset": choice("modern", "paper", "gpt2", "blog"),
    "context-length": whole("2", "8", "33", wrong=("0",)),
    "short-window-share": number("0", "0.5", wrong=("1", "inf")),
    "short-window-length": whole("4", "8", huge=False),
    "d-model": whole("16", "32", "48"),
    "n-layers": whole("1", "2", huge=False),
    "n-heads": whole("1", "2", "4"),
    "n-kv-heads": whole("1", "2"),
    "d-feed-forward": whole("1", "32", "33"),
    "dropout": number("0", "0.5", "1e-300", wrong=("1", "2", "inf")),
    "batch-size": whole("1", "3", "16"),
    "gradient-accumulation-steps": whole("1", "2", "7", huge=False),
    "optimizer": choice("adamw", "muon"),
    "learning-rate": number("1e-3", "0.1", "1e-30", wrong=("0", "inf"), either=("1", "1e30", "1e308", "1e-320")),
    "embedding-learning-rate": number("1e-3", "0.1", wrong=("0", "inf"), either=("1e30",)),
    "schedule": choice("cosine", "linear", "wsd"),
    "warmup-ratio": number("0", "0.5", "0.999", wrong=("1", "inf")),
    "decay-ratio": number("0", "0.5", "1", wrong=("2", "inf")),
    "final-learning-rate": number("0", "0.5", "1", wrong=("2", "inf")),
    "weight-decay": number("0", "0.1", either=("1", "1e6", "1e308"), wrong=("inf",)),
    "ema-decay": number("0.9", "0.999", "1e-9", wrong=("0", "1", "inf")),
    "beta2": number("0.9", "0", "0.999", wrong=("1", "2", "inf")),
    "max-grad-norm": number("1", "0.1", "1e-6", either=("inf", "1e300", "1e-300"), wrong=("0",)),
    "max-loss": number("100", "1000", either=("inf", "1", "1e-9"), wrong=("0",)),
    "max-epochs": number("1", "0.5", "3", either=("inf", "1e30", "1e-300"), wrong=("0",)),
    "max-steps": whole("1", "2", "3", huge=False),
    "max-tokens": whole("1", "100"),
    "max-minutes": number("1", "0.0001", "1e-9", either=("inf", "1e30", "1e308"), wrong=("0",)),
    "max-cost": number(wrong=("0",), either=("1", "inf", "1e-9")),
    "price-per-hour": number("1", "0.01", "1e-9", either=("inf", "1e308"), wrong=("0",)),
    "patience": whole("1", "5"),
    "validate-every": whole("1", "2", "100"),
    "validation-windows": whole("1", "2", "64"),
    "sample-prompt": Option(
        ("", "The", "東京 🦞", "a" * 500, "<|endoftext|>", "\n\n"), (), ("\0", "\udcff", "--x", "-1")
    ),
    "checkpoint-every": whole("1", "2", "100"),
    "keep-checkpoints": whole("1", "2"),
    "seed": Option(("0", "1", "4294967296", "9223372036854775807"), ("-1", "x", "", "1.5", *HUGE[2:])),
    "precision": choice("auto", "bf16", "fp32"),
    "parallel": choice("ddp", either=("fsdp",)),
    "trackers": Option(("tensorboard",), ("x", ""), ("None",)),
    "push-to": Option((), ("", "x/y/z", "a b/c", "-"), ("user/name", "name")),
    "device": choice("auto", "cpu", either=("cuda", "mps", "meta", "cuda:7")),
    "config": Option((), (), ("quick", "sprint", "nowhere.yaml", "", "/", "/dev/null")),
    "nonsense": Option((), ("1", "x", "")),
}
FLAGS = (
    *("stream", "separate-documents", "start-from-bigrams", "freeze-embeddings", "tie-embeddings"),
    *("resume", "restart", "push-public"),
)
# The first takes a minute; the others are drawn by themselves.
ELSEWHERE = {"compile", "preflight", "data", "validation-data", "output", "tokenizer", "init-from", "embeddings-from"}
UNLISTED = Option(either=("", "x", "0", "1", "-1", "0.5", "nan", "None", "True", "ü", *HUGE))


class Hang(BaseException):
    """A run takes too long; no `except Exception` catches it."""


@dataclass
class Result:
    """How a run ended. fault: what is wrong with that, in words that runs with the same fault share; "": nothing is."""

    status: int | str
    said: str
    fault: str = ""
    seconds: float = 0.0


@dataclass
class Run:
    """A run of train.py: groups of arguments, each an option with its values, and what has to come of it."""

    groups: list[tuple[str, ...]]
    data: Data | None = None
    twice: list[tuple[str, ...]] | None = None  # groups of a second run with the same output

    def command(self) -> str:
        lines = [self.groups, *([self.groups + self.twice] if self.twice is not None else [])]
        return " ; ".join(f"python train.py {shlex.join(sum(groups, ()))}" for groups in lines)


# ---- random runs ----


def draw_run(seed: str, n: int, models: Path) -> Run:
    """A run; its files are made in the working directory.

    Args:
        seed: "each": run n of the table of all options and values. Any other: a random run.
        models: the folder of `make_models`.
    """
    if seed == "each":
        return draw_each(n)
    draw, run = random.Random(f"{seed}/{n}/run"), Run([])
    here = Path()
    options = known_options()
    if draw.random() < 0.5:
        run.data = fuzz_files.make(draw, here)
    else:
        run.data = fuzz_files.good(draw, here)
    given: dict[str, tuple[str, ...]] = {name: (value,) for name, value in TINY.items()}
    given["data"] = (str(run.data.path),)
    if draw.random() < 0.02:
        del given["data"]
    model = draw.random()
    if model < 0.2:
        given["init-from"] = (draw_model(draw, models),)
        for name in _names(of_initial_model=True):
            given.pop(name, None)
    if model > 0.7:
        given["tokenizer"] = (draw_tokenizer(draw, models),)
        given.pop("vocab-size")
    if draw.random() < 0.1:
        given["embeddings-from"] = (draw_model(draw, models),)
    if draw.random() < 0.1:
        (other := here / "other").mkdir()
        given["validation-data"] = (str(fuzz_files.make(draw, other).path),)
    for name in draw.sample(options, draw.choice((0, 0, 1, 1, 1, 2, 2, 3, 5))):
        given[name] = (draw_value(draw, name),)
    if draw.random() < 0.1:
        given["whole-tokens"] = tuple(draw.choices(sum(_values("whole-tokens"), ()), k=draw.randint(0, 4)))
    output = draw.random()
    given["output"] = ("out",) if output < 0.93 else (draw_output(draw, here),)
    groups = [(f"--{name}", *values) for name, values in given.items()]
    groups += [(draw.choice(("--", "--no-")) + flag,) for flag in draw.sample(FLAGS, draw.choice((0, 0, 0, 1, 1, 2)))]
    groups += [] if draw.random() < 0.04 else [WITHOUT_PREFLIGHT]
    if draw.random() < 0.15:
        groups += [("--config", draw_config(draw, here))]
    if draw.random() < 0.2:
        draw.shuffle(groups)
    run.groups = groups
    if draw.random() < 0.1:  # the same output again: goes on, has ended, or is another run
        name = draw.choice(options)
        run.twice = draw.choice(([], [("--max-steps", "3")], [("--restart",)], [("--resume",)], None, None)) or [
            (f"--{name}", draw_value(draw, name))
        ]
    return run


@functools.cache
def known_options() -> list[str]:
    """The options that are drawn: those of OPTIONS, and those of a training that nobody has listed there."""
    known = _names()
    if gone := set(OPTIONS) - known - {"config", "nonsense"}:
        raise SystemExit(f"these are no options of a training any more: {', '.join(sorted(gone))}")
    return sorted(OPTIONS.keys() | known - ELSEWHERE - set(FLAGS))


@functools.cache
def _names(of_initial_model: bool = False) -> set[str]:
    """The options of a training; or those of them that --init-from decides."""
    from transformer.training.option_metadata import Mark
    from transformer.training.train_config import OPTIONS

    return {
        name.replace("_", "-")
        for name, option in OPTIONS.items()
        if not of_initial_model or Mark.OF_INITIAL_MODEL in option.metadata
    }


def _values(name: str) -> tuple[tuple[str, ...], ...]:
    option = OPTIONS.get(name, UNLISTED)
    return option.right, option.wrong, option.either


def draw_value(draw: random.Random, name: str) -> str:
    """A value of an option, more often a right one."""
    right, wrong, either = _values(name)
    kinds = [(kind, weight) for kind, weight in ((right, 5), (wrong, 3), (either, 3)) if kind]
    values = draw.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])[0]
    return draw.choice(values)


def draw_model(draw: random.Random, models: Path) -> str:
    """Where a model is, or is not."""
    if draw.random() < 0.6:
        return str(models / draw.choice(("modern", "paper", "gpt2", "blog", "modern.tar", "small-embedding")))
    return draw.choice((*BEYOND, "/dev/null", "a/b", *(str(path) for path in sorted((models / "bad").iterdir()))))


def draw_tokenizer(draw: random.Random, models: Path) -> str:
    if draw.random() < 0.5:
        return str(models / draw.choice(("modern", "modern/tokenizer.json", "vocab.txt", "paper", "modern.tar")))
    return draw.choice((*BEYOND, "a/b", *(str(path) for path in sorted((models / "bad").iterdir()))))


def draw_output(draw: random.Random, here: Path) -> str:
    """A place where nothing can be written, or where something is."""
    kind = draw.choice(("file", "below a file", "checkpoint", "folder", "beyond", "input", "names"))
    if kind == "file":
        (here / "taken").write_text("x")
        return "taken"
    if kind == "below a file":
        (here / "taken").write_text("x")
        return "taken/out"
    if kind == "checkpoint":
        (folder := here / "out" / "checkpoints").mkdir(parents=True)
        (folder / "step-00000001-0123456789abcdef.safetensors").write_bytes(draw.randbytes(draw.choice((0, 100))))
        return "out"
    if kind == "folder":
        (here / "out" / "checkpoints" / "step-00000001-0123456789abcdef.safetensors").mkdir(parents=True)
        return "out"
    if kind == "names":
        (
            here / "out" / draw.choice(("config.json", "tokenizer.json", "README.md", "metrics.jsonl", "checkpoints"))
        ).mkdir(parents=True)
        return "out"
    return draw.choice([value for value in BEYOND if value not in ("/", "~")]) if kind == "beyond" else "input/out"


def draw_config(draw: random.Random, here: Path) -> str:
    """A file of options, right and wrong ones, or one that is no such file."""
    odd = [None, True, 1, -1, 1.5, math.nan, math.inf, "x", "", [], [1], ["a", None], {}, {"a": 1}, 10**30, "1e-3"]
    names = draw.sample(sorted(OPTIONS), draw.randint(0, 3))
    options: dict[str, Any] = {}
    for name in names:
        key = name if draw.random() < 0.5 else name.replace("-", "_")
        if draw.random() < 0.6:
            options[key] = draw.choice(OPTIONS[name].right or ("x",))
        else:
            options[key] = draw.choice(odd)
    if draw.random() < 0.1:
        options[draw.choice(("nonsense", 1, None, True, "data"))] = draw.choice(odd)
    kind = draw.choice(
        ("yaml", "yaml", "yaml", "toml", "toml", "json", "list", "date", "binary", "yaml as toml", "tag")
    )
    path = here / f"options.{'toml' if 'toml' in kind else kind if kind == 'json' else 'yaml'}"
    import yaml

    content = yaml.safe_dump(options)
    if kind == "toml":
        simple = {k: v for k, v in options.items() if isinstance(v, str | bool | int | float | list)}
        content = "".join(f"{json.dumps(str(k))} = {_toml(v)}\n" for k, v in simple.items())
    elif kind == "json":
        content = json.dumps({str(k): v for k, v in options.items()})
    elif kind == "list":
        content = draw.choice(
            ("", "- a\n", "x", "1", "null", "a: [", "a: &x [*x]", "? [a, b]\n: c\n", "\ta: 1", "a: " + 3000 * "[")
        )
    elif kind == "date":
        lines = ("max-steps: 2020-01-01", "output: 2020-01-01", "trackers: [2020-01-01]", "seed: 2020-13-45")
        content = "\n".join(draw.sample((*lines, "seed: 0o7", "learning-rate: .nan"), 2))
    elif kind == "tag":
        content = "seed: !!python/object/apply:os.getpid []\n"
    path.write_text(content, encoding="utf-8")
    if kind == "binary":
        path.write_bytes(draw.randbytes(50))
    return str(path)


def _toml(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf"
    return json.dumps([one for one in value if one is not None] if isinstance(value, list) else value)


def draw_each(n: int) -> Run:
    """Run number n of the table: a right text and one option with one of its values; each once, then from the front."""
    table = [(name, value) for name in known_options() for value in sum(_values(name), ())]
    name, value = table[n % len(table)]
    run = Run([], fuzz_files.good(random.Random(n), Path()))
    given = {**TINY, "data": str(run.data.path), "output": "out", name: value}  # type: ignore[union-attr]
    run.groups = [*((f"--{name}", value) for name, value in given.items()), WITHOUT_PREFLIGHT]
    return run


# ---- running and judging ----


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raises `Hang` in the block after this many seconds; if nobody notices, the process ends."""

    def ring(*_: object) -> None:
        raise Hang

    timers = {signal.SIGPROF: (signal.ITIMER_PROF, seconds), signal.SIGALRM: (signal.ITIMER_REAL, BUSY * seconds)}
    before = {number: signal.signal(number, ring) for number in timers}
    faulthandler.dump_traceback_later(2 * BUSY * seconds, exit=True, file=sys.__stderr__)
    for timer, limit in timers.values():
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for timer, _ in timers.values():
            signal.setitimer(timer, 0)
        faulthandler.cancel_dump_traceback_later()
        for number, handler in before.items():
            signal.signal(number, handler)


def attempt(call: Callable[[], int | None], seconds: float = SECONDS) -> Result:
    """Call an entry point and look at how it ends."""
    out, began = io.StringIO(), time.process_time()
    status: int | str = 0
    fault = ""
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), deadline(seconds):
            status = call() or 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1 if stop.code else 0
        if isinstance(stop.code, str):
            fault = "SystemExit with a text"
    except Hang as hang:
        status, fault = "hang", f"hang in {_place(hang)}"
    except BaseException as error:
        text = str(error).splitlines()[0] if str(error) else ""
        status, fault = "raised", f"{type(error).__name__} in {_place(error)}: {_general(text)}"
        out.write(traceback.format_exc())
    said = out.getvalue()
    if not fault and "Traceback (most recent" in said:
        fault = "a traceback is shown: " + said.strip().splitlines()[-1][:80]
    return Result(status, said, fault, time.process_time() - began)


def _place(error: BaseException) -> str:
    """The innermost line of the project's own code."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/transformer/" in frame.filename and "site-packages" not in frame.filename]
    frame = (own or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"


def _general(text: str) -> str:
    """A message without what differs from run to run."""
    return re.sub(r"-?\d[\d.e-]*|-?\b(nan|inf)\b", "N", re.sub(r"'[^']*'|\"[^\"]*\"|/\S+", "…", text))[:100]


# What a person should not have to read in a message: names of classes of readers, objects, places in libraries.
INTERNAL = re.compile(
    r"\b(?!TransformerError)[A-Z]\w+(Error|Exception|Invalid)\b|<class|object at 0x|site-packages|\bpyarrow\b|"
    r"Generating train split|NoneType|'builtin_function|__\w+__|load_dataset|DatasetGeneration|rust|src/|"
    r"unsupported operand|not supported between|must be real number|object is not|has no attribute"
)


def judge_message(result: Result) -> str:
    """What is wrong with what was said by a run that ended with an error; "": nothing."""
    if result.status not in (1, 2):
        return f"status {result.status}" if result.status not in (0, 130) else ""
    lines = [line for line in result.said.splitlines() if line.strip()]
    if not lines:
        return "an error without a word"
    if result.status == 1:
        said = "\n".join(lines)
        at = said.rfind("train.py: ")
        if at < 0:
            return "no sentence of train.py"
        said = said[at:]
        if found := INTERNAL.search(said):
            return f"a message of the inside: {found[0]}: {_general(said)[:60]}"
        if len(said) > 3000:
            return "a message of more than 3,000 characters"
    return ""


def judge_model(run: Run, arguments: dict[str, tuple[str, ...]], output: Path) -> str:
    """What is wrong with a run that ended with status 0; "": nothing."""
    import torch

    from transformer.hub import checkpoint
    from transformer.hub.text_sources import documents
    from transformer.reporting.training_facts import TrainingFacts

    if wrong := [f"--{name} {values[0]!r}" for name, values in arguments.items() if {*values} & {*_values(name)[1]}]:
        return f"accepted: {' '.join(sorted(wrong))}"
    if run.data and run.data.empty:
        return f"trained on nothing: {run.data.kind}"
    if "init-from" in arguments:
        given = {name for name, values in arguments.items() if values}  # --whole-tokens without a value is the default
        ignored = sorted(_names(of_initial_model=True) & given - {"stream"})
        if ignored:
            return f"no effect beside --init-from: {' '.join(ignored)}"
    try:
        model, tokenizer = checkpoint.load(output)
        facts = TrainingFacts.read(output)
        logits = model(torch.tensor([tokenizer.encode_prompt("The river")[: min(8, model.config.context_length)]]))
    except Exception as error:
        return f"the model does not open: {type(error).__name__}: {_general(str(error))}"
    if not all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values()):
        return "weights are not finite"
    if not bool(logits.isfinite().all()):
        return "scores are not finite"
    if "max-steps" in arguments and facts.steps > int(arguments["max-steps"][0]) and not run.twice:
        return f"{facts.steps} steps, more than --max-steps"
    for name in ("d-model", "n-layers", "n-heads", "context-length", "n-kv-heads", "d-feed-forward"):
        value = getattr(model.config, name.replace("-", "_"))
        if name in arguments and "init-from" not in arguments and value != int(arguments[name][0]):
            return f"the model has not the {name} that was given"
    metrics = output / "metrics.jsonl"
    for line in metrics.read_text().splitlines() if metrics.exists() else ():
        if any(isinstance(value, float) and not math.isfinite(value) for value in json.loads(line).values()):
            return f"a number that is none in metrics.jsonl: {_general(line)}"
    if run.data and run.data.documents is not None and str(run.data.path) == arguments["data"][0]:
        found = "".join(document.text for document in documents(arguments["data"][0]))
        if _letters(found) != _letters("".join(run.data.documents)):
            return f"other text than in the file: {run.data.kind}"
    return ""


def _letters(text: str) -> str:
    return "".join(text.split())


def judge(run: Run) -> Result:
    """Make the run in a copy of the folder's state, and judge it."""
    from train import main

    before = _sums()
    arguments = {group[0].removeprefix("--"): group[1:] for group in run.groups}
    output = Path((arguments.get("output") or ("output",))[0])
    result = attempt(lambda: main(list(sum(run.groups, ()))))
    result.fault = result.fault or judge_message(result)
    if result.status == 0 and not result.fault and "--help" not in sum(run.groups, ()):
        result.fault = judge_model(run, arguments, output)
    certain = run.data is not None and run.data.certain and str(run.data.path) == (arguments.get("data") or ("",))[0]
    # Another option may be what is wrong: a file that is refused is named in the error.
    # Another column may not be there, and a tiny text is a stub that cleaning leaves out.
    certain = certain and not {"text-column", "clean"} & arguments.keys()
    refused = certain and not result.fault and result.status == 1 and run.data.path.name in result.said
    if refused and not re.search(r"too little|has no split|validation|config|wikipedia|cannot be written", result.said):
        result.fault = f"a right file is refused: {run.data.kind}: {_general(result.said[-200:])}"
    if run.twice is not None and not result.fault:
        again = attempt(lambda: main(list(sum(run.groups + run.twice, ()))))
        result.fault = again.fault or judge_message(again)
        result.said += "\n--- again ---\n" + again.said
        result.status = again.status
    if not result.fault and (changed := [name for name, sum_ in _sums().items() if before.get(name, sum_) != sum_]):
        result.fault = f"input files changed: {changed}"
    if not result.fault and (gone := before.keys() - _sums().keys()):
        result.fault = f"input files are gone: {sorted(gone)[:3]}"
    return result


def _sums() -> dict[str, str]:
    """The checksums of the files of a run that are not its output."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in Path().rglob("*")
        if path.is_file() and path.parts[0] not in ("out", "output")
    }


# ---- Cog's entry points ----


def draw_input(draw: random.Random, schema: dict[str, Any], beyond: list[str], name: str) -> Any:
    """A value of an input, as JSON brings it: within the schema's bounds, or beyond them (noted in `beyond`)."""
    if schema.get("nullable") and draw.random() < 0.3:
        return None
    kind = schema.get("type", "string")
    least, most = schema.get("minimum", 0), schema.get("maximum", 10**6)
    if draw.random() < 0.07:
        beyond.append(name)
        return draw.choice(
            {"boolean": (None,), "string": ("\ud800", "\0")}.get(kind, (-(2**70), 2**70, 1e300, -1e-300))
        )
    if kind == "integer":
        value = draw.choice((least, min(most, least + 1), draw.randint(least, most), most))
        return float(value) if draw.random() < 0.1 else value
    if kind == "number":
        return draw.choice((least, most, draw.uniform(least, min(most, 10.0)), math.ceil(least)))
    if kind == "boolean":
        return draw.random() < 0.3
    if "enum" in schema:
        return draw.choice(schema["enum"])
    return draw.choice(("", fuzz_files.text(draw), "a" * 3000, ",", "\n", " ,, ", "[", "\u0000", "{{ x }}", "e,é"))


def predict_once(draw: random.Random, models: Path, schema: dict[str, Any]) -> tuple[str, Result]:
    """A prediction by Cog's Predictor."""
    predictor = _predictor(str(models / "modern"))
    beyond: list[str] = []
    inputs = {name: draw_input(draw, of, beyond, name) for name, of in schema.items()}
    inputs["max_tokens"] = draw.choice((1, 5, 40, 40.0))
    inputs["min_tokens"] = min(inputs["min_tokens"], inputs["max_tokens"])
    texts: list[str] = []

    def call() -> None:
        from transformer.errors import TransformerError

        try:
            texts.append("".join(predictor.predict(**inputs)))
        except TransformerError as error:
            alone = inputs["enable_thinking"] is not None and not inputs["chat"] and "set chat too" in str(error)
            rounded = (inputs["seed"] or 0) >= 2**63 and "seed must be" in str(error)  # 2^63 - 1 as a float
            chosen = "template option" in str(error) or "template_options" in str(error)  # drawn at random
            if not (beyond or alone or rounded or chosen) and "chat template" not in str(error):
                raise AssertionError(f"refused within the bounds: {error}") from error

    result = attempt(call)
    if not result.fault and texts and inputs["seed"] is not None:
        call()
        if texts[0] != texts[-1]:
            result.fault = "the same seed gives another text"
    return f"Predictor.predict(**{inputs!r})", result


@functools.cache
def _predictor(model: str) -> Any:
    from predict import Predictor

    predictor = Predictor()
    predictor.setup(model)
    predictor.record_metric = lambda *_: None  # there is no server to keep it
    return predictor


def train_once(draw: random.Random, models: Path, schema: dict[str, Any]) -> tuple[str, Result]:
    """A training by Cog's train."""
    import train
    import transformer.cli

    transformer.cli.DEFAULT_MODEL = str(models / "modern")
    beyond: list[str] = []
    inputs = {name: draw_input(draw, of, beyond, name) for name, of in schema.items() if name != "hub_token"}
    data = draw.choice((fuzz_files.good, fuzz_files.make))(draw, Path())
    small = dict(max_steps=1, context_length=16, d_model=16, n_layers=1, n_heads=2, vocab_size=300)
    kept = set(draw.sample(sorted(small), draw.choice((0, 0, 1))))
    inputs |= {name: value for name, value in small.items() if name not in kept or name in ("max_steps", "n_layers")}
    inputs |= dict(train_data=data.path, train_batch_size=2, gradient_accumulation_steps=1, hub_token=None)
    inputs["hub_model_id"] = draw.choice((None, None, None, "", "a/b", "x y"))
    inputs["seed"] = inputs["seed"] if isinstance(inputs["seed"], int | float) else 0
    if "preflight" in inputs and draw.random() < 0.8:
        inputs["preflight"] = "off"

    def call() -> None:
        from transformer.errors import TransformerError

        try:
            archive = train.train(**inputs).weights
        except TransformerError as error:
            if found := INTERNAL.search(str(error)):
                raise AssertionError(f"a message of the inside: {found[0]}: {error}") from error
            return
        shutil.rmtree(Path(archive).parent)

    return f"train(**{inputs!r})  # {data.kind}", attempt(call, 2 * SECONDS)


# ---- models and tokenizers to start from ----


def make_models(folder: Path) -> None:
    """Tiny models of each preset, and what looks like a model or a tokenizer and is none."""
    import torch
    from models import tiny_model_directory

    from transformer.hub import checkpoint
    from transformer.hub.resolve import pack

    for preset in ("modern", "paper", "gpt2", "blog"):
        tiny_model_directory(folder / preset, preset, d_model=16, n_layers=1, n_heads=2, context_length=32)
    pack(folder / "modern", folder / "modern.tar")
    _, tokenizer = checkpoint.load(folder / "modern")
    from transformer.model import ModelConfig, Transformer

    config = ModelConfig.preset("modern", vocab_size=280, d_model=16, n_layers=1, n_heads=2, context_length=32)
    checkpoint.save(Transformer(config), tokenizer, folder / "small-embedding")
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnop", "the", "##e"])
    )
    (bad := folder / "bad").mkdir()
    for name, content in {
        "binary": os.urandom(100),
        "empty": b"",
        "list.json": b"[]",
        "object.json": b"{}",
        "text.txt": b"Only a text.\n",
        "cut.tar": (folder / "modern.tar").read_bytes()[:2000],
        "config.yaml": b"a: 1",
    }.items():
        (bad / name).write_bytes(content)
    (bad / "folder").mkdir()

    def damaged(name: str, file: str, content: bytes | None) -> None:
        shutil.copytree(folder / "modern", bad / name)
        (bad / name / file).unlink()
        if content is not None:
            (bad / name / file).write_bytes(content)

    configured = json.loads((folder / "modern" / "config.json").read_text())
    damaged("no-config", "config.json", None)
    damaged("no-weights", "model.safetensors", None)
    damaged("no-tokenizer", "tokenizer.json", None)
    damaged("torn-weights", "model.safetensors", (folder / "modern" / "model.safetensors").read_bytes()[:-100])
    damaged("list-config", "config.json", b"[1]")
    damaged("odd-config", "config.json", json.dumps({**configured, "hidden_size": "x"}).encode())
    damaged("other-size", "config.json", json.dumps({**configured, "hidden_size": 32}).encode())
    damaged("unknown", "config.json", json.dumps({**configured, "model_type": "unknown"}).encode())
    damaged("odd-tokenizer", "tokenizer.json", b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}')
    damaged("odd-settings", "tokenizer_config.json", b'{"eos_token": 7, "pad_token": [], "chat_template": {"a": 1}}')
    broken, _ = checkpoint.load(folder / "modern")
    with torch.no_grad():
        broken.token_embedding.weight[3] = math.nan
    checkpoint.save(broken, tokenizer, bad / "nan-weight")


# ---- the whole ----


@contextlib.contextmanager
def sandbox() -> Iterator[Path]:
    """A new working directory."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)


def once(seed: str, n: int, models: Path, minimise: bool = True) -> tuple[str, Result]:
    """Run number n: its command, and how it ended. The command of a finding is reduced to what it needs."""
    draw = random.Random(f"{seed}/{n}")
    kind = draw.random()
    with sandbox():
        if kind < 0.08 and seed != "each":
            return predict_once(draw, models, _schema("Input"))
        if kind < 0.12 and seed != "each":
            return train_once(draw, models, _schema("TrainingInput"))
    with sandbox():
        run = draw_run(seed, n, models)
        result = judge(run)
    if not result.fault or not minimise or result.status == "hang":
        return run.command(), result
    return reduce(seed, n, models, run, result)


def reduce(seed: str, n: int, models: Path, run: Run, result: Result) -> tuple[str, Result]:
    """The run without the groups of arguments that its fault does not need."""
    at = 0
    while at < len(run.groups):
        fewer = run.groups[:at] + run.groups[at + 1 :]
        small = run.groups[at][0].removeprefix("--") in {*TINY, "preflight", "output"}
        with sandbox():
            tried = draw_run(seed, n, models)
            tried.groups = fewer
            fault = "" if small else judge(tried).fault
        if fault == result.fault:
            run.groups = fewer
        else:
            at += 1
    kind = f"  # {run.data.kind}" if run.data else ""
    return run.command() + kind, result


@functools.cache
def _schema(name: str) -> dict[str, Any]:
    """The inputs in Cog's schema, by name. name: "Input" of a prediction, or "TrainingInput"."""
    from tools.cog_schema import openapi_schema

    schemas = openapi_schema(Path(__file__).parents[1], "predict.py:Predictor", "train.py:train")["components"][
        "schemas"
    ]
    found = {}
    for key, value in schemas[name]["properties"].items():
        reference = (value.get("allOf") or [{}])[0].get("$ref", "").rpartition("/")[2]
        found[key] = value | schemas.get(reference, {})
    return found


def work(seed: str, numbers: range, models: str, at: Any, found: Any) -> None:
    """Make runs in this process; `at` is the number of the one in progress."""
    prepare()
    if not Path(models).exists():
        make_models(Path(models))
    soft = resource.getrlimit(resource.RLIMIT_AS)[1]
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, soft))
    for n in numbers:
        at.value = n
        command, result = once(seed, n, Path(models))
        found.send((n, command, result.status, result.fault, result.said[-1500:], result.seconds))
    at.value = -1


def prepare() -> None:
    """Quiet libraries without a network, and one thread."""
    import torch

    torch.set_num_threads(1)
    logging.getLogger().addHandler(logging.NullHandler())
    logging.getLogger().setLevel(logging.ERROR)
    known_options()
    from transformer.reporting import card_samples

    card_samples.MAX_TOKENS = 4  # the samples on the card are most of what a tiny training takes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", default="0", help='of random runs; "each": every value of every option, once')
    parser.add_argument("--first", type=int, default=0, help="number of the first run")
    parser.add_argument("--only", type=int, help="make this one run alone, and show what it says")
    parser.add_argument("--findings", help="also write findings to this file, as JSON lines, as they come")
    options = parser.parse_args()
    quiet = dict(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
    os.environ.update(quiet)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        os.environ.pop(name, None)
    with tempfile.TemporaryDirectory(prefix="fuzzing-") as folder:
        os.environ.update(XDG_CACHE_HOME=f"{folder}/cache", HF_HOME=f"{folder}/hub", HOME=folder, TMPDIR=folder)
        tempfile.tempdir = folder
        models = Path(folder, "models")
        if options.only is not None:
            prepare()
            make_models(models)
            command, result = once(options.seed, options.only, models)
            print(f"{command}\n\n{result.said}\n")
            print(f"status {result.status}, {result.seconds:.1f} s: {result.fault or 'right'}")
            return int(bool(result.fault))
        return fuzz(options, models)


def fuzz(options: argparse.Namespace, models: Path) -> int:
    """Many runs, in worker processes one after the other; a worker that dies is a finding."""
    context = multiprocessing.get_context("spawn")
    findings: dict[str, list[tuple[int, str, str]]] = {}
    statuses: dict[str, int] = {}
    n, end = options.first, options.first + options.runs
    while n < end:
        at = context.Value("i", n)
        receiver, sender = context.Pipe(duplex=False)
        numbers = range(n, min(end, n + RUNS_OF_A_WORKER))
        worker = context.Process(target=work, args=(options.seed, numbers, str(models), at, sender))
        worker.start()
        sender.close()
        done = []
        with contextlib.suppress(EOFError):
            while True:
                done.append(receiver.recv())
                number, command, status, fault, said, _ = done[-1]
                statuses[str(status)] = statuses.get(str(status), 0) + 1
                if fault:
                    _note(findings, options, fault, number, command, said)
        worker.join()
        if at.value < 0:
            n = numbers.stop
        else:
            if not done and worker.exitcode == 1:
                return 1  # it could not begin, and has said why
            with sandbox():
                command = draw_run(options.seed, at.value, models).command()
            _note(findings, options, f"the process died ({worker.exitcode})", at.value, command, "")
            n = at.value + 1
    count = sum(map(len, findings.values()))
    print(f"{options.runs} runs, by status: {statuses}; {count} findings of {len(findings)} kinds")
    for fault, runs in sorted(findings.items(), key=lambda item: -len(item[1])):
        number, command, _ = min(runs, key=lambda run: len(run[1]))
        print(f"\n{len(runs)} × {fault}\n    --seed {options.seed} --only {number}: {command}")
    return int(bool(findings))


def _note(findings: dict, options: argparse.Namespace, fault: str, n: int, command: str, said: str) -> None:
    findings.setdefault(fault, []).append((n, command, said))
    if options.findings:
        with open(options.findings, "a") as file:
            file.write(json.dumps({"n": n, "fault": fault, "command": command, "said": said}) + "\n")


if __name__ == "__main__":
    sys.exit(main())
