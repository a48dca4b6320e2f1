"""Tokens per second of generation, ours beside llama.cpp, CTranslate2 and transformers on the same weights.

python -m benchmarks.decoding                      # one text; 6 layers of width 512, GPT-2's vocabulary
python -m benchmarks.decoding --batch 8 32         # several texts side by side
python -m benchmarks.decoding --prompt 512 --new 1 # reading a prompt
python -m benchmarks.decoding --model weights      # the embedded model
python -m benchmarks.decoding --busy 2             # beside two processes that compute, on a machine of two cores
python -m benchmarks.decoding --shape smollm2-135m # or qwen3-0.6b, llama-3.2-1b: beside llama.cpp, in bf16 and int8

Greedy, on random weights unless --model is given. Every measurement is a process of its own; contenders take turns, so
that noise hits all of them alike, and each round measures how fast memory is read. tokens/s counts new tokens of all
texts after the first; ms to the first token is the time of a run that makes one, which --new 1 compares in place of
tokens/s. s to open is the time from the files to a model that can answer; GB to open is the peak of the process until
then, and GB in use the peak after it. With --shape there is also the time to the first token after 512 tokens.

With --busy N, N processes that only compute run beside every contender, at the benchmark's own priority, from its start
to its end; the speed of memory is measured without them. Runs then vary so much that tokens/s is taken from whole ones:
all new tokens over all time, that of reading the prompt included.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import SUPPRESS, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

import torch

from benchmarks.peers import CONTENDERS, open_contender
from benchmarks.picture import draw_bars
from benchmarks.shapes import CONTEXT, SHAPES, write_shape
from transformer.device import describe
from transformer.hub import checkpoint
from transformer.model import ModelConfig, Transformer

LONG_PROMPT = 512
LONG_COLUMN = f" ms after {LONG_PROMPT} tokens |"
STATUS = Path("/proc/self/status")
SIZES = {"d_model": 512, "n_layers": 6, "n_heads": 8, "d_feed_forward": 2048, "vocab_size": 50257}
COMPUTING = """
import os, sys
while os.getppid() == int(sys.argv[1]):  # a benchmark that was killed leaves none behind
    sum(range(10**5))
"""
BYTES = {"fp32": 4, "bf16": 2, "int8": 1}


def busy_process() -> subprocess.Popen:
    """A process that computes until it is stopped or this one has ended, however early that is."""
    return subprocess.Popen([sys.executable, "-I", "-S", "-c", COMPUTING, str(os.getpid())])


def read_options(arguments: list[str] | None = None) -> Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1], metavar="N")
    for name, default in {"prompt": 32, "new": 128, "rounds": 3, "runs": 3, "threads": 2, "busy": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help="default: %(default)s")
    parser.add_argument("--preset", choices=["gpt2", "modern"], help="of the random weights; default: gpt2")
    for name in (*SIZES, "n_kv_heads"):
        default = SIZES.get(name, "the preset's")
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=f"default: {default}")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="of random weights: that of a published model")
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="contenders with this in their name")
    parser.add_argument("--model", help="a model directory; its GGUF files and the like are written elsewhere")
    parser.add_argument("--picture", metavar="SVG", help="draw the tokens per second there")
    parser.add_argument("--child", metavar="JSON", help=SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        return options
    if options.model and (options.preset or sizes_of(options)):
        parser.error("--preset and sizes are of random weights; leave them out, or leave out --model.")
    if options.shape and (options.model or options.preset or sizes_of(options)):
        parser.error("--shape says the sizes of random weights; leave out --model, --preset and sizes.")
    if options.busy < 0:
        parser.error("--busy is a number of processes, 0 or more.")
    if options.prompt + options.new > CONTEXT:
        parser.error(f"--prompt and --new are together at most {CONTEXT} tokens.")
    return options


def sizes_of(options: Namespace) -> dict[str, int]:
    """Those that were given."""
    return {name: size for name in (*SIZES, "n_kv_heads") if (size := getattr(options, name)) is not None}


def prepare(options: Namespace, folder: Path) -> None:
    """The model directory that all contenders read."""
    torch.manual_seed(0)
    if options.shape:
        write_shape(options.shape, folder)
        return
    if options.model:
        model = checkpoint.load_model(options.model)
    else:
        sizes = {**SIZES, **sizes_of(options)}
        model = Transformer(ModelConfig.preset(options.preset or "gpt2", context_length=CONTEXT, dropout=0.0, **sizes))
    checkpoint.save(model, None, folder)


def measure(task: Namespace) -> dict[str, Any]:
    """In this process: one contender, or without one the speed of memory."""
    torch.set_num_threads(task.threads)
    if task.name is None:
        block = torch.ones(2**28 // 4)
        times = [clocked(block.sum) for _ in range(8)]
        return {"gigabytes_per_second": block.numel() * 4 / 1e9 / min(times)}
    known = min(8000, json.loads((Path(task.folder) / "config.json").read_text())["vocab_size"] - 1)
    prompts, longer = (
        [[(7 * i + 3 * text) % known + 1 for i in range(length)] for text in range(task.size)]
        for length in (task.prompt, LONG_PROMPT)
    )
    try:
        begin = time.perf_counter()
        run = open_contender(task.name, task.precision, Path(task.folder))
        opened, peak = time.perf_counter() - begin, peak_memory()
        forget_peak()
        run(prompts, 4)
    except (ImportError, NotImplementedError) as error:
        return {"missing": str(error)}
    if not task.measured:
        return {}
    first = statistics.median(clocked(lambda: run(prompts, 1)) for _ in range(task.runs))
    if task.new > 1:
        times = [clocked(lambda: run(prompts, task.new)) for _ in range(task.runs)]
        if task.busy:
            speed = task.size * task.new / statistics.mean(times)
        else:
            speed = task.size * (task.new - 1) / (statistics.median(times) - first)
    else:
        speed = task.size * task.prompt / first  # tokens of prompts that are read in a second
    result = {"speed": speed, "first": 1000 * first, "opened": opened, "peak": peak}
    if task.shape:
        result["first_long"] = 1000 * statistics.median(clocked(lambda: run(longer, 1)) for _ in range(task.runs))
    return result | {"memory": peak_memory()}


def peak_memory() -> float:
    """GB that this process had at most, since the last `forget_peak`."""
    if STATUS.exists():
        peak = next(line.split()[1] for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak) * 1024 / 1e9
    return getrusage(RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def forget_peak() -> None:
    """Where the system lets a process do that: elsewhere the peak stays that of opening the model."""
    with suppress(OSError):
        STATUS.with_name("clear_refs").write_text("5")


def clocked(function: Any) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def in_a_process(
    options: Namespace, folder: str, name: str | None = None, precision: str = "", size: int = 1, measured: bool = True
) -> dict:
    what = {"folder": folder, "name": name, "precision": precision, "size": size, "measured": measured}
    task = json.dumps({**vars(options), **what})
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.decoding", "--child", task]
    with computing(options.busy if name and measured else 0):
        output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


@contextmanager
def computing(count: int) -> Iterator[list[subprocess.Popen]]:
    """``count`` processes that only compute."""
    processes = [busy_process() for _ in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main() -> None:
    options = read_options()
    if options.child:
        print(json.dumps(measure(Namespace(**json.loads(options.child)))))
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare(options, Path(folder))
        keys = [(*c, size) for size in options.batch for c in sorted(CONTENDERS, key=lambda c: BYTES[c[1]])]
        if options.shape:
            keys = [key for key in keys if key[0] in ("ours", "llama.cpp") and key[1] in ("int8", "bf16")]
        keys = [key for key in keys if any(word in " ".join(key[:2]) for word in options.only)]
        results: dict[Any, list[dict]] = {key: [] for key in keys}
        memory = []
        for number in range(options.rounds + 1):  # the round before the first writes the files of the peers
            memory.append(in_a_process(options, folder)["gigabytes_per_second"])
            for key, runs in list(results.items()):
                result = in_a_process(options, folder, *key, measured=number > 0)
                if "missing" in result:
                    print(f"{' '.join(key[:2])} at {key[2]} is left out: {result['missing']}", file=sys.stderr)
                    del results[key]
                elif number:
                    runs.append(result)
        parameters = checkpoint.load_model(folder, keep_half=True).parameter_count()
    report(options, results, max(memory), parameters)
    if options.picture:
        draw(options.picture, results)


def report(options: Namespace, results: dict, bandwidth: float, parameters: int) -> None:
    packages = [name for name in ("torch", "transformers", "ctranslate2", "llama-cpp-python") if installed(name)]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    print(time.strftime("%Y-%m-%d"), describe(torch.device("cpu")), versions, sep=", ")
    print(f"`python -m benchmarks.decoding {subprocess.list2cmdline(sys.argv[1:])}`", end="; ")
    print(f"memory is read at {bandwidth:.1f} GB/s", end="; " if options.busy else "\n")
    if options.busy:
        print(f"beside each contender, {options.busy} processes that compute")
    limits = {name: bandwidth * 1e9 / (parameters * size) for name, size in BYTES.items()}
    what = "tokens" if options.new > 1 else "tokens of prompts"
    print(
        f"\n| | texts | {what}/s | slowest-fastest | ours ÷ it | of the memory limit | ms to first token |"
        f"{LONG_COLUMN if options.shape else ''} s to open | GB to open | GB in use |"
    )
    print(f"|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|{'--:|' if options.shape else ''}")
    for (name, precision, size), runs in results.items():
        speeds = [run["speed"] for run in runs]
        ours = results.get(("ours", precision, size), [])
        ratio = statistics.median([a["speed"] / b["speed"] for a, b in zip(ours, runs, strict=False)] or [float("nan")])
        names = ("first", "opened", "peak", "memory", *(["first_long"] if options.shape else []))
        medians = {name: statistics.median(run[name] for run in runs) for name in names}
        longer = f" {medians['first_long']:,.0f} |" if options.shape else ""
        one_by_one = size == 1 and options.new > 1
        share = f"{statistics.median(speeds) / limits[precision]:.0%}" if one_by_one else ""
        print(
            f"| {name} {precision} | {size} | {statistics.median(speeds):,.0f} | "
            f"{min(speeds):,.0f}-{max(speeds):,.0f} | {ratio:.2f} | {share} | {medians['first']:,.1f} |{longer} "
            f"{medians['opened']:.1f} | {medians['peak']:.2f} | {medians['memory']:.2f} |"
        )


def draw(path: str, results: dict) -> None:
    groups: dict[str, dict[str, float]] = {}
    for (name, precision, size), runs in results.items():
        group = groups.setdefault(precision if size == 1 else f"{precision}, {size} texts", {})
        group[name] = statistics.median(run["speed"] for run in runs)
    draw_bars(path, f"Speed on {describe(torch.device('cpu'))}", "tokens per second", groups)


def installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
