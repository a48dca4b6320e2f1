"""The runs of the story, and the turns that compare them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Layout = Literal["packed", "lines", "lines with a marker", "lines with padding counted", "last target overwritten"]


@dataclass(frozen=True)
class Variant:
    """One small training: the original's architecture as it ended (`blog`), but for what is said here.

    what: in a table. layout: of its text. architecture: fields of `ModelConfig`. options: options of the training.
    embedding_scale: what the token embeddings are multiplied with at the start. masked: padding is not attended to.
    few: it learns from the beginning of the text alone, again and again.
    """

    what: str
    layout: Layout = "packed"
    architecture: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    embedding_scale: float = 1.0
    masked: bool = True
    few: bool = False


VARIANTS = {
    "packed": Variant("text packed end to end, heads averaged, post-norm"),
    "lines": Variant("a line for an example, padding masked and not counted", "lines"),
    "marker": Variant("[SEP] ends every example", "lines with a marker"),
    "sum": Variant("heads summed", architecture={"heads": "sum"}),
    "concatenate": Variant("heads concatenated and projected", architecture={"heads": "concatenate"}),
    "attended": Variant("padding attended to", "lines", masked=False),
    "overwritten": Variant("the last target of every window is end-of-text", "last target overwritten"),
    "counted": Variant("padding counted in the loss", "lines with padding counted"),
    "drowned": Variant("embeddings a tenth of the size of the positions", embedding_scale=0.1),
    "wide": Variant("embeddings learned, as wide as the pretrained ones", options={"d_model": 384}),
    # Pretrained embeddings, and those of a pre-norm model, are smaller than sinusoids: they are brought to their size.
    "frozen": Variant(
        "embeddings pretrained and frozen",
        options={"d_model": 384, "freeze_embeddings": True},
        embedding_scale=1.95,
    ),
    "started": Variant("embeddings pretrained and trained on", options={"d_model": 384}, embedding_scale=1.95),
    "pre-norm": Variant(
        "normalised before each sub-layer", architecture={"norm_placement": "pre"}, embedding_scale=50.0
    ),
    "few": Variant("60,000 tokens of text, again and again", few=True),
    "dropout": Variant("the same, with dropout 0.2", options={"dropout": 0.2}, few=True),
    "overlap": Variant("the same, in windows that overlap by half", options={"window_stride": 64}, few=True),
}
PRETRAINED = ("frozen", "started")  # these begin with the embeddings of the model in weights/


@dataclass(frozen=True)
class Turn:
    """A turn of the story: what is compared with what.

    mistakes: of the runs, those that preflight must name; the others are choices of design.
    """

    title: str
    control: str
    others: tuple[str, ...]
    mistakes: tuple[str, ...] = ()


TURNS = {
    "sep": Turn("[SEP] in every example", "lines", ("marker",), ("marker",)),
    "heads": Turn("Heads summed, averaged, concatenated", "packed", ("sum", "concatenate"), ("sum",)),
    "attended": Turn("Padding attended to", "lines", ("attended",), ("attended",)),
    "overwritten": Turn("The overwritten last target", "packed", ("overwritten",), ("overwritten",)),
    "counted": Turn("Padding in the loss", "lines", ("counted",), ("counted",)),
    "positions": Turn("Positions that drown the embeddings", "packed", ("drowned",), ("drowned",)),
    "embeddings": Turn("Embeddings: frozen and pretrained, or learned", "wide", ("frozen", "started")),
    "norm": Turn("Norm after or before", "packed", ("pre-norm",)),
    "dropout": Turn("With and without dropout", "few", ("dropout",)),
    "overlap": Turn("Sliding windows with overlap", "few", ("overlap",)),
}
