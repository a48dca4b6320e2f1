"""The original's layout, recomputed from the text, and what it does to a perplexity."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from models import SENTENCES, tiny_model, tiny_tokenizer

from transformer.data.tokenizer import Tokenizer
from transformer.errors import CorpusError
from transformer.legacy.padded_evaluation import evaluate_padded, padded_lines, padding_shares


def test_the_share_of_padding_on_wikitext_2_is_recomputed_from_the_text(shared: Path) -> None:
    tokenizer = Tokenizer.load(shared / "tokenizers" / "gpt2")
    text = (shared / "data" / "wikitext-2" / "validation.txt").read_text()
    lengths = np.array([len(ids) - 128 for ids in padded_lines([text], tokenizer)])
    assert len(lengths) == sum(bool(line.strip()) for line in text.splitlines()) == 2461
    shares = padding_shares(lengths)
    assert 0.63 < shares.mean() < 0.67 and 0.63 < np.median(shares) < 0.67
    # Over all windows together, where long lines weigh more, it is less.
    assert (shares * lengths).sum() / lengths.sum() == pytest.approx(0.41, abs=0.01)


@pytest.mark.parametrize("block", [8, 128])
def test_the_share_is_that_of_the_windows_counted_one_by_one(block: int) -> None:
    for length in (1, 5, block - 1, block, block + 1, 3 * block):
        is_padding = [place < block for place in range(block + length)]
        targets = [is_padding[k + 1 : k + 1 + block] for k in range(length)]
        by_hand = sum(map(sum, targets)) / sum(map(len, targets))
        assert padding_shares(np.array([length]), block)[0] == pytest.approx(by_hand)
    assert padding_shares(np.array([87]))[0] == pytest.approx(0.66, abs=0.005)


def test_a_model_that_knows_its_padding_reports_what_the_formula_says() -> None:
    tokenizer, model = tiny_tokenizer(), tiny_model()
    fill = tokenizer.end_of_text_id

    class Knows(type(model)):
        """Padding after padding for certain, and 1/299 for every other token."""

        def forward(self, tokens, attention_mask_BT=None, cache=None):
            logits = torch.zeros(*tokens.shape, 300)
            logits[..., fill] = torch.where(tokens == fill, 40.0, -40.0)
            return logits

    model.__class__ = Knows
    scored = evaluate_padded(model, tokenizer, ["\n\n".join(SENTENCES)], block=16)
    lengths = np.array([len(ids) - 16 for ids in padded_lines(["\n\n".join(SENTENCES)], tokenizer, 16)])
    assert scored.lines == len(SENTENCES) and scored.share == pytest.approx(padding_shares(lengths, 16).mean())
    assert scored.padding_nats == pytest.approx(0, abs=1e-6)
    assert scored.reported_perplexity == pytest.approx(scored.if_padding_is_free)
    assert scored.reported_perplexity == pytest.approx(scored.real_perplexity ** (1 - scored.share))
    assert scored.real_perplexity > math.exp(1) * scored.reported_perplexity


def test_a_text_without_lines_is_refused() -> None:
    with pytest.raises(CorpusError, match="no text"):
        evaluate_padded(tiny_model(), tiny_tokenizer(), [" \n\n"])
