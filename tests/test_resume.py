"""A run that is stopped, killed or damaged ends as the run that was not."""

import json
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from commands import start_training
from models import SENTENCES

from transformer.errors import CheckpointError, ConfigError, TransformerError
from transformer.hub import checkpoint
from transformer.training import run_state
from transformer.training.interrupt import Interrupted
from transformer.training.run import train
from transformer.training.step import StepMetrics, TrainStep
from transformer.training.train_config import RENAMED, TrainConfig

SMALL = dict(
    vocab_size=300,
    context_length=16,
    d_model=32,
    n_layers=2,
    batch_size=4,
    gradient_accumulation_steps=2,
    dropout=0.1,
    precision="fp32",
    optimizer="muon",
    max_steps=24,
    validate_every=6,
    checkpoint_every=4,
    preflight="off",
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": sentence}) + "\n" for sentence in SENTENCES * 6))
    return str(path)


@pytest.fixture(scope="module")
def whole(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that nothing happened to."""
    out = tmp_path_factory.mktemp("whole")
    train(TrainConfig.from_options(data=corpus, output=str(out), **SMALL))
    return out


@pytest.fixture
def ended(corpus: str, whole: Path, tmp_path: Path) -> TrainConfig:
    """A run that has ended, as a copy of `whole` that a test may change."""
    out = tmp_path / "ended"
    shutil.copytree(whole, out)
    return TrainConfig.from_options(data=corpus, output=str(out), **SMALL)


def assert_same(left: Path, right: Path) -> None:
    """The same weights to the bit, the best and the last, and the same numbers on the way."""
    assert (left / "model.safetensors").read_bytes() == (right / "model.safetensors").read_bytes()
    last = [run_state.load(folder / "checkpoints") for folder in (left, right)]
    assert last[0].tensors.keys() == last[1].tensors.keys()
    assert all(torch.equal(last[0].tensors[name], last[1].tensors[name]) for name in last[0].tensors)
    numbers = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (left, right)
    ]
    for lines in numbers:
        for line in lines:
            for timed in ("seconds", "training_seconds", "tokens_per_second", "model_flop_utilisation"):
                line.pop(timed, None)
    assert numbers[0] == numbers[1]


@contextmanager
def before_step(number: int, happens: Callable[[], None]) -> Iterator[None]:
    """Within it something happens just before the step of this number is made."""
    make = TrainStep.run

    def step(self: TrainStep, now: int) -> StepMetrics:
        if now == number:
            happens()
        return make(self, now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "run", step)
        yield


@pytest.mark.parametrize("stops_at", [1, 4, 5, 11, 23])
def test_stopped_anywhere_it_ends_the_same(stops_at: int, corpus: str, whole: Path, tmp_path: Path) -> None:
    config = TrainConfig.from_options(data=corpus, output=str(tmp_path), **SMALL)
    with (
        before_step(stops_at, lambda: os.kill(os.getpid(), signal.SIGTERM)),
        pytest.raises(Interrupted, match=f"after step {stops_at}") as stopped,
    ):
        train(config)
    assert stopped.value.signal == signal.SIGTERM
    torch.rand(7)  # whatever else drew random numbers in between
    train(config)
    assert_same(tmp_path, whole)


# As a checkpoint of version 0.1 has them: without groups, under earlier names, and without options that came later.
SAVED_OPTIONS = json.loads("""{
    "data": "corpus.jsonl", "data_config": null, "clean": null, "validation_data": null, "stream": false,
    "window_stride": null, "prompt_share": 0.0, "separate_documents": false, "tokenizer": null, "vocab_size": 300,
    "whole_tokens": [], "init_from": null, "embeddings_from": null, "start_from_bigrams": false,
    "freeze_embeddings": false, "preset": "modern", "context_length": 16, "d_model": 32, "n_layers": 2, "n_heads": 4,
    "n_kv_heads": null, "d_feed_forward": null, "tie_embeddings": null, "dropout": 0.1, "batch_size": 4,
    "accumulate": 2, "optimizer": "muon", "learning_rate": 0.002, "embedding_learning_rate": null,
    "schedule": "cosine", "warmup": 0.05, "final_learning_rate": 0.05, "weight_decay": 0.1, "beta2": 0.95,
    "ema_decay": null, "clip": 1.0, "max_loss": null, "validation_windows": 64, "seed": 0
}""")


def test_a_run_saved_by_an_earlier_version_goes_on(corpus: str, whole: Path, tmp_path: Path) -> None:
    config = TrainConfig.from_options(data=corpus, output=str(tmp_path), **SMALL)
    with before_step(9, lambda: os.kill(os.getpid(), signal.SIGTERM)), pytest.raises(Interrupted):
        train(config)
    state = run_state.load(config.run.checkpoints)
    state.facts["run"] = SAVED_OPTIONS
    run_state.remove(config.run.checkpoints)
    run_state.save(config.run.checkpoints, state.facts["progress"]["step"], state, keep=1)
    for option, before, now in (
        ("max_grad_norm", "1.0", 0.5),
        ("text_column", "None", "text"),
        ("short_window_share", "0.0", 0.5),
    ):
        with pytest.raises(ConfigError, match=rf"holds a run with {option} {before}, not '?{now}'?"):
            changed = {option: now} if option != "short_window_share" else {option: now, "short_window_length": 8}
            train(config.with_options(**changed))
    train(config)
    assert_same(tmp_path, whole)


def test_what_a_resumed_run_may_not_change() -> None:
    later = {"text_column", "max_documents", "short_window_share", "short_window_length"}
    fixed = TrainConfig.from_options(data="x").identity()
    assert fixed.keys() == {RENAMED.get(name, name) for name in SAVED_OPTIONS} | later
    moved = TrainConfig.from_options(data="/there/x", tokenizer="/a/t", whole_tokens=("a",)).identity()
    assert (moved["data"], moved["tokenizer"], moved["whole_tokens"]) == ("x", "t", ["a"])


def power_fails() -> None:
    raise RuntimeError("power is gone")


@pytest.mark.parametrize("dies_at", [3, 9, 22])
def test_lost_between_checkpoints_it_ends_the_same(dies_at: int, corpus: str, whole: Path, tmp_path: Path) -> None:
    config = TrainConfig.from_options(data=corpus, output=str(tmp_path), **SMALL)
    with before_step(dies_at, power_fails), pytest.raises(RuntimeError, match="power"):
        train(config)
    train(config)
    assert_same(tmp_path, whole)


def test_a_restart_that_is_lost_leaves_nothing_of_the_old_run_to_go_on_from(ended: TrainConfig, monkeypatch) -> None:
    other = ended.with_options(vocab_size=320)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power"):
        patch.setattr("transformer.training.run_components.tokenized", lambda *arguments: power_fails())
        train(other.with_options(restart=True))
    assert train(other).step == 24
    assert checkpoint.load_model(other.run.output).config.vocab_size == 320


def test_a_run_goes_on_with_another_folder_of_tokens(corpus: str, tmp_path: Path) -> None:
    for steps, cache in ((4, "one"), (8, "two")):
        options = {**SMALL, "max_steps": steps, "token_cache": str(tmp_path / cache)}
        assert train(TrainConfig.from_options(data=corpus, output=str(tmp_path / "out"), **options)).step == steps


def test_killed_at_any_moment_it_ends_the_same(corpus: str, whole: Path, tmp_path: Path) -> None:
    """The real command line, killed with SIGKILL again and again while it trains and saves."""
    values = {name: value for name, value in SMALL.items() if name != "preflight"}
    options = ["--preflight", "off", *(f"--{name.replace('_', '-')}={value}" for name, value in values.items())]
    arguments = ["--data", corpus, "--output", str(tmp_path), *options]
    metrics, chance = tmp_path / "metrics.jsonl", random.Random(0)
    for _ in range(4):
        run = start_training(arguments)
        size, patience = metrics.stat().st_size if metrics.exists() else 0, time.monotonic() + 200
        while run.is_alive() and time.monotonic() < patience:  # until it trains, and then a little
            if metrics.exists() and metrics.stat().st_size != size:
                break
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.15))
        run.kill()
        run.join()
    last = start_training(arguments)
    last.join()
    assert last.exitcode == 0
    assert_same(tmp_path, whole)
    assert not list(tmp_path.rglob("*.partial"))


def test_ctrl_c_saves_and_says_how_to_go_on(corpus: str, tmp_path: Path) -> None:
    options = ["--vocab-size=300", "--context-length=16", "--d-model=32", "--n-layers=1", "--max-epochs=10000"]
    run = start_training(["--data", corpus, "--output", str(tmp_path), *options], errors=tmp_path / "errors")
    deadline = time.monotonic() + 200
    while not (tmp_path / "metrics.jsonl").exists() or not (tmp_path / "metrics.jsonl").stat().st_size:
        assert time.monotonic() < deadline and run.is_alive()
        time.sleep(0.05)
    os.kill(run.pid, signal.SIGINT)
    run.join(200)
    error = (tmp_path / "errors").read_text()
    assert run.exitcode == 130
    assert "stopped after step" in error and "Traceback" not in error
    assert run_state.load(tmp_path / "checkpoints").facts["progress"]["step"] > 0


@pytest.mark.parametrize("damage", ["torn", "flipped", "empty"])
def test_a_damaged_checkpoint_is_known_and_the_one_before_it_used(
    damage: str, ended: TrainConfig, whole: Path, caplog
) -> None:
    newest = max(ended.run.checkpoints.glob("step-*"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes({"torn": newest.read_bytes()[:-100], "flipped": bytes(content), "empty": b""}[damage])
    train(ended)
    assert "damaged" in caplog.text and newest.name in caplog.text
    assert_same(Path(ended.run.output), whole)


def test_the_last_checkpoints_are_kept(whole: Path) -> None:
    kept = sorted(int(path.name.split("-")[1]) for path in (whole / "checkpoints").glob("step-*"))
    assert kept == [20, 24]


def test_a_finished_run_is_not_trained_again_and_a_longer_budget_goes_on(ended: TrainConfig) -> None:
    model = Path(ended.run.output, "model.safetensors")
    weights = model.read_bytes()
    assert train(ended).step == 24
    assert model.read_bytes() == weights
    assert train(ended.with_options(max_steps=30, resume=True)).step == 30


def test_another_run_is_not_mixed_with_this_one(ended: TrainConfig, whole: Path, tmp_path: Path) -> None:
    other = ended.with_options(learning_rate=0.01)
    with pytest.raises(ConfigError, match=r"learning_rate 0\.002, not 0\.01"):
        train(other)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        train(ended.with_options(output=str(tmp_path / "new"), resume=True))
    assert train(other.with_options(restart=True)).step == 24
    train(ended.with_options(restart=True))
    assert_same(Path(ended.run.output), whole)


def test_a_full_disk_is_said_and_the_last_good_checkpoint_stays(corpus: str, tmp_path: Path) -> None:
    config = TrainConfig.from_options(data=corpus, output=str(tmp_path), **{**SMALL, "max_steps": 4})
    train(config)
    before = run_state.load(tmp_path / "checkpoints")
    size = max((tmp_path / "checkpoints").glob("step-*")).stat().st_size
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limit[1]))  # no file may be larger: as good as a full disk
    try:
        with pytest.raises(TransformerError, match="step 8 cannot be written"):
            train(
                TrainConfig.from_options(
                    data=corpus, output=str(tmp_path), **{**SMALL, "max_steps": 24, "validate_every": 100}
                )
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    after = run_state.load(tmp_path / "checkpoints")
    assert after.facts == before.facts and not list(tmp_path.rglob("*.partial"))
    assert checkpoint.load_model(tmp_path).config.n_layers == 2
