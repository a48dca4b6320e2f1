"""The page of `show tokens`: the tokens of a text, coloured by their surprisal."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

import torch

from transformer.data.tokenizer import Tokenizer
from transformer.errors import CorpusError
from transformer.model import Transformer
from transformer.reporting.page import page, tiles
from transformer.reporting.surprisal import Surprisal, surprisal_of
from transformer.reporting.token_text import Token, data, name_of, spans, tokens_of

DEEPEST = 12.0  # nats with the deepest colour: a probability of about 1/160,000
_STYLE, _SCRIPT = (Path(__file__).with_name(f"token_page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))


def tokens_page(model: Transformer, tokenizer: Tokenizer, text: str, name: str) -> str:
    """An HTML page with the tokens of a text, their surprisal, and the most likely tokens in their place.

    Args:
        name: of the model, for the heading.

    Raises:
        CorpusError: if the text is empty.
        CheckpointError: if the model's scores are NaN or infinite.
    """
    tokens = tokens_of(tokenizer, text)
    if len(tokens) < 2:
        raise CorpusError("there is no text to show.")
    found = surprisal_of(model, torch.tensor([token.id for token in tokens]))
    nats = found.nats.tolist()
    numbers = {
        "vocabulary": tokenizer.vocab_size,
        "tokens": [_facts(tokenizer, tokens[0]), *_all_facts(tokenizer, tokens, found)],
        "names": {number: name_of(tokenizer, number) for number in {*found.likeliest.flatten().tolist()}},
    }
    styles = ["", *(f"--s:{100 * min(1, surprise / DEEPEST):.1f}" for surprise in nats)]
    context = model.config.context_length
    read = ""
    if len(tokens) - 1 > context:
        read = (
            f" The text is longer than the model's context: it is scored in windows of {context:,} tokens with a "
            f"stride of {max(1, context // 2):,}, each token in the first window that has it."
        )
    body = f"""<dl>{_totals(text, nats, tokenizer.vocab_size)}</dl>
<p class="lead">Each token is coloured by its surprisal: −ln of its probability, given the tokens before it.
A dot beneath a character is a further token of it.{read}</p>
<main>
<div class="bar"><fieldset><legend>Colour by</legend>
<label><input type="radio" name="colour" value="surprisal" checked="checked"/> surprisal</label>
<label><input type="radio" name="colour" value="boundaries"/> token boundaries</label></fieldset>
<div class="scale" role="img" aria-label="Colours from 0 to {DEEPEST:.0f} nats per token">
<i></i><span>0</span><span>{DEEPEST / 2:.0f}</span><span>{DEEPEST:.0f} nats and more</span></div></div>
<div class="text" dir="auto" id="text">{spans(tokenizer, tokens, styles)}</div>
<aside id="told" role="status"><p>Point at a token, or move with the arrow keys.</p></aside>
<details><summary>All tokens as a table</summary>{_table(tokenizer, tokens, found)}</details>
</main>"""
    aside = f"{name} · {len(tokens) - 1:,} tokens of its own tokenizer"
    return page("Tokens and surprisal", aside, body, _STYLE, f"const DATA = {data(numbers)};\n{_SCRIPT}")


def _facts(tokenizer: Tokenizer, token: Token) -> dict[str, object]:
    raw = tokenizer.backend.id_to_token(token.id)
    return {"name": name_of(tokenizer, token), "id": token.id, "raw": raw, "begins": token.begins}


def _all_facts(tokenizer: Tokenizer, tokens: list[Token], found: Surprisal) -> list[dict[str, object]]:
    """The data of each scored token; likeliest: pairs of token id and probability."""
    columns = (found.nats, found.rank, found.likeliest, found.probabilities)
    rows = zip(tokens[1:], *(column.tolist() for column in columns), strict=True)
    return [
        _facts(tokenizer, token)
        | {
            "nats": round(nats, 4),
            "rank": rank,
            "likeliest": [[number, round(part, 5)] for number, part in zip(likeliest, parts, strict=True)],
        }
        for token, nats, rank, likeliest, parts in rows
    ]


def _totals(text: str, nats: list[float], vocabulary: int) -> str:
    total, n_bytes = sum(nats), len(text.encode("utf-8", "replace"))
    mean = total / len(nats)
    numbers = [
        ("Text", f"{len(nats):,}", f"tokens, {n_bytes:,} bytes of UTF-8"),
        ("Surprisal", f"{total:,.1f}", "nats in all"),
        ("Mean", f"{mean:.3f}", f"nats per token of its {vocabulary:,}"),
        ("Perplexity", f"{math.exp(mean):,.2f}", "per token of its own tokenizer"),
        ("Compression", f"{total / math.log(2) / n_bytes:.3f}", "bits per byte"),
    ]
    return tiles(numbers)


def _table(tokenizer: Tokenizer, tokens: list[Token], found: Surprisal) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("", "token", "id", "nats", "rank", "likeliest instead"))
    rows = ""
    columns = (found.nats, found.rank, found.likeliest[:, 0], found.probabilities[:, 0])
    for number, (token, nats, rank, likeliest, part) in enumerate(
        zip(tokens[1:], *(column.tolist() for column in columns), strict=True), 1
    ):
        instead = "" if rank == 1 else f"{name_of(tokenizer, likeliest)} ({100 * part:.1f} %)"
        cells = (number, name_of(tokenizer, token), token.id, f"{nats:.2f}", f"{rank:,}", instead)
        rows += "<tr>" + "".join(f'<td dir="auto">{escape(str(cell))}</td>' for cell in cells) + "</tr>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
