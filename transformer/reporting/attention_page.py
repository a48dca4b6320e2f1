"""The page of `show attention`: each head's attention over the tokens of a text.

Dimensions: T tokens · L layers · H heads
"""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from transformer.data.tokenizer import Tokenizer
from transformer.model import Transformer
from transformer.reporting.attention_weights import weights_of
from transformer.reporting.page import page
from transformer.reporting.token_text import data, name_of, spans, tokens_of

MOST_TOKENS = 256  # the size of a page grows with the square of this
_STYLE, _SCRIPT = (
    Path(__file__).with_name(f"attention_page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js")
)


def attention_page(model: Transformer, tokenizer: Tokenizer, text: str, name: str) -> str:
    """An HTML page with the attention of each head over the tokens of a text.

    Only the start of a text longer than the context, or than `MOST_TOKENS`, is shown, with a note.

    Args:
        name: of the model, for the heading.

    Raises:
        CheckpointError: if the model's attention weights are NaN or infinite.
    """
    tokens = tokens_of(tokenizer, text)
    shown = tokens[: min(MOST_TOKENS, model.config.context_length)]
    weights = weights_of(model, torch.tensor([token.id for token in shown], device=next(model.parameters()).device))
    layers, heads, length, _ = weights.shape
    numbers = {
        "layers": layers,
        "heads": heads,
        "names": [name_of(tokenizer, token) for token in shown],
        "weights": _packed(weights),
    }
    cut = f" The first {length:,} of its {len(tokens):,} tokens are shown." if len(shown) < len(tokens) else ""
    body = f"""<p class="lead">Each small square is a head: rows are queries, columns are keys, and the colour is the
attention weight. Choose a head, then a token. A dot beneath a character is a further token of it.{cut}</p>
<main>
<section id="heads" aria-label="Heads" style="--heads: {heads}">{_heads(layers, heads)}</section>
<section id="head" aria-label="The chosen head">
<h2 id="chosen">Layer 1, head 1</h2>
<fieldset><legend>Colour of the tokens</legend>
<label><input type="radio" name="direction" value="from" checked="checked"/> attention of the chosen token to it</label>
<label><input type="radio" name="direction" value="to"/> its attention to the chosen token</label></fieldset>
<div class="text" dir="auto" id="text">{spans(tokenizer, shown)}</div>
<p id="told" role="status">Point at a token, or move with the arrow keys.</p>
<div class="both"><canvas id="map" tabindex="0" role="img" aria-label="Weights of the chosen head"></canvas>
<table><caption>Most attention</caption><tbody id="most"></tbody></table></div>
</section>
</main>"""
    aside = f"{name} · {layers} layers of {heads} heads · {length:,} tokens"
    return page("Attention", aside, body, _STYLE, f"const DATA = {data(numbers)};\n{_SCRIPT}")


def _heads(layers: int, heads: int) -> str:
    """A button with a canvas for each head, layer by layer."""
    buttons = ""
    for layer in range(layers):
        buttons += f'<div class="layer"><span>layer {layer + 1}</span><div class="row">'
        for head in range(heads):
            label = f'aria-label="Layer {layer + 1}, head {head + 1}"'
            buttons += (
                f'<button type="button" data-layer="{layer}" data-head="{head}" {label}><canvas></canvas></button>'
            )
        buttons += "</div></div>"
    return buttons


def _packed(weights: Tensor) -> str:
    """The weights on and below the diagonal, row by row, as 16-bit fractions in base64."""
    rows, columns = np.tril_indices(weights.shape[-1])
    lower = weights.float().cpu().numpy()[..., rows, columns]  # (L, H, T (T + 1) / 2)
    return base64.b64encode(np.rint(lower * 65535).astype("<u2").tobytes()).decode()
