"""Sampling, stopping and the decode loop."""

import math

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from models import tiny_model, tiny_tokenizer

from transformer.data.tokenizer import Tokenizer
from transformer.errors import ConfigError
from transformer.inference import Generator, SamplingOptions, sampling, window_start
from transformer.inference.sampling import keep_min_p, keep_top_p, penalize_repetition, sample
from transformer.inference.stopping import StopBuffer
from transformer.model import PRESETS, Transformer

TOKENIZER = tiny_tokenizer()
ENDLESS = SamplingOptions(max_tokens=80, temperature=0, min_tokens=80)


def generator(preset: str = "modern", **overrides: object) -> Generator:
    return Generator(tiny_model(preset, vocab_size=TOKENIZER.vocab_size, **overrides), TOKENIZER, "fp32")


def text(prompt: str = "The river", preset: str = "modern", **options: object) -> str:
    return "".join(generator(preset).generate(prompt, SamplingOptions(**{"max_tokens": 40, "seed": 0, **options})))


# ---- sampling, against the logits processors of transformers ----


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda x, seen: in_order(keep_top_p, x, 0.6), transformers.TopPLogitsWarper(0.6)),
        (lambda x, seen: in_order(keep_top_p, x, 0.0), transformers.TopKLogitsWarper(1)),
        (lambda x, seen: keep_min_p(x, 0.2), transformers.MinPLogitsWarper(0.2)),
        (lambda x, seen: penalize_repetition(x, seen, 1.7), transformers.RepetitionPenaltyLogitsProcessor(1.7)),
    ],
)
def test_filters_are_those_of_transformers(ours, theirs, seed: int) -> None:
    logits = 3 * torch.randn(2, 50, generator=torch.Generator().manual_seed(seed))
    seen = torch.tensor([[3, 7, 7, 49], [1, 2, 3, 3]])
    expected = theirs(seen, logits.clone())
    torch.testing.assert_close(ours(logits, seen), expected)
    torch.testing.assert_close(ours(logits[1], seen[1]), expected[1])


def in_order(keep, logits: torch.Tensor, p: float) -> torch.Tensor:
    """A filter of logits in descending order, on logits in any order."""
    ordered, order = logits.sort(descending=True)
    return torch.empty_like(logits).scatter(-1, order, keep(ordered, p))


@pytest.mark.parametrize(
    "options",
    [
        dict(top_k=5, top_p=1.0),
        dict(top_k=0, top_p=0.7),
        dict(top_k=20, top_p=0.7, min_p=0.1),
        dict(top_k=0, top_p=1.0, min_p=0.2),
        dict(top_k=0, top_p=1.0, repetition_penalty=1.5),
    ],
)
@pytest.mark.parametrize("few", [1000, 20, 3])  # tokens that are put in order if they suffice: they do, they do not
def test_choices_are_drawn_from_what_the_filters_of_transformers_leave(
    options: dict, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "FEW", few)
    logits, seen = 2 * torch.randn(50, generator=torch.Generator().manual_seed(3)), torch.arange(0, 50, 2)
    o = SamplingOptions(temperature=0.7, **options)
    left = transformers.RepetitionPenaltyLogitsProcessor(o.repetition_penalty)(seen[None], logits[None].clone()) / 0.7
    left = transformers.TopKLogitsWarper(o.top_k)(seen, left) if o.top_k else left
    left = transformers.MinPLogitsWarper(o.min_p)(seen, transformers.TopPLogitsWarper(o.top_p)(seen, left))
    draws = sample(logits.expand(20_000, -1), o, seen.expand(20_000, -1), torch.Generator().manual_seed(0))
    frequency = torch.bincount(draws, minlength=50) / 20_000
    assert not frequency[left[0] == -math.inf].any()
    torch.testing.assert_close(frequency, left[0].softmax(dim=0), atol=0.012, rtol=0)


@pytest.mark.parametrize(("keep", "off"), [(keep_top_p, 1.0), (keep_min_p, 0.0)])
def test_a_filter_that_is_off_changes_nothing(keep, off: float) -> None:
    logits = torch.randn(50)
    assert torch.equal(keep(logits, off), logits)


def test_samples_follow_the_distribution() -> None:
    logits, options = torch.tensor([2.0, 1.0, 0.0, -math.inf]), SamplingOptions(temperature=0.5, top_k=0, top_p=1.0)
    random = torch.Generator().manual_seed(0)
    draws = [sample(logits, options, torch.tensor([0]), random) for _ in range(4000)]
    frequency = torch.bincount(torch.tensor(draws), minlength=4) / 4000
    torch.testing.assert_close(frequency, (logits / 0.5).softmax(dim=0), atol=0.02, rtol=0)


def test_temperature_zero_takes_the_likeliest() -> None:
    assert sample(torch.tensor([0.0, 5.0, 4.9]), SamplingOptions(temperature=0), torch.tensor([0]), None) == 1


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (dict(max_tokens=0), "max_tokens"),
        (dict(temperature=-0.1), "temperature"),
        (dict(temperature=math.nan), "temperature"),
        (dict(top_p=1.1), "top_p"),
        (dict(min_p=-1.0), "min_p"),
        (dict(top_k=-1), "top_k"),
        (dict(repetition_penalty=0.0), "repetition_penalty"),
        (dict(min_tokens=9, max_tokens=8), "min_tokens"),
        (dict(stop=("",)), "stop"),
    ],
)
def test_options_out_of_range_are_refused_by_name(options: dict, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        SamplingOptions(**options)


# ---- stop sequences ----


@settings(max_examples=300, deadline=None)
@given(st.text("ab. ", max_size=30), st.lists(st.text("ab. ", min_size=1, max_size=4), max_size=3), st.data())
def test_text_ends_before_the_first_stop_however_it_is_cut(whole: str, stops: list[str], data) -> None:
    buffer, shown, rest = StopBuffer(stops), "", whole
    while rest and not buffer.found:
        size = data.draw(st.integers(1, len(rest)))
        piece, rest = rest[:size], rest[size:]
        shown += buffer.add(piece)
    shown += "" if buffer.found else buffer.finish()
    # By hand: the stop that is complete first decides; of those complete at once, the one that begins first.
    ends = [(whole.find(stop) + len(stop), whole.find(stop)) for stop in stops if stop in whole]
    assert buffer.found == bool(ends)
    if not ends:
        assert shown == whole
    else:
        assert whole.startswith(shown) and not any(stop in shown for stop in stops)
        assert any(whole[len(shown) :].startswith(stop) for stop in stops)


# ---- the decode loop ----


@torch.no_grad()
def reference(model: Transformer, prompt: str, n: int) -> list[int]:
    """Greedy decoding without a cache and without an end: the whole window through the model for every token."""
    tokens, context = TOKENIZER.encode_prompt(prompt), model.config.context_length
    for _ in range(n):
        window = tokens[window_start(len(tokens), context) :]
        logits = model(torch.tensor([window]))[0, -1]
        logits[TOKENIZER.end_of_text_id] = -math.inf
        tokens.append(int(logits.argmax()))
    return tokens


@pytest.mark.parametrize("preset", [*PRESETS, "blog"])
@pytest.mark.parametrize("prompt", ["The river", "The river rises in the hills, " * 20, ""])
def test_cached_generation_equals_recomputation_past_the_context_limit(preset: str, prompt: str) -> None:
    model = tiny_model(preset, vocab_size=TOKENIZER.vocab_size)
    generation = Generator(model, TOKENIZER, "fp32").generate(prompt, ENDLESS)
    "".join(generation)
    assert generation.token_ids == reference(model, prompt, 80)
    assert generation.stop_reason == "length" and generation.completion_tokens == 80


@pytest.mark.parametrize(
    ("preset", "overrides"), [*((preset, {}) for preset in PRESETS), ("blog", {}), ("blog", {"pad_token_id": 5})]
)
def test_texts_continued_together_are_those_continued_alone(preset: str, overrides: dict) -> None:
    """Prompts of different lengths, one of them twice; their windows move at different times."""
    one = generator(preset, **overrides)
    prompts = ["The river", "", "The river rises in the hills, " * 20, "The river", "In 1889 the tower was the tallest"]
    together = [completion.text for completion in one.generate_batch(prompts, ENDLESS)]
    assert together == ["".join(one.generate(prompt, ENDLESS)) for prompt in prompts]


def test_texts_continued_together_end_each_for_itself() -> None:
    one = generator()
    prompts = ["The river", "In 1889", "Naïve", "The lobster is blue"]
    whole = ["".join(one.generate(prompt, ENDLESS)) for prompt in prompts]
    stop = (whole[0][10:13], whole[2][25:29])
    options = SamplingOptions(max_tokens=80, temperature=0, min_tokens=80, stop=stop)
    together = one.generate_batch(prompts, options)
    for prompt, completion in zip(prompts, together, strict=True):
        alone = one.generate(prompt, options)
        assert completion.text == "".join(alone)
        assert (completion.stop_reason, completion.completion_tokens) == (alone.stop_reason, alone.completion_tokens)
    assert [completion.stop_reason for completion in together].count("stop_sequence") >= 2
    assert one.generate_batch([], ENDLESS) == []


def test_samples_of_one_prompt_differ_and_follow_from_the_seed() -> None:
    one, options = generator(), SamplingOptions(max_tokens=30, seed=7, repetition_penalty=1.2)
    texts = [completion.text for completion in one.generate_batch(["The river"] * 6, options)]
    assert len(set(texts)) == 6
    assert texts == [completion.text for completion in one.generate_batch(["The river"] * 6, options)]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 64), st.integers(1, 500))
def test_the_window_fits_the_context_and_moves_seldom(context: int, length: int) -> None:
    start = window_start(length, context)
    assert 0 < length - start <= context
    assert length - start >= min(length, context - context // 2)
    moves = sum(window_start(n, context) != window_start(n - 1, context) for n in range(2, length + 1))
    assert moves <= length / max(1, context // 2)


def test_the_same_seed_gives_the_same_text_and_zero_is_a_seed() -> None:
    assert text(seed=0) == text(seed=0)
    assert len({text(seed=seed) for seed in range(5)}) == 5
    assert len({text(seed=None) for _ in range(3)}) == 3


def test_seeded_text_does_not_touch_the_global_randomness() -> None:
    model, before = generator(), torch.get_rng_state()
    "".join(model.generate("The", SamplingOptions(max_tokens=5, seed=0)))
    assert torch.equal(before, torch.get_rng_state())


def test_max_tokens_and_stop_reason() -> None:
    generation = generator().generate("The", SamplingOptions(max_tokens=5, seed=0, min_tokens=5))
    assert generation.stop_reason is None
    "".join(generation)
    assert (generation.completion_tokens, generation.stop_reason) == (5, "length")
    assert generation.seconds_to_first_token is not None and generation.tokens_per_second > 0


def certain_end() -> Generator:
    """A model that always ends the text."""
    model = tiny_model("blog", vocab_size=TOKENIZER.vocab_size)
    with torch.no_grad():
        model.head.bias[TOKENIZER.end_of_text_id] = 1e4
    return Generator(model, TOKENIZER)


def test_the_end_of_text_ends_it_and_is_held_back_until_min_tokens() -> None:
    for least in (0, 1, 7):
        generation = certain_end().generate("The", SamplingOptions(max_tokens=20, min_tokens=least, seed=0))
        "".join(generation)
        assert (generation.completion_tokens, generation.stop_reason) == (least, "end_of_text")


def test_a_stop_sequence_ends_the_text_across_token_borders() -> None:
    whole = text(temperature=1.5)
    for start, length in ((0, 1), (5, 3), (11, 6)):
        stop = whole[start : start + length]
        options = SamplingOptions(max_tokens=40, seed=0, temperature=1.5, stop=(stop,))
        generation = generator().generate("The river", options)
        assert "".join(generation) == whole[: whole.find(stop)]
        assert generation.stop_reason == "stop_sequence"


def test_pieces_arrive_one_token_at_a_time() -> None:
    generation = generator().generate("The river", SamplingOptions(max_tokens=20, seed=0))
    iterator = iter(generation)
    next(iterator)
    assert generation.completion_tokens < 20


def test_a_repetition_penalty_makes_the_text_less_repetitive() -> None:
    def distinct(penalty: float) -> int:
        options = SamplingOptions(max_tokens=60, temperature=0, repetition_penalty=penalty)
        generation = generator().generate("The", options)
        "".join(generation)
        return len(set(generation.token_ids))

    assert distinct(1.5) > distinct(1.0)


def test_odd_prompts_work() -> None:
    for prompt in ("", " ", "🦞🦞", "\ud83d", "\x00", "<|endoftext|>", "a" * 5000):
        generation = generator().generate(prompt, SamplingOptions(max_tokens=3, min_tokens=3, seed=0))
        written = "".join(generation)
        assert TOKENIZER.decode(generation.token_ids, skip_special=True).endswith(written)
        assert generation.completion_tokens == 3 and generation.stop_reason == "length"


def test_a_tokenizer_without_a_name_for_its_end_is_refused() -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import BPE

    from transformer.errors import CheckpointError

    with pytest.raises(CheckpointError, match="end-of-text"):
        Tokenizer(Backend(BPE()))
