"""Break the model, the loss, the batches, the step or the checkpoint by one line, and see what preflight says.

    python -m benchmarks.preflight_mutations [--only NAME ...] [--json]

Each mutation replaces one text in a copy of the package; the text has to occur exactly once in its file. The preflight
of a tiny run then runs with that copy, in a process of its own. It is named rightly if the first check that fails (or
warns, if none fails) is one of those that the mutation belongs to. "unchanged" lines are the same runs without a
mutation, of which none may fail.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import accelerate  # noqa: F401  # imported before the processes are forked, each of which needs it
import datasets
import tokenizers  # noqa: F401
import torch
import torch._dynamo  # what the first optimizer would import
import transformers.utils  # noqa: F401

PACKAGE = Path(__file__).parent.parent / "transformer"
BASE = dict(vocab_size=300, d_model=32, n_layers=2, n_heads=4, context_length=32, batch_size=8, precision="fp32")
# What single architectures of the Hub have beside the preset.
LOCAL = dict(architecture=dict(sliding_window=8, sliding_window_layers=(True, False), rope_local_theta=50.0))
NOPE = dict(architecture=dict(rope_layers=(True, False)))
REORDERED = dict(architecture=dict(norm_placement="reordered", joint_qk_norm=True))
SANDWICH = dict(architecture=dict(norm_placement="sandwich", activation="geglu", query_pre_attn_scalar=50))
BF16 = dict(precision="bf16", context_length=160, batch_size=4)  # long enough for several blocks of attention


@dataclass(frozen=True)
class Mutation:
    """One line broken.

    file: within the package. old, new: the text and what replaces it. checks: by which it may be named. options: of the
    run, beside BASE. "architecture" among them: changes of the model's config.
    """

    name: str
    file: str
    old: str
    new: str
    checks: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)


def _model(name: str, file: str, old: str, new: str, *checks: str, **options: Any) -> Mutation:
    return Mutation(name, f"model/{file}.py", old, new, checks, options)


def _training(name: str, file: str, old: str, new: str, *checks: str, **options: Any) -> Mutation:
    return Mutation(name, f"training/{file}.py", old, new, checks, options)


def _batches(name: str, old: str, new: str, *checks: str, **options: Any) -> Mutation:
    return Mutation(name, "data/batches.py", old, new, checks, options)


MUTATIONS: tuple[Mutation, ...] = (
    # ---- attention ----
    _model(
        "no causal mask", "attention", "is_causal=mask is None and query.shape[2] > 1", "is_causal=False", "causality"
    ),
    _model(
        "bf16 attention: a block sees all of itself",
        "attention",
        "mask = causal_mask(stop - start, start - first, device=query.device, window=window)",
        "mask = causal_mask(stop - start, start - first, device=query.device, window=window) | True",
        "causality",
        **BF16,
    ),
    _model(
        "bf16 attention: blocks are masked as the first",
        "attention",
        "mask = causal_mask(stop - start, start - first, device=query.device, window=window)",
        "mask = causal_mask(stop, device=query.device)[: stop - start]",
        "causality",
        "attention",
        **BF16,
    ),
    _model("bf16 attention: no sqrt(d_k)", "attention", " / math.sqrt(query.shape[-1])", "", "attention", **BF16),
    _model(
        "no sqrt(d_k)",
        "attention",
        "            attn_mask=mask,\n",
        "            attn_mask=mask, scale=1.0,\n",
        "attention",
    ),
    _model(
        "mask is shifted by one",
        "attention",
        ".tril(diagonal=past)",
        ".tril(diagonal=past + 1)",
        "causality",
        "padding unseen",
        **BF16,
    ),
    _model(
        "documents see each other",
        "transformer",
        "mask = causal & (segment_ids_BT",
        "mask = causal | (segment_ids_BT",
        "causality",
        "across documents",
        separate_documents=True,
    ),
    _model(
        "padding is not masked",
        "attention",
        "return causal if attention_mask is None else causal & attention_mask[:, None, None, :]",
        "return causal if attention_mask is None else causal & (attention_mask | True)[:, None, None, :]",
        "padding unseen",
    ),
    _model(
        "the kernel forgets the mask",
        "attention",
        "            attn_mask=mask,\n            is_causal=mask is None and query.shape[2] > 1,\n",
        "            attn_mask=None,\n            is_causal=query.shape[2] > 1,\n",
        "padding unseen",
        "across documents",
    ),
    _model(
        "key-value heads in the wrong order",
        "attention",
        "key.repeat_interleave(group, dim=1)",
        "key.repeat(1, group, 1, 1)",
        "attention",
        **BF16,
    ),
    _model(
        "heads are joined in the wrong order",
        "attention",
        "heads.transpose(1, 2).flatten(2)",
        "heads.reshape(*heads.shape[:1], heads.shape[2], -1)",
        "causality",
        "attention",
    ),
    _model("keys are not normalised", "attention", "self.key_norm(key.float()).type_as(value)", "key", "attention"),
    _model(
        "the sliding window is not applied",
        "attention",
        "return causal_attention(query, key, value, window)",
        "return causal_attention(query, key, value)",
        "attention",
        **LOCAL,
    ),
    _model(
        "the sliding window is a token too long",
        "attention",
        "causal.triu(diagonal=past - window + 1)",
        "causal.triu(diagonal=past - window)",
        "attention",
        **LOCAL,
    ),
    _model(
        "the sliding window is not applied between documents",
        "transformer",
        "layer_mask = mask if local_mask is None or not self.is_local[i] else local_mask",
        "layer_mask = mask",
        "attention",
        separate_documents=True,
        **LOCAL,
    ),
    _model(
        "decoding looks back beyond the sliding window",
        "transformer",
        "length = min(capacity, self.config.window_of(layer) or capacity)",
        "length = capacity",
        "cached decoding",
        **LOCAL,
    ),
    _model(
        "scores are not divided by the configured number",
        "attention",
        "query = query * self.query_scale",
        "pass",
        "attention",
        **SANDWICH,
    ),
    # ---- positions ----
    _model(
        "rotary: in a layer without it",
        "transformer",
        " if self.rotates[i] else None",
        "",
        "positions",
        **NOPE,
    ),
    _model(
        "rotary: the same base in every layer",
        "transformer",
        "layer_rotation = (local_rotation if self.is_local[i] else rotation)",
        "layer_rotation = rotation",
        "positions",
        **LOCAL,
    ),
    _model(
        "rotary: a sign",
        "positions",
        "torch.cat([-sine, sine]",
        "torch.cat([sine, -sine]",
        "positions",
    ),
    _model(
        "rotary: both signs the same",
        "positions",
        "torch.cat([-sine, sine]",
        "torch.cat([sine, sine]",
        "positions",
    ),
    _model(
        "rotary: queries alone",
        "attention",
        "apply_rope(query, rotation), apply_rope(key, rotation)",
        "apply_rope(query, rotation), key",
        "positions",
    ),
    _model(
        "positions are constant",
        "transformer",
        "return torch.arange(length, device=device)",
        "return torch.zeros(length, dtype=torch.long, device=device)",
        "positions",
    ),
    _model(
        "added positions are constant",
        "transformer",
        "return torch.arange(length, device=device)",
        "return torch.zeros(length, dtype=torch.long, device=device)",
        "positions",
        preset="gpt2",
    ),
    _model(
        "sine and cosine swapped",
        "positions",
        "torch.stack([angles.sin(), angles.cos()]",
        "torch.stack([angles.cos(), angles.sin()]",
        "positions",
        preset="paper",
    ),
    # ---- the rest of the network ----
    _model(
        "a dropped residual",
        "layers",
        "return x_BTD + self.dropout(self.feed_forward(",
        "return self.dropout(self.feed_forward(",
        "residuals and norms",
    ),
    _model(
        "a dropped residual, post-norm",
        "layers",
        "return self.feed_forward_norm(x_BTD + self.dropout(self.feed_forward(x_BTD)))",
        "return self.feed_forward_norm(self.dropout(self.feed_forward(x_BTD)))",
        "residuals and norms",
        preset="paper",
    ),
    _model(
        "no norm before the sub-layer",
        "layers",
        "self.attention(self.attention_norm(x_BTD), rotation",
        "self.attention(x_BTD, rotation",
        "residuals and norms",
    ),
    _model(
        "what is added is not normalised",
        "layers",
        "self.dropout(self.attention_norm(attended_BTD))",
        "self.dropout(attended_BTD)",
        "residuals and norms",
        **REORDERED,
    ),
    _model(
        "what is added is not normalised, sandwich",
        "layers",
        "self.dropout(self.feed_forward_output_norm(fed_BTD))",
        "self.dropout(fed_BTD)",
        "residuals and norms",
        **SANDWICH,
    ),
    _model(
        "queries are normalised head by head",
        "attention",
        "return super().forward(joined).unflatten(2, (x.shape[1], -1)).transpose(1, 2)",
        "return F.rms_norm(x, x.shape[-1:]) * self.weight.view(1, x.shape[1], 1, -1)",
        "attention",
        **REORDERED,
    ),
    _model(
        "another gate",
        "layers",
        '"geglu": partial(F.gelu, approximate="tanh")',
        '"geglu": F.silu',
        "feed-forward",
        **SANDWICH,
    ),
    _model(
        "the final norm does nothing",
        "transformer",
        "return self.final_norm(x_BTD)",
        "return x_BTD",
        "residuals and norms",
    ),
    _model(
        "embeddings are not scaled",
        "transformer",
        "x_BTD = x_BTD * math.sqrt(self.config.d_model)",
        "x_BTD = x_BTD * 1.0",
        "embeddings",
        preset="paper",
    ),
    _model(
        "no activation",
        "layers",
        "self.activation(self.up(x_BTD))",
        "self.up(x_BTD)",
        "feed-forward",
        preset="paper",
    ),
    _model(
        "dropout at evaluation",
        "layers",
        "if not self.training or self.p == 0 or",
        "if self.p == 0 or",
        "dropout",
        dropout=0.2,
    ),
    _model(
        "dropout never",
        "layers",
        "if not self.training or self.p == 0 or",
        "if True: return input\n        if",
        "dropout",
        dropout=0.2,
    ),
    _model(
        "weights drawn too large",
        "transformer",
        "module.weight.normal_(std=0.02)\n                else",
        "module.weight.normal_(std=2.0)\n                else",
        "loss at the beginning",
        "share of the residual",
        "gradients",
    ),
    _model(
        "embeddings drawn too large",
        "transformer",
        "self.token_embedding.weight.normal_(std=0.02 if pre",
        "self.token_embedding.weight.normal_(std=2.0 if pre",
        "loss at the beginning",
    ),
    _model(
        "tied weights come apart",
        "transformer",
        "self.head.weight = self.token_embedding.weight",
        "self.head.weight = nn.Parameter(self.token_embedding.weight.clone())",
        "tied weights",
    ),
    # ---- the loss ----
    _training("the loss is a mean", "loss", 'reduction="sum"', 'reduction="mean"', "what the loss counts"),
    _training(
        "padding counts in the loss",
        "loss",
        "targets.flatten(),",
        "targets.flatten().clamp(min=0),",
        "what the loss counts",
    ),
    _training(
        "targets shifted in the loss",
        "loss",
        "targets.flatten(),",
        "targets.flatten().roll(-1),",
        "what the loss counts",
    ),
    _training(
        "documents are not told apart",
        "loss",
        "segment_ids_BT=segment_ids",
        "segment_ids_BT=None",
        "across documents",
        separate_documents=True,
    ),
    # ---- batches ----
    _batches(
        "targets are the inputs",
        "self.stream.tokens[start + 1 : stop + 1]\n        if",
        "self.stream.tokens[start:stop]\n        if",
        "targets follow inputs",
        "rows in the text",
    ),
    _batches(
        "the last target overwritten",
        "return inputs, targets, segment_ids",
        "targets[-1] = self.pad_id; return inputs, targets, segment_ids",
        "rows in the text",
        "the same in every row",
    ),
    _batches(
        "padding is learned",
        "targets = np.full(self.length, IGNORE_INDEX, np.int64)",
        "targets = np.full(self.length, self.pad_id, np.int64)",
        "padding in the targets",
    ),
    _batches(
        "no shuffling",
        "np.random.default_rng([seed, epoch]).permutation(n_windows)",
        "np.arange(n_windows)",
        "shuffling",
    ),
    _batches(
        "the same batch at each step",
        "        self._taken += 1\n        return rows_of_rank",
        "        self._taken += 0\n        return rows_of_rank",
        "order of the batches",
    ),
    _batches(
        "the place in the text is not restored",
        '        self._taken = state_dict["batches"]',
        "        pass",
        "order of the batches",
    ),
    # ---- the step ----
    _training("no zero_grad", "step", "            optimizer.zero_grad()\n", "", "gradients between steps"),
    _training(
        "gradients of accumulation not divided",
        "step",
        "(self.engine.world_size / tokens)",
        "(self.engine.world_size / max(1, batch.n_targets))",
        "accumulated gradients",
    ),
    _training(
        "gradients divided twice",
        "step",
        "(self.engine.world_size / tokens)",
        "(self.engine.world_size / tokens / self.config.optimization.gradient_accumulation_steps)",
        "accumulated gradients",
    ),
    _training(
        "gradients not divided at all",
        "step",
        "(summed * (self.engine.world_size / tokens)).backward()",
        "summed.backward()",
        "accumulated gradients",
    ),
    _training(
        "only the last batch is learned",
        "step",
        "                summed = self.summed_loss(batch)\n",
        "                self.module.zero_grad(); summed = self.summed_loss(batch)\n",
        "accumulated gradients",
    ),
    _training(
        "the same batch is accumulated",
        "step",
        "summed = self.summed_loss(batch)",
        "summed = self.summed_loss(batches[0])",
        "accumulated gradients",
    ),
    _training(
        "no clipping",
        "step",
        "self.module.parameters(), self.config.optimization.max_grad_norm)",
        'self.module.parameters(), float("inf"))',
        "clipping",
    ),
    _training(
        "the optimizer makes no step",
        "step",
        "            optimizer.step()\n",
        "",
        "updates",
        "gradients between steps",
    ),
    _training(
        "steps are not seeded by their number",
        "step",
        "(self.config.run.seed, number, self.engine.rank)",
        "(np.random.randint(2**31),)",
        "dropout",
        "resuming",
        dropout=0.2,
    ),
    _training(
        "norms are not given to the optimizer",
        "optimizers",
        "[p for p in trained if p.dim() < 2]",
        "[p for p in trained if p.dim() < 1]",
        "updates",
    ),
    _training(
        "norms decay",
        "optimizers",
        "[p for p in trained if p.dim() < 2], rate, 0.0",
        "[p for p in trained if p.dim() < 2], rate, decay",
        "updates",
    ),
    _training(
        "uphill",
        "optimizers",
        "betas=(0.9, config.optimization.beta2), fused=True",
        "betas=(0.9, config.optimization.beta2), fused=True, maximize=True",
        "updates",
    ),
    _training(
        "the schedule does not reach the optimizer",
        "optimizers",
        'group["lr"] = fraction * group["initial_lr"]',
        "pass",
        "updates",
    ),
    # ---- evaluation ----
    _training("validation in training mode", "trainer", "        self.model.eval()\n", "", "validation", dropout=0.2),
    _training(
        "training goes on in evaluation mode",
        "trainer",
        "        self.model.train()\n        self.engine.reshard",
        "        self.engine.reshard",
        "validation",
        dropout=0.2,
    ),
    _training(
        "validation is a mean of means",
        "trainer",
        "counted += batch.n_targets",
        "counted += batch.targets.numel()",
        "validation",
    ),
    # ---- checkpoints ----
    _training(
        "optimizer state is not saved",
        "run_state",
        '                tensors[f"optimizer.{names[parameter]}.{key}"] = full_tensor(value)\n',
        "                pass\n",
        "resuming",
    ),
    _training(
        "weights are not restored",
        "run_state",
        'parameter.copy_(shard_like(remaining.pop(f"model.{name}"), parameter))',
        'remaining.pop(f"model.{name}")',
        "resuming",
    ),
    _training(
        "the place in the text is not taken from the checkpoint",
        "trainer",
        '        self.source.load_state_dict(found.facts["data"])\n',
        "",
        "resuming",
    ),
    _training("a run does not go on", "trainer", "        self._resume()\n", "", "resuming"),
    Mutation(
        "the saved model has another scale",
        "hub/checkpoint.py",
        "tensors = {name: tensor.contiguous()",
        "tensors = {name: 1.01 * tensor.contiguous()",
        ("resuming",),
    ),
)
UNCHANGED: tuple[dict[str, Any], ...] = (
    {},
    BF16,
    dict(separate_documents=True),
    dict(preset="gpt2", dropout=0.2),
    dict(preset="paper", dropout=0.2),
    dict(preset="blog", optimizer="muon", gradient_accumulation_steps=2),
    LOCAL,
    NOPE,
    REORDERED,
    SANDWICH,
)


@dataclass(frozen=True)
class Result:
    """named: the first check that fails, or warns if none fails. all: every one of them. seconds: of processor time."""

    name: str
    verdict: str
    named: str
    cause: str
    all: tuple[str, ...]
    rightly: bool
    seconds: float


def corpus(folder: Path) -> str:
    """A data set of sentences in a made-up language, of which no window stands twice."""
    chance = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    words = ["".join(chance.choices(syllables, k=3)) for _ in range(300)]
    for split, count in (("train", 70), ("validation", 10)):
        with (folder / f"{split}.jsonl").open("w") as file:
            for _ in range(count):
                lines = (" ".join(chance.choices(words, k=chance.randint(5, 14))) for _ in range(chance.randint(6, 12)))
                file.write(json.dumps({"text": ". ".join(line.capitalize() for line in lines)}) + "\n")
    return str(folder)


def mutated(folder: Path, mutation: Mutation | None) -> None:
    """A copy of the package in `folder` with one text replaced.

    Raises:
        AssertionError: if the text does not occur exactly once.
    """
    shutil.copytree(PACKAGE, folder / "transformer", ignore=shutil.ignore_patterns("__pycache__"))
    if mutation is not None:
        path = folder / "transformer" / mutation.file
        source = path.read_text()
        count = source.count(mutation.old)
        assert count == 1, (
            f"{mutation.name}: the text occurs {count} times in {mutation.file}, not once: {mutation.old!r}"
        )
        path.write_text(source.replace(mutation.old, mutation.new))


def in_process_of_its_own(mutation: Mutation | None, options: dict[str, Any], data: str) -> dict[str, Any]:
    """The report of a preflight, as JSON; "error" if there is none."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as name:
        folder = Path(name)
        mutated(folder, mutation)
        answer = folder / "report.json"
        process = os.fork()
        if process == 0:
            try:
                answer.write_text(json.dumps(_preflight(folder, {**BASE, **options, "data": data})))
            except BaseException:
                answer.write_text(json.dumps({"error": traceback.format_exc()}))
            finally:
                os._exit(0)
        os.waitpid(process, 0)
        return json.loads(answer.read_text())


def _preflight(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """In the new process, which has not imported the package yet."""
    assert "transformer" not in sys.modules
    sys.path.insert(0, str(folder))
    from transformer.preflight import preflight
    from transformer.training.distributed import Engine
    from transformer.training.run_components import build
    from transformer.training.train_config import TrainConfig

    begin = time.process_time()
    architecture = options.pop("architecture", {})
    config = TrainConfig.from_options(
        output=str(folder / "output"), token_cache=str(folder / "tokens"), device="cpu", **options
    )
    engine = Engine(config.run.device)
    try:
        parts = build(config, engine)
        if architecture:
            model = type(parts.model)(replace(parts.model.config, **architecture))
            parts = replace(parts, model=model)
        return {**preflight(parts, config, engine).to_json(), "seconds": time.process_time() - begin}
    finally:
        engine.close()


def judged(name: str, checks: tuple[str, ...], report: dict[str, Any]) -> Result:
    """What preflight said of a run that only these checks may name; of an unchanged one, none."""
    if "error" in report:
        return Result(name, "error", "", report["error"].strip().splitlines()[-1], (), False, 0.0)
    bad = [check for check in report["checks"] if check["verdict"] == report["verdict"] != "pass"]
    first = bad[0] if bad else {"name": "", "cause_and_cure": ""}
    rightly = first["name"] in checks if checks else report["verdict"] != "fail"
    named = tuple(check["name"] for check in bad)
    return Result(
        name, report["verdict"], first["name"], first["cause_and_cure"], named, rightly, round(report["seconds"], 1)
    )


def results(only: list[str] | None = None) -> list[Result]:
    """Of all mutations, or of those whose name is among `only` ("unchanged" for the runs without one)."""
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    found = []
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        data = corpus(Path(folder))
        if not only or "unchanged" in only:
            for options in UNCHANGED:
                name = f"unchanged {options or ''}".strip()
                found.append(judged(name, (), in_process_of_its_own(None, options, data)))
                _tell(found[-1])
        for mutation in MUTATIONS:
            if not only or mutation.name in only:
                report = in_process_of_its_own(mutation, mutation.options, data)
                found.append(judged(mutation.name, mutation.checks, report))
                _tell(found[-1])
    return found


def _tell(result: Result) -> None:
    """A line at once, since all of them take minutes."""
    print(f"{result.name}: {result.verdict} {list(result.all)}, {result.seconds} s", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these mutations alone; unchanged: none")
    parser.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse_args()
    found = results(options.only)
    if options.json:
        print(json.dumps([vars(result) for result in found]))
        return
    print(f"{'mutation':56} {'':5} {'named rightly':13} {'first named':24} cause")
    for result in found:
        rightly = "yes" if result.rightly else "NO"
        print(f"{result.name:56} {result.verdict:5} {rightly:13} {result.named:24} {result.cause[:120]}")
    counted = [result for result in found if not result.name.startswith("unchanged")]
    stopped = sum(result.verdict == "fail" for result in found if result.name.startswith("unchanged"))
    print(f"\n{sum(result.rightly for result in counted)} of {len(counted)} mutations are named rightly;", end=" ")
    print(f"{stopped} of {len(found) - len(counted)} unchanged runs fail.")


if __name__ == "__main__":
    main()
