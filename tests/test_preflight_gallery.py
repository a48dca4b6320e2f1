"""Preflight fails no right run of the gallery, names each planted mistake, and then stops the run or warns."""

import logging
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from preflight_gallery import Case, Mistake, examine, foreign, mistakes, ordinary, prose, unsaid, wrong

from transformer.data.batches import IGNORE_INDEX, Batch
from transformer.data.tokenize import TokenStream
from transformer.errors import ConfigError, PreflightError
from transformer.preflight.places import Rows, places
from transformer.training import memory_limits
from transformer.training.options import parse
from transformer.training.run import train
from transformer.training.train_config import TrainConfig

ORDINARY, MISTAKES = ordinary(), mistakes()
# Of these the complete preflight is made; of all others the checks of text and batches.
COMPLETE = ("python, a token for each space", "conversations", "streamed rows")
BY_NAME = {case.name: case for case in ORDINARY}


def needed(case: Case) -> None:
    if case.foreign and not foreign(case.foreign).exists():
        pytest.skip("needs the shared data folder beside the checkout")


def test_the_gallery_is_large_and_its_names_are_its_own() -> None:
    assert len({case.name for case in ORDINARY}) == len(ORDINARY) >= 100
    assert len({mistake.name for mistake in MISTAKES}) == len(MISTAKES) >= 25


@pytest.mark.parametrize("case", ORDINARY, ids=lambda case: case.name)
def test_nothing_is_said_of_a_text_that_is_not_so(case: Case, tmp_path: Path) -> None:
    needed(case)
    assert wrong(case, examine(case, tmp_path)) == []


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_planted_mistake_is_named_by_its_cause(mistake: Mistake, tmp_path: Path) -> None:
    needed(mistake.case)
    assert unsaid(mistake, examine(mistake.case, tmp_path, mistake=mistake)) == []


@pytest.mark.parametrize("name", COMPLETE)
def test_no_check_at_all_fails(name: str, tmp_path: Path) -> None:
    case = BY_NAME[name]
    assert wrong(case, examine(case, tmp_path, complete=True)) == []


@pytest.mark.parametrize("name", ["batches without targets", "nothing is learned"])
def test_batches_without_targets_have_no_other_cause(name: str, tmp_path: Path) -> None:
    mistake = next(mistake for mistake in MISTAKES if mistake.name == name)
    report = examine(mistake.case, tmp_path, True, mistake)
    assert "something to learn" in {check.name for check in report.failed}
    assert {check.name for check in report.failed} <= {"something to learn", "rows in the text"}, report.table()


def test_a_model_is_tried_with_a_batch_that_has_targets(tmp_path: Path) -> None:
    case = BY_NAME["long prompts"]
    report = examine(Case("few targets", case.text, ".jsonl", dict(batch_size=1)), tmp_path, complete=True)
    assert not report.failed, report.table()
    assert next(check.verdict for check in report.checks if check.name == "something to learn") == "warn"


# ---- rows in a text of few different tokens ----


def rows_of(tokens: np.ndarray, starts: list[int], length: int) -> Rows:
    inputs = torch.from_numpy(np.stack([tokens[start : start + length] for start in starts]).astype(np.int64))
    targets = torch.from_numpy(np.stack([tokens[start + 1 : start + length + 1] for start in starts]).astype(np.int64))
    return Rows.of([Batch(inputs, targets, torch.zeros_like(inputs))])


def stream_of(tokens: np.ndarray, learned: np.ndarray | None = None) -> TokenStream:
    return TokenStream(tokens, learned, np.array([0]), len(tokens))


def test_each_row_is_found_in_a_large_text_of_few_different_tokens() -> None:
    chance = np.random.default_rng(0)
    tokens = chance.choice(40, 1_500_000, p=np.geomspace(1, 1e-3, 40) / np.geomspace(1, 1e-3, 40).sum()).astype(
        np.uint16
    )
    starts = chance.integers(0, len(tokens) - 65, 64).tolist()
    found = places(rows_of(tokens, starts, 64), stream_of(tokens), {0})
    assert found.exact.all() and found.offsets.tolist() == starts and not found.padding.any()


def test_runs_are_text_where_the_text_has_them_and_padding_where_it_has_not() -> None:
    chance = np.random.default_rng(0)
    tokens = chance.integers(10, 200, 5000).astype(np.uint16)
    tokens[1000:1040] = 5
    found = places(rows_of(tokens, [1000, 1020, 990], 32), stream_of(tokens), {0})
    assert found.exact.all() and not found.padding.any()
    tokens[1000:1040] = chance.integers(10, 200, 40)
    rows = rows_of(tokens, [2000, 3000, 100], 32)
    rows.inputs[0, :9], rows.inputs[1, -9:], rows.inputs[2, :2] = 5, 5, 0
    found = places(rows, stream_of(tokens), {0})
    assert found.exact.all() and found.offsets.tolist() == [2000, 3000, 100]
    assert found.padding.sum(axis=1).tolist() == [9, 9, 2]


def test_of_many_places_that_is_taken_which_is_learned_as_the_row_is() -> None:
    tokens = np.tile(np.arange(10, dtype=np.uint16), 20_000)
    learned = np.zeros(len(tokens), bool)
    learned[150_005:150_009] = True
    rows = rows_of(tokens, [150_000], 20)
    rows.targets[0, ~learned[150_001:150_021]] = IGNORE_INDEX
    found = places(rows, stream_of(tokens, learned), {99})
    assert found.offsets.tolist() == [150_000] and found.count[0] > 10_000


def test_looking_rows_up_in_a_text_of_one_token_takes_no_time() -> None:
    tokens = np.full(400_000, 7, np.uint16)
    rows = rows_of(tokens, list(range(0, 64 * 100, 100)), 64)
    begin = time.process_time()
    found = places(rows, stream_of(tokens), {0})
    assert found.exact.all() and not found.padding.any() and time.process_time() - begin < 10


# ---- stop, warn or off ----


def config(folder: Path, **options: object) -> TrainConfig:
    """A run that fails: each of its lines ends with [SEP]."""
    text = "".join(f"{word} {number} [SEP]\n" for number, word in enumerate(prose(60).split()))
    return Case("[SEP]", text, options=dict(max_steps=1, **options)).config(folder)


def test_a_failed_check_stops_or_warns_as_asked(tmp_path: Path, caplog) -> None:
    with pytest.raises(PreflightError, match=r"\[SEP\].*--preflight warn trains all the same"):
        train(config(tmp_path / "stop"))
    with caplog.at_level(logging.WARNING, "transformer"):
        assert train(config(tmp_path / "warn", preflight="warn")).step == 1
    assert any("[SEP]" in record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    caplog.clear()
    assert train(config(tmp_path / "off", preflight="off")).step == 1
    assert not any("markers" in record.getMessage() for record in caplog.records)


def test_the_option_is_read_from_command_lines_and_files(tmp_path: Path) -> None:
    assert parse(["--data", "x"]).run.preflight == "stop"
    assert parse(["--data", "x", "--preflight", "warn"]).run.preflight == "warn"
    for written, value in (("off", "off"), ("false", "off"), ("warn", "warn"), ("'off'", "off"), ("true", "stop")):
        (tmp_path / "run.yaml").write_text(f"data: x\npreflight: {written}\n")
        assert parse(["--config", str(tmp_path / "run.yaml")]).run.preflight == value
    (tmp_path / "run.yaml").write_text("data: x\npreflight: maybe\n")
    with pytest.raises(ConfigError, match=r"stop, warn, off, not 'maybe'"):
        parse(["--config", str(tmp_path / "run.yaml")])
    with pytest.raises(ConfigError, match="--preflight off"):
        parse(["--data", "x", "--no-preflight"])


def test_memory_that_holds_files_is_free() -> None:
    v2 = "inactive_file 40\nactive_file 30\n"
    v1 = "inactive_file 1\ntotal_inactive_file 40\nactive_file 1\ntotal_active_file 2\n"
    assert memory_limits.file_cache_bytes("anon 100\nfile 70\n" + v2) == 70
    assert memory_limits.file_cache_bytes(v1) == 42
