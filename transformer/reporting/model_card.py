"""The model card: the README.md of a model directory, with measured results."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformer.credentials import redact
from transformer.evaluation import Evaluation
from transformer.files import atomic_write
from transformer.hub import checkpoint
from transformer.hub.architectures import adapter_for
from transformer.hub.generation_config import read_sampling
from transformer.inference import Generator
from transformer.reporting.card_samples import samples_section
from transformer.reporting.training_facts import TrainingFacts

CURVE_FILE = "loss.svg"  # the loss curve
_METHOD = (
    "Each document is scored separately, after the end-of-text token, in sliding windows of *context* tokens with "
    "this *stride*. Every token is scored once, with at least context − stride tokens before it, except at the "
    "start of a document. Tokens are those of this model's tokenizer: perplexity per token cannot be compared with "
    "models of other tokenizers. Words are separated by white space. Bits per byte can be compared with any model."
)


def command_line(options: dict[str, Any]) -> str:
    """The command line of a training with these options. Paths are shortened to their last part, and credentials in
    URLs are masked."""
    words = ["python", "train.py"]
    for name, value in options.items():
        if isinstance(value, str) and os.path.exists(value):
            value = Path(value).name
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif name != "output":
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{option}", *(redact(str(value)) for value in values)]
    return shlex.join(words)


def write_card(
    directory: str | Path,
    evaluations: Sequence[tuple[str, Evaluation]],
    data: str,
    data_license: str | None = None,
    remarks: Sequence[str] = (),
) -> None:
    """Write the card of a trained model into its directory, with samples that are generated now.

    Args:
        evaluations: pairs of a description of a text and its evaluation.
        data: description of the training data. data_license: its license as named on the Hub, such as cc-by-sa-3.0.
        remarks: sentences to print below the evaluations.

    Raises:
        CheckpointError: if the directory has no model, or no `TrainingFacts`.
        WriteError: if the card cannot be written.
    """
    directory = Path(directory)
    model, tokenizer = checkpoint.load(directory)
    facts, config = TrainingFacts.read(directory), model.config
    architecture = adapter_for(checkpoint.read_model_type(directory)).class_name
    weights = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    generator, settings = Generator(model, tokenizer, "fp32"), read_sampling(directory)
    answers = bool(tokenizer.chat_templates)
    parts = [
        f"---\n{_front(directory.resolve().name, evaluations, data_license)}\n---",
        "# A small decoder-only Transformer",
        f"It continues English text{' and answers questions' if answers else ''}. {model.parameter_count():,} "
        f"parameters: {config.n_layers} layers of width {config.d_model}, {config.n_heads} attention heads "
        f"({config.kv_heads} for keys and values), feed-forward width {config.feed_forward_dim}, a context of "
        f"{config.context_length} tokens, and a vocabulary of {tokenizer.vocab_size:,} tokens; {weights / 1e6:.1f} MB "
        f"of weights. In `transformers` it is a `{architecture}`.",
        "## Data",
        f"{redact(data)} Licence of the data: {data_license or 'not known'}.",
        "## Training",
        *_training(facts),
        *(["![Loss in nats per token, by step](" + CURVE_FILE + ")"] if (directory / CURVE_FILE).exists() else []),
        "## Evaluation",
        _METHOD,
        _table(evaluations),
        *remarks,
        *samples_section(generator, settings),
        "## Limits",
        "A model of this size imitates the style of its data: names, dates and facts in its texts are invented. It "
        f"writes only the language of its data, {'follows few' if answers else 'does not follow'} instructions, and "
        "repeats biases in its data. Do not rely on what it writes.",
    ]
    with atomic_write(directory / "README.md") as path:
        path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _table(evaluations: Sequence[tuple[str, Evaluation]]) -> str:
    rows = [
        f"| {text} | {e.token_perplexity:.2f} | {e.word_perplexity:.1f} | {e.bits_per_byte:.4f} | "
        f"{e.context} / {e.stride} | {e.documents:,} documents, {e.tokens:,} tokens, {e.words:,} words, "
        f"{e.n_bytes:,} bytes |"
        for text, e in evaluations
    ]
    head = "| text | perplexity per token | perplexity per word | bits per byte | context / stride | scored |"
    return "\n".join([head, "|---|---|---|---|---|---|", *rows])


def _training(facts: TrainingFacts) -> list[str]:
    """The paragraphs on how the model was trained: each training, and what all of them took together."""
    paragraphs, stages = [], list(facts.stages())
    for stage in stages:
        cost = "" if stage.cost is None else f" At {stage.price_per_hour:g} an hour, it cost {stage.cost:.2f}."
        paragraphs += [
            f"```\n{stage.command}\n```",
            f"{stage.steps:,} steps over {stage.tokens:,} tokens in {_duration(stage.seconds)} on {stage.processor}."
            f"{cost}",
        ]
    if len(stages) > 1:
        tokens, seconds = sum(stage.tokens for stage in stages), sum(stage.seconds for stage in stages)
        paragraphs.append(f"Together {tokens:,} tokens in {_duration(seconds)}.")
    paragraphs[-1] += " The weights are those with the lowest loss on validation text."
    return paragraphs


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} hours"


def _front(name: str, evaluations: Sequence[tuple[str, Evaluation]], data_license: str | None) -> str:
    """The YAML metadata of the card, including the results as `model-index`."""
    from huggingface_hub import EvalResult, ModelCardData  # imported late, since the import is slow

    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type="text",
            dataset_name=text,
            dataset_config=text,  # results with the same task, type and config would be merged
            dataset_args={"context": e.context, "stride": e.stride, "tokens": e.tokens},
            metric_type=kind,
            metric_name=unit,
            metric_value=round(value, 4),
        )
        for text, e in evaluations
        for kind, unit, value in (
            ("perplexity", "perplexity per token of this model's tokenizer", e.token_perplexity),
            ("word_perplexity", "perplexity per word", e.word_perplexity),
            ("bits_per_byte", "bits per byte", e.bits_per_byte),
        )
        if math.isfinite(value)
    ]
    card = ModelCardData(
        language="en",
        license=data_license,
        library_name="transformers",
        pipeline_tag="text-generation",
        model_name=name,
        eval_results=results or None,
    )
    return str(card.to_yaml())
