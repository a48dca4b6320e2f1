"""Perplexity and bits per byte, against their definitions worked out by hand."""

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import SENTENCES, tiny_model, tiny_model_directory, tiny_tokenizer
from tokenizers.processors import ByteLevel, TemplateProcessing

from transformer.cli import main
from transformer.errors import ConfigError, CorpusError
from transformer.evaluation import Agreement, Evaluation, agreement, evaluate
from transformer.evaluation.detokenize import wikitext
from transformer.evaluation.perplexity import windows
from transformer.hub import checkpoint

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


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int, int]:
    """Tokens of a document, context, stride."""
    context = draw(st.integers(1, 40))
    return draw(st.integers(1, 200)), context, draw(st.integers(1, context))


@given(shapes())
def test_each_token_is_scored_once_with_enough_before_it(shape: tuple[int, int, int]) -> None:
    n, context, stride = shape
    scored = []
    for inputs, targets in windows(torch.arange(n), context, stride):
        assert len(inputs) == len(targets) == min(context, n - 1)  # full, the last one too
        assert torch.equal(targets[targets >= 0], inputs[targets >= 0] + 1)
        here, first = targets[targets >= 0].tolist(), int(inputs[0])
        assert all(target - first >= min(target, context - stride + 1) for target in here)
        scored += here
    assert scored == list(range(1, n))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=4).filter(any), st.integers(1, 32), st.integers(1, 32))
def test_a_smaller_stride_counts_the_same(texts: list[str], stride: int, other: int) -> None:
    a, b = (evaluate(MODEL, TOKENIZER, texts, 32, s) for s in (stride, other))
    assert (a.tokens, a.words, a.n_bytes, a.documents) == (b.tokens, b.words, b.n_bytes, b.documents)
    if max(len(ids) for ids in TOKENIZER.encode_documents(texts)) <= 32:  # one window each, whatever the stride
        assert a.nats == pytest.approx(b.nats, rel=1e-5)


# What lm-evaluation-harness measures (its task `wikitext`), worked out without our windows, our model or our tokenizer.
PAGES = [
    " \n = The River = \n \n The river , 240 @.@ 5 km ( 149 mi ) long , is \" old \" . It 's the town 's . \n" * 3,
    " \n = A Tower = \n \n = = Height = = \n \n It is tall ; very tall . \n ",
    "",
    "x",
    " The lobsters ' claws : red @-@ tipped .",
]


def harness_nats(directory: Path, page: str) -> float:
    """Summed nats of a page: max_length tokens at a time, one after the other, each time with as much context before
    them as the model still has room for. The first token is predicted from bos."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    longest = getattr(model.config, "max_position_embeddings", None) or model.config.n_positions
    ids = tokenizer.encode(page, add_special_tokens=False)
    nats = 0.0
    for begin in range(0, len(ids), longest):
        predicted = ids[begin : begin + longest]
        before = [tokenizer.bos_token_id, *ids][: begin + 1]
        context = before[-(longest + 1 - len(predicted)) :]
        logits = model(torch.tensor([(context + predicted)[:-1]])).logits[0, -len(predicted) :]
        nats -= float(logits.log_softmax(-1)[range(len(predicted)), predicted].double().sum())
    return nats


@pytest.mark.parametrize("preset", ["gpt2", "modern", "paper"])
@torch.no_grad()
def test_with_a_stride_of_the_context_the_numbers_are_those_of_lm_evaluation_harness(
    preset: str, tmp_path: Path, capsys
) -> None:
    directory = tiny_model_directory(tmp_path / "model", preset)
    nats = sum(harness_nats(directory, wikitext(page)) for page in PAGES)
    gaps = [sum(is_space for is_space, _ in itertools.groupby(page, str.isspace)) for page in PAGES]
    words = sum(gaps) + len(PAGES)  # of each page as it stands, one more than there are gaps
    n_bytes = sum(len(page) for page in PAGES)  # all of it ASCII
    model, tokenizer = checkpoint.load(directory)
    assert len(tokenizer.encode_documents([wikitext(PAGES[0])])[0]) > 3 * 32  # several windows, the last one not full
    found = evaluate(model, tokenizer, iter(PAGES), stride=32, detokenize=wikitext)
    assert (found.harness_words, found.n_bytes, found.documents) == (words, n_bytes, len(PAGES))
    assert found.words == sum(len(page.split()) for page in PAGES) < words
    assert found.harness_word_perplexity == pytest.approx(math.exp(nats / words), rel=1e-4)
    assert found.byte_perplexity == pytest.approx(math.exp(nats / n_bytes), rel=1e-4)
    assert found.bits_per_byte == pytest.approx(nats / n_bytes / math.log(2), rel=1e-4)

    (tmp_path / "pages.jsonl").write_text("".join(json.dumps({"text": page}) + "\n" for page in PAGES))
    command = ["evaluate", "--model", str(directory), "--data", str(tmp_path / "pages.jsonl"), "--split", "train"]
    assert main([*command, "--stride", "32", "--detokenize", "wikitext", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    # The corpus leaves out the page that is empty, which the harness counts as one word.
    assert printed["harness_words"] == words - 1 and printed["detokenize"] == "wikitext"
    assert printed["bits_per_byte"] == pytest.approx(found.bits_per_byte, rel=1e-6)
    assert main([*command, "--detokenize", "wikitext"]) == 0
    out = capsys.readouterr().out
    assert "words of the original text, separated by white space" in out
    assert f"{words - 1:,} words as counted by lm-evaluation-harness" in out


@pytest.mark.parametrize(
    ("tokenised", "plain"),
    [
        (" = Homarus gammarus = \n", " = Homarus gammarus =\n"),
        (" \n = = Life cycle = = \n", "\n== Life cycle ==\n"),
        (" = = = Diet = = = \n = = = = Prey = = = = \n", " === Diet ===\n==== Prey ====\n"),
        (
            "a body of 60 centimetres ( 24 in ) , 0 @.@ 7 – 2 @.@ 2 kg , 10 @,@ 000 eggs . \n",
            "a body of 60 centimetres (24 in), 0.7 – 2.2 kg, 10,000 eggs.\n",
        ),
        ("red or red @-@ tipped : so ; it is ! Is it ? Yes .", "red or red-tipped: so; it is! Is it? Yes ."),
        ('only becoming " lobster red " on cooking , a " <unk> "', 'only becoming "lobster red" on cooking, a "<unk>"'),
        ("the lobster 's claw , the lobsters ' claws", "the lobster's claw, the lobsters' claws"),
        ("he said ' no ' and [ sic ] { x }", "he said 'no' and [sic] {x}"),
        ("( ( a ) b ) at 20 ° C", "(( a) b ) at 20°C"),
        ('an open ( bracket , one " quote', 'an open ( bracket, one " quote'),
        ("N N N", "N 1 N"),
        ("", ""),
    ],
)
def test_wikitext_is_written_as_plain_text(tokenised: str, plain: str) -> None:
    assert wikitext(tokenised) == plain


@torch.no_grad()
def test_a_text_begins_with_what_the_tokenizer_puts_in_front() -> None:
    ids = TOKENIZER.encode_documents(["The river"])[0]
    pad = TOKENIZER.backend.token_to_id("<|pad|>")
    before = TemplateProcessing(single="<|pad|> $A", special_tokens=[("<|pad|>", pad)])  # as Llama's <s>
    nothing = ByteLevel(trim_offsets=False)  # as GPT-2's tokenizer
    for post_processor, first in ((before, pad), (nothing, TOKENIZER.end_of_text_id)):
        tokenizer = tiny_tokenizer()
        tokenizer.backend.post_processor = post_processor
        logits = MODEL(torch.tensor([[first, *ids[:-1]]]))[0]
        nats = -float(logits.log_softmax(-1)[range(len(ids)), ids].sum())
        assert evaluate(MODEL, tokenizer, ["The river"]).nats == pytest.approx(nats, rel=1e-5)


def test_texts_are_read_one_at_a_time() -> None:
    read = []

    def texts() -> Iterator[str]:
        for number in range(6):
            read.append(number)
            yield "The river meets the sea."

    seen = []
    hook = MODEL.register_forward_pre_hook(lambda *_: seen.append(len(read)))
    evaluate(MODEL, TOKENIZER, texts(), 32, 32, batch_size=2)
    hook.remove()
    assert seen == [2, 4, 6]


def test_the_three_units() -> None:
    # A model that gives every one of 8 tokens probability 1/4: 2 bits a token; 4 bytes and 2 words in all.
    found = Evaluation(nats=8 * math.log(4), tokens=8, words=2, n_bytes=4, documents=1, context=8, stride=8)
    assert found.token_perplexity == pytest.approx(4)
    assert found.word_perplexity == pytest.approx(4**4)
    assert found.bits_per_byte == pytest.approx(4)


def test_a_text_without_spaces_has_no_perplexity_per_word() -> None:
    found = evaluate(MODEL, TOKENIZER, ["東京" * 500], 32, 32)
    assert found.words == 1 and found.word_perplexity == math.inf and found.bits_per_byte < 20


def test_the_model_is_left_in_the_mode_it_was_in() -> None:
    def broken() -> Iterator[str]:
        yield SENTENCES[0]
        raise CorpusError("the file ends here.")

    model = tiny_model(vocab_size=TOKENIZER.vocab_size).train()
    evaluate(model, TOKENIZER, SENTENCES)
    assert model.training
    with pytest.raises(CorpusError, match="ends here"):
        evaluate(model, TOKENIZER, broken())
    assert model.training


def test_windows_that_do_not_fit_and_no_text_are_refused() -> None:
    for context, stride in ((33, 1), (8, 9), (8, -1), (8, 0), (0, None)):
        with pytest.raises(ConfigError, match="stride"):
            evaluate(MODEL, TOKENIZER, SENTENCES, context, stride)
    with pytest.raises(CorpusError):
        evaluate(MODEL, TOKENIZER, [])
    with pytest.raises(CorpusError):
        evaluate(MODEL, TOKENIZER, ["", ""])


def test_agreement_counts_the_places_with_the_same_likeliest_token() -> None:
    """With itself everywhere; with a model that takes another token, as far as that token was the likeliest."""
    texts = ["The river rises in the hills.", "", "The sea." * 50]  # the last is longer than the context
    lengths = [min(len(TOKENIZER.encode_prompt(text)), MODEL.config.context_length) for text in texts]
    assert agreement(MODEL, MODEL, TOKENIZER, texts) == Agreement(sum(lengths), sum(lengths))
    assert agreement(MODEL, MODEL, TOKENIZER, texts, documents=1).places == lengths[0]

    class Stubborn(type(MODEL)):
        def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(torch.full_like(tokens, 7), MODEL.config.vocab_size)

    with torch.no_grad():
        expected = sum(
            int((MODEL(torch.tensor([TOKENIZER.encode_prompt(text)[:length]])).argmax(-1) == 7).sum())
            for text, length in zip(texts, lengths, strict=True)
        )
    assert agreement(MODEL, Stubborn(MODEL.config), TOKENIZER, texts).same == expected
