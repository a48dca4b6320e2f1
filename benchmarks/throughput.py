"""Tokens per second of whole training steps, ours beside those of other libraries at the same shape.

python -m benchmarks.throughput                            # batches of 16 windows with 128 tokens of context
python -m benchmarks.throughput --batch 4 --context 512

A step is forward, loss, backward, clipping, the optimizer's update and zeroing of the gradients, without dropout.
Every measurement is a process of its own, and contenders take turns, so that noise hits all of them alike. MFU counts
the operations of our model for every contender, as a part of what matrix products reach here in its precision.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from argparse import SUPPRESS, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from importlib import metadata, util
from resource import RUSAGE_SELF, getrusage
from typing import Any

import torch
from torch import Tensor, nn

from transformer.data.batches import Batch
from transformer.device import describe
from transformer.model import ModelConfig, Transformer
from transformer.training.distributed import Engine
from transformer.training.flops import flops_per_token, measured_peak
from transformer.training.step import TrainStep
from transformer.training.train_config import TrainConfig

OURS, GPT2, X_TRANSFORMERS = "ours", "transformers GPT-2", "x-transformers"
VARIANTS = ("fp32", "bf16", "bf16 compile")
LEARNING_RATE = 3e-4
WARM_UP = 3  # steps; the first one compiles, and makes the optimizer's state
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**36), "MALLOC_TOP_PAD_": str(2**28)}
Run = dict[str, Any]  # what was measured
Contender = tuple[int, Callable[[], object]]  # its parameters, and what makes one step


def read_options() -> Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    numbers = {"batch": 16, "context": 128, "layers": 6, "width": 512, "heads": 8, "vocabulary": 50257}
    numbers |= {"threads": 2, "rounds": 3, "seconds": 20}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help="default: %(default)s")
    parser.add_argument("--steps", type=int, metavar="N", help="length of a measurement in place of --seconds")
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="contenders with this in their name")
    parser.add_argument("--peers-fused", action="store_true", help="the fused AdamW, which ours has, for the peers too")
    malloc = (
        "who keeps freed memory, by settings of glibc's malloc, instead of giving it back: the logits of a batch are "
        "400 MB, and taken again they cost a page fault for every 4 KiB. 'ours' is what train.py does by itself "
        "(%(default)s)"
    )
    parser.add_argument("--malloc", choices=("none", "ours", "all"), default="ours", help=malloc)
    parser.add_argument("--child", metavar="JSON", help=SUPPRESS)  # the task of one measurement
    return parser.parse_args()


def our_model(task: Namespace) -> Transformer:
    sizes = {"d_model": task.width, "n_layers": task.layers, "n_heads": task.heads, "vocab_size": task.vocabulary}
    return Transformer(ModelConfig.preset("gpt2", context_length=task.context, dropout=0.0, **sizes))


def draw(task: Namespace) -> Tensor:
    """(batch, context) tokens. Always new ones: a batch known by heart has tiny gradients, and denormals are slow."""
    return torch.randint(task.vocabulary, (task.batch, task.context))


def ours(task: Namespace) -> Contender:
    """The step of train.py itself. Made up are the batches, and the tokenizer, of which it reads the size alone."""
    precision, _, compiled = task.variant.partition(" ")
    config = TrainConfig.from_options(data="", learning_rate=LEARNING_RATE, precision=precision, compile=bool(compiled))
    model, engine, number = our_model(task), Engine("cpu"), itertools.count(1)
    source: Any = Namespace(next=lambda: Batch(*(draw(task) for _ in range(3))), describe_last=str)
    tokenizer: Any = Namespace(vocab_size=task.vocabulary)
    train_step = TrainStep(model, source, tokenizer, config, engine)
    return model.parameter_count(), lambda: train_step.run(next(number))


def gpt2(task: Namespace) -> Contender:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": task.vocabulary, "n_positions": task.context, "n_embd": task.width}
    without: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "use_cache": False}
    # Without loss_type it logs a warning in every step, at which torch.compile breaks its graph in two.
    config = GPT2Config(n_layer=task.layers, n_head=task.heads, loss_type="ForCausalLM", **sizes, **without)
    model = GPT2LMHeadModel(config)
    return peer(task, model, lambda tokens: model(input_ids=tokens, labels=tokens).loss)


def x_transformers(task: Namespace) -> Contender:
    from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

    sizes = {"dim": task.width, "depth": task.layers, "heads": task.heads, "attn_dim_head": task.width // task.heads}
    text = {"num_tokens": task.vocabulary, "max_seq_len": task.context, "tie_embedding": True}
    model = AutoregressiveWrapper(TransformerWrapper(**text, attn_layers=Decoder(**sizes, attn_flash=True)))
    return peer(task, model, model)


def peer(task: Namespace, model: nn.Module, loss_of: Callable[[Tensor], Tensor]) -> Contender:
    """The step that is usual in PyTorch, around a model of another library."""
    if task.variant.endswith("compile"):
        model.compile(dynamic=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=task.peers_fused or None)

    def step() -> None:
        tokens = draw(task)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=task.variant.startswith("bf16")):
            loss = loss_of(tokens)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return sum(parameter.numel() for parameter in model.parameters()), step


CONTENDERS = {OURS: ours, GPT2: gpt2, X_TRANSFORMERS: x_transformers}


def measure(task: Namespace) -> Run:
    """What one contender does, or without one what the machine can do. In this process."""
    torch.set_num_threads(task.threads)
    if task.library is None:
        cpu, flops = torch.device("cpu"), flops_per_token(our_model(task), task.context)
        return {"flops": flops, "machine": describe(cpu), **{p: measured_peak(cpu, p) for p in ("fp32", "bf16")}}
    parameters, step = CONTENDERS[task.library](task)
    for _ in range(WARM_UP):
        step()
    steps, before, begin = 0, getrusage(RUSAGE_SELF), time.perf_counter()
    while (steps < task.steps) if task.steps else (time.perf_counter() - begin < task.seconds):
        step()
        steps += 1
    seconds, after = time.perf_counter() - begin, getrusage(RUSAGE_SELF)
    speed, faults = steps * task.batch * task.context / seconds, (after.ru_minflt - before.ru_minflt) / steps
    return {"parameters": parameters, "speed": speed, "faults": faults, "memory": after.ru_maxrss * 1024 / 1e9}


def in_a_process(options: Namespace, library: str | None = None, variant: str = "") -> Run:
    malloc = MALLOC if options.malloc == "all" or (options.malloc, library) == ("ours", OURS) else {}
    task = json.dumps({**vars(options), "library": library, "variant": variant})
    command = [sys.executable, "-m", "benchmarks.throughput", "--child", task]
    output = subprocess.run(command, env={**os.environ, **malloc}, stdout=subprocess.PIPE, check=True).stdout
    return json.loads(output.splitlines()[-1])


def main() -> None:
    options, load = read_options(), os.getloadavg()[0]
    if options.child:
        print(json.dumps(measure(Namespace(**json.loads(options.child)))))
        return
    if not util.find_spec("x_transformers"):
        del CONTENDERS[X_TRANSFORMERS]
        print("x-transformers is left out: it is not installed (pip install x-transformers).", file=sys.stderr)
    # Of one variant every library, then of the next: what is compared runs side by side.
    pairs = [(library, variant) for variant in VARIANTS for library in CONTENDERS]
    pairs = [pair for pair in pairs if any(word in " ".join(pair) for word in options.only)]
    machines, results = [], {pair: list[Run]() for pair in pairs}
    for _ in range(options.rounds):
        machines.append(in_a_process(options))
        for pair, runs in results.items():
            runs.append(in_a_process(options, *pair))
            print(f"{' '.join(pair)}: {runs[-1]['speed']:,.0f} tokens/s", file=sys.stderr)
    print_report(machines, results, load)


def print_report(machines: list[Run], results: dict[tuple[str, str], list[Run]], load: float) -> None:
    peaks = {precision: max(machine[precision] for machine in machines) for precision in ("fp32", "bf16")}
    packages = {"torch", "transformers"} | {X_TRANSFORMERS}.intersection(library for library, _ in results)
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in sorted(packages))
    print(time.strftime("\n%Y-%m-%d"), machines[0]["machine"], f"load before it {load:.1f}", versions, sep=", ")
    print(f"`python -m benchmarks.throughput {subprocess.list2cmdline(sys.argv[1:])}`")
    print(", ".join(f"{precision} matrix products: {peak / 1e9:,.0f} GFLOP/s" for precision, peak in peaks.items()))
    columns = "M weights | tokens/s | slowest–fastest | ours ÷ it | MFU | page faults/step | GB"
    print(f"\n| contender | {columns} |\n|---{'|--:' * 7}|")
    for (library, variant), runs in results.items():
        speeds = [run["speed"] for run in runs]
        speed, faults, memory = (statistics.median(run[key] for run in runs) for key in ("speed", "faults", "memory"))
        # Round by round, so that what slows down a whole round slows down both.
        rounds = zip(results.get((OURS, variant), []), runs, strict=False)
        ratio = statistics.median([our["speed"] / run["speed"] for our, run in rounds] or [float("nan")])
        mfu = speed * machines[0]["flops"] / peaks[variant.split()[0]]
        print(
            f"| {library} {variant} | {runs[0]['parameters'] / 1e6:.1f} | {speed:,.0f} | "
            f"{min(speeds):,.0f}–{max(speeds):,.0f} | {ratio:.2f} | {mfu:.0%} | {faults:,.0f} | {memory:.1f} |"
        )


if __name__ == "__main__":
    main()
