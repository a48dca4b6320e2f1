"""Perplexity and bits per byte, against their definitions worked out by hand."""

import math

import pytest
import torch
from models import SENTENCES, tiny_model, tiny_tokenizer

from transformer.errors import ConfigError, CorpusError
from transformer.evaluation import Evaluation, evaluate
from transformer.evaluation.perplexity import windows

TOKENIZER = tiny_tokenizer()
MODEL = tiny_model(vocab_size=TOKENIZER.vocab_size)


def by_definition(texts: list[str], context: int, stride: int) -> float:
    """Summed nats, one token at a time, each in the window in which it first appears."""
    nats = 0.0
    for text in texts:
        ids = [TOKENIZER.end_of_text_id, *TOKENIZER.encode_documents([text])[0]]
        for target in range(1, len(ids)):
            if target <= context:
                start = 0
            else:
                window = math.ceil((target - context) / stride)
                end = min(context + window * stride, len(ids) - 1)
                start = end - context
            seen = torch.tensor([ids[start:target]])
            nats -= float(MODEL(seen)[0, -1].log_softmax(0)[ids[target]])
    return nats


@pytest.mark.parametrize(("context", "stride"), [(32, 16), (32, 32), (32, 1), (7, 3), (1, 1)])
@torch.no_grad()
def test_summed_nats_are_those_of_the_definition(context: int, stride: int) -> None:
    found = evaluate(MODEL, TOKENIZER, SENTENCES, context, stride, batch_size=3)
    assert found.nats == pytest.approx(by_definition(SENTENCES, context, stride), rel=1e-4)
    assert found.tokens == sum(len(ids) for ids in TOKENIZER.encode_documents(SENTENCES))
    assert found.n_bytes == sum(len(s.encode()) for s in SENTENCES)
    assert (found.documents, found.context, found.stride) == (4, context, stride)


def test_each_token_is_scored_once_with_enough_before_it() -> None:
    ids = list(range(100))
    scored = []
    for inputs, targets in windows(ids, context=10, stride=4):
        assert len(inputs) <= 10 and len(inputs) == len(targets)
        here = [(int(t), int(i[0])) for t, i in zip(targets, inputs.expand(len(targets), -1), strict=True) if t >= 0]
        assert all(target - first >= min(target, 10 - 4 + 1) for target, first in here)
        scored += [target for target, _ in here]
    assert scored == list(range(1, 100))


def test_the_three_units() -> None:
    # A model that gives every one of 8 tokens probability 1/4: 2 bits a token; 4 bytes and 2 words in all.
    found = Evaluation(nats=8 * math.log(4), tokens=8, words=2, n_bytes=4, documents=1, context=8, stride=8)
    assert found.token_perplexity == pytest.approx(4)
    assert found.word_perplexity == pytest.approx(4**4)
    assert found.bits_per_byte == pytest.approx(4)


def test_windows_that_do_not_fit_and_no_text_are_refused() -> None:
    for context, stride in ((33, 1), (8, 9), (8, -1)):
        with pytest.raises(ConfigError, match="stride"):
            evaluate(MODEL, TOKENIZER, SENTENCES, context, stride)
    with pytest.raises(CorpusError):
        evaluate(MODEL, TOKENIZER, [])
