"""Conversations that outgrow the context: whole turns go, the oldest first; the system prompt and BOS stay."""

from pathlib import Path

import pytest
from models import tiny_model, tiny_tokenizer
from test_generation_config import says

from transformer.cli import main
from transformer.data.chat_template import chat_tokens
from transformer.data.template_files import CHAT_HINT
from transformer.hub import checkpoint
from transformer.inference import Generation, Generator, SamplingOptions, answer
from transformer.model import KVCache

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' and not loop.last and "
    "messages[loop.index].role != 'assistant' %}{{ raise_exception('turns') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
)
SYSTEM = [{"role": "system", "content": "Be brief."}]


def turn(number: int) -> list[dict[str, str]]:
    question = {"role": "user", "content": f"What is river {number}?"}
    return [question, {"role": "assistant", "content": "A long river."}]


def generator(context: int) -> Generator:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return Generator(tiny_model(vocab_size=tokenizer.vocab_size, context_length=context), tokenizer)


def test_the_oldest_turns_are_left_out_and_no_more_than_have_to_be(caplog: pytest.LogCaptureFixture) -> None:
    one = generator(200)
    question = {"role": "user", "content": "And the sea?"}
    turns = [turn(number) for number in range(9)]
    lengths = []
    for left_out in range(10):
        kept = [message for turn in turns[left_out:] for message in turn]
        lengths.append(len(chat_tokens(one.tokenizer, [*SYSTEM, *kept, question])))
    messages = [*SYSTEM, *(message for turn in turns for message in turn), question]
    assert lengths[0] > 200 > lengths[6] > lengths[9]
    for left_out in (0, 1, 4, 9):
        spare = 200 - lengths[left_out]
        if spare < 0:
            continue
        generation = answer(one, messages, SamplingOptions(max_tokens=max(1, min(spare, 100)), temperature=0))
        expected = next(number for number, length in enumerate(lengths) if length + max(1, min(spare, 100)) <= 200)
        kept = [message for turn in turns[expected:] for message in turn]
        assert prompt_of(generation) == chat_tokens(one.tokenizer, [*SYSTEM, *kept, question])
        assert f"{2 * expected} messages after the system prompt are left out" in caplog.text
    short = [*SYSTEM, question]
    caplog.clear()
    assert answer(one, short, SamplingOptions(max_tokens=9)).prompt_tokens == lengths[9] and not caplog.text


def test_the_last_turn_stays_however_long_it_is() -> None:
    one = generator(64)
    last = {"role": "user", "content": "the sea " * 50}
    generation = answer(one, [*SYSTEM, *turn(1), last], SamplingOptions(max_tokens=4, temperature=0))
    assert prompt_of(generation) == chat_tokens(one.tokenizer, [*SYSTEM, last])


def test_the_system_prompt_stays_in_sight_of_a_text_that_outgrows_the_context(monkeypatch) -> None:
    one, windows = generator(64), []
    question = {"role": "user", "content": "And the sea?"}
    generation = answer(one, [*SYSTEM, question], SamplingOptions(max_tokens=150, min_tokens=150, temperature=0))
    prefill = one.model.prefill

    def spy(tokens: list[int], cache: KVCache, sequence: int) -> None:
        prefill(tokens, cache, sequence)
        windows.append((list(tokens), len(generation.token_ids) - 1))

    monkeypatch.setattr(one.model, "prefill", spy)
    "".join(generation)
    beginning = one.tokenizer.encode_chat("<|endoftext|>system: Be brief.\nuser: ")
    other = chat_tokens(one.tokenizer, [*SYSTEM, {"role": "user", "content": "Zebra"}])
    assert other[: len(beginning)] == beginning and len(windows) > 3
    for window, end in windows:
        assert window[: len(beginning)] == beginning and len(window) < 64
        assert window[len(beginning) :] == generation.token_ids[end - len(window) + len(beginning) : end]


def prompt_of(generation: Generation) -> list[int]:
    return generation.token_ids[: generation.prompt_tokens]


def test_a_chat_model_whose_user_asks_for_no_chat_is_told_so_once(tmp_path: Path, capsys) -> None:
    one = generator(64)
    checkpoint.save(tiny_model(vocab_size=one.tokenizer.vocab_size, context_length=64), one.tokenizer, tmp_path)
    says(tmp_path, temperature=0)
    command = ["predict", "The river", "--model", str(tmp_path), "--max-tokens", "4"]
    for options, times in (([], 1), (["--num-outputs", "2"], 1), (["--chat"], 0), (["--system", "Be brief."], 0)):
        assert main([*command, *options]) == 0
        assert capsys.readouterr().err.count(CHAT_HINT) == times, options
