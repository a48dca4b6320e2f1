"""Steps without targets change nothing; how much a text with prompts leaves unlearned is said."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from models import SENTENCES, tiny_model_directory

from transformer.data.batches import IGNORE_INDEX, Windows, validation_batches, with_targets
from transformer.data.conversation import CHAT_TEMPLATE
from transformer.data.tokenize import TokenStream
from transformer.data.tokenizer import Tokenizer
from transformer.errors import ConfigError
from transformer.training import run_state
from transformer.training.run import train
from transformer.training.targets import coverage
from transformer.training.train_config import TrainConfig

SMALL = dict(vocab_size=300, context_length=16, d_model=16, n_layers=1, batch_size=1, precision="fp32", preflight="off")


def stream(*documents: tuple[int, int]) -> TokenStream:
    """Documents of this many tokens of a prompt and of a completion, each after an end-of-text token."""
    learned, starts = [], []
    for prompt, completion in documents:
        starts.append(len(learned))
        learned += [bool(learned) and learned[-1]] + [False] * prompt + [True] * completion
    return TokenStream(np.arange(len(learned)) % 300, np.array(learned), np.array(starts), 0)


@pytest.mark.parametrize("stride", [None, 3])
@pytest.mark.parametrize("span", [None, (5, 41)])
def test_what_is_counted_is_what_the_windows_hold(stride: int | None, span: tuple[int, int] | None) -> None:
    windows = Windows(stream((20, 3), (2, 2), (30, 1), (1, 9), (9, 1)), 8, span=span, stride=stride)
    batch = windows.batch(range(len(windows)))
    full = [i for i, row in enumerate(batch.targets) if bool((row != IGNORE_INDEX).any())]
    assert with_targets(windows).tolist() == full and len(full) < len(windows)
    found = coverage(windows)
    assert (found.windows, found.empty) == (len(windows), len(windows) - len(full))


def test_completions_without_their_prompts_are_counted() -> None:
    # Windows of 8: the first prompt alone is longer; the second pair is in one window; the third is parted by an end.
    found = coverage(Windows(stream((20, 3), (2, 2), (6, 3)), 8))
    assert (found.completions, found.cut) == (3, 2)
    assert "2 of 3 completions (67%)" in found.warnings(8)[-1]
    # Windows that overlap by all but one token hold all that fit into one.
    assert coverage(Windows(stream((20, 3), (2, 2), (6, 3)), 8, stride=1)).cut == 1
    assert coverage(Windows(stream((0, 9)), 8)).warnings(8) == []


def test_validation_looks_at_windows_that_have_targets() -> None:
    windows = Windows(stream(*[(60, 3)] * 6), 8)
    rows = validation_batches(windows, 4, 2)
    assert sum(len(batch.inputs) for batch in rows) == 4
    assert all(bool((row != IGNORE_INDEX).any()) for batch in rows for row in batch.targets)


def prompts(path: Path, pairs: list[tuple[str, str]]) -> str:
    path.write_text("".join(json.dumps({"prompt": prompt, "completion": text}) + "\n" for prompt, text in pairs))
    return str(path)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_without_targets_changes_nothing_and_is_no_loss(
    optimizer: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = prompts(tmp_path / "data.jsonl", [(SENTENCES[i % 4] * 6, "Yes.") for i in range(8)])
    out = tmp_path / "out"
    caplog.set_level(logging.INFO, "transformer")
    options = dict(optimizer=optimizer, checkpoint_every=1, keep_checkpoints=1000, validate_every=1000)
    progress = train(TrainConfig.from_options(data, str(out), max_steps=40, **options, **SMALL))
    steps = {line["step"]: line for line in map(json.loads, (out / "metrics.jsonl").open()) if "loss" in line}
    assert progress.step == 40 and 0 < len(steps) < 40
    assert all(line["loss"] > 0 for line in steps.values())
    files = {int(path.name.split("-")[1]): path for path in (out / "checkpoints").glob("step-*")}
    changed = []
    for number in range(2, 41):
        before, after = (run_state.safe_open(files[n], framework="pt") for n in (number - 1, number))
        names = set(after.keys())
        same = names == set(before.keys()) and all(
            torch.equal(before.get_tensor(n), after.get_tensor(n)) for n in names
        )
        if not same:
            changed.append(number)
    assert changed == [number for number in steps if number > 1]
    assert caplog.text.count("have nothing to learn") == 1
    assert caplog.text.count("completions (100%) are not in one window of 16 tokens with their full prompt") == 1
    assert f"{40 - len(steps)} steps had nothing to learn" in caplog.text


def test_a_text_of_prompts_alone_is_refused_instead_of_a_run_without_an_end(tmp_path: Path) -> None:
    data = prompts(tmp_path / "data.jsonl", [("The river " * 50, "x")])
    with pytest.raises(ConfigError, match="nothing to learn in the training text"):
        train(TrainConfig.from_options(data, str(tmp_path / "out"), max_tokens=1000, **SMALL))


def test_the_held_out_part_has_something_to_learn(tmp_path: Path) -> None:
    pairs = [(SENTENCES[i % 4], SENTENCES[(i + 1) % 4]) for i in range(8)]
    data = prompts(tmp_path / "data.jsonl", [*pairs, ("The river " * 200, "x")][::-1])
    assert train(TrainConfig.from_options(data, str(tmp_path / "out"), max_steps=2, **SMALL)).step == 2
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b" * 20}]}] * 4
    rows[-1] = {"messages": [*rows[0]["messages"], {"role": "user", "content": "The river " * 300}]}
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert train(TrainConfig.from_options(str(path), str(tmp_path / "out2"), max_steps=2, **SMALL)).step == 2


# ---- the chat template ----


@pytest.mark.parametrize(
    ("own", "said"), [("{{ messages[0]['content'] }}!", True), (CHAT_TEMPLATE, False), (None, False)]
)
def test_the_template_is_the_format_that_was_learned_and_a_replacement_is_said(
    own: str | None, said: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = tiny_model_directory(tmp_path / "base", context_length=64)
    tokenizer = Tokenizer.load(base)
    tokenizer.chat_template = own
    tokenizer.save(base)
    messages = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": SENTENCES[0]}]
    chats = tmp_path / "chats.jsonl"
    chats.write_text(json.dumps({"messages": messages}) + "\n" + json.dumps({"messages": messages}) + "\n")
    options = dict(init_from=str(base), max_steps=1, preflight="off")
    train(TrainConfig.from_options(str(chats), str(tmp_path / "out"), **options))
    assert Tokenizer.load(tmp_path / "out").chat_template == CHAT_TEMPLATE
    assert ("chat template is replaced" in caplog.text) == said
    # What has no conversations leaves the template of the model alone.
    data = prompts(tmp_path / "data.jsonl", [("Where?", text) for text in SENTENCES])
    train(TrainConfig.from_options(data, str(tmp_path / "plain"), **options))
    assert Tokenizer.load(tmp_path / "plain").chat_template == own
