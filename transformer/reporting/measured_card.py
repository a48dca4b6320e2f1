"""Measurement of a model for its card: evaluations, the loss curve, and the README.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from transformer.data.document import Document
from transformer.evaluation import Scores, agreement, evaluate
from transformer.hub import checkpoint
from transformer.inference import select_backend
from transformer.reporting.loss_curve import draw_curve
from transformer.reporting.model_card import write_card


def measure_and_write_card(
    directory: str | Path,
    texts: Mapping[str, Callable[[], Iterable[str | Document]]],
    data: str,
    data_license: str | None = None,
    int8: bool = False,
) -> None:
    """Evaluate a model on texts and write its card, with its loss curve if there is a `metrics.jsonl`.

    Args:
        texts: functions that return the documents of a text, by descriptions of the texts.
        data, data_license: as in `write_card`.
        int8: evaluate the model in int8 too, the precision of `--dtype auto` on most servers.

    Raises:
        CheckpointError: if the directory has no model, or no record of its training.
    """
    model, tokenizer = checkpoint.load(directory)
    draw_curve(Path(directory))
    models: dict[str, Scores] = {"": model}
    if int8:
        models[" (int8)"] = select_backend(model, "int8")
    evaluations, remarks = [], []
    for name, text in texts.items():
        evaluations += [(name + suffix, evaluate(scored, tokenizer, text())) for suffix, scored in models.items()]
        if int8:
            plain = (document if isinstance(document, str) else document.text for document in text())
            both = agreement(model, models[" (int8)"], tokenizer, plain)
            share = f"{both.same / both.places:.1%} of {both.places:,} places"
            remarks.append(f"In int8 the likeliest next token is the one it is in fp32 at {share} ({name}).")
    write_card(directory, evaluations, data, data_license, remarks)
