"""Values of options that cannot work: each is refused by a sentence."""

from pathlib import Path

import pytest
import torch

from transformer.device import pick_device
from transformer.errors import ConfigError, TransformerError
from transformer.model import Transformer
from transformer.reporting.model_card import command_line
from transformer.training.memory_limits import check_memory
from transformer.training.options import parse
from transformer.training.run import train
from transformer.training.train_config import TrainConfig


@pytest.mark.parametrize(
    "option", [{"short_window_length": 0}, {"short_window_length": -1}, {"push_to": ""}, {"push_to": " "}]
)
def test_a_value_that_cannot_work_is_refused_by_its_name(option: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(option))):
        TrainConfig.from_options("my.txt", **option)


def test_a_device_that_computes_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="computes nothing"):
        pick_device("meta")


def test_a_value_too_long_for_a_file_name_stands_in_the_command() -> None:
    assert command_line({"sample_prompt": "a" * 500}) == f"python train.py --sample-prompt {'a' * 500}"


@pytest.mark.parametrize(
    "content",
    [
        "seed: .inf",
        "max-steps: 2020-13-45",
        f"seed: {'9' * 5000}",
        f"learning-rate: {'9' * 400}",
        "a: " + 3000 * "[",
        "clean: wiki",
        "data: null",
        "preset: [modern]",
        "output: {a: 1}",
        "push-to: true",
        "learning-rate: .nan",
        "learning-rate: true",
        "",
        "output: 2020-01-01",
    ],
)
def test_odd_values_in_a_file_are_a_sentence(content: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError) as refusal:
        parse(["--config", str(tmp_path / "run.yaml"), *([] if content == "data: null" else ["--data", "x.txt"])])
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize("name", ["d_model", "n_layers", "context_length", "d_feed_forward"])
@pytest.mark.parametrize("size", [10**9, 2**62, 2**64])
@pytest.mark.parametrize("preset", ["modern", "gpt2", "paper"])
def test_a_model_that_no_memory_holds_is_refused_before_it_is_built(name: str, size: int, preset: str) -> None:
    sizes = {**dict(d_model=16, n_layers=1, n_heads=2, n_kv_heads=2, context_length=16), name: size}
    config = TrainConfig.from_options("x.txt", preset=preset, **sizes).model.architecture(300)
    with pytest.raises(ConfigError, match="a model of this size needs"):
        check_memory(config, torch.device("cpu"))


def test_a_model_that_fits_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig.from_options("x.txt").model.architecture(8192)
    check_memory(config, torch.device("cpu"))
    model = Transformer(config)
    numbers = model.parameter_count() + sum(buffer.numel() for buffer in model.buffers())
    monkeypatch.setattr("transformer.training.memory_limits.free_bytes", lambda device: 8.0 * numbers)
    check_memory(config, torch.device("cpu"))
    monkeypatch.setattr("transformer.training.memory_limits.free_bytes", lambda device: 8.0 * numbers - 1)
    with pytest.raises(ConfigError, match="and 0 GB are free"):
        check_memory(config, torch.device("cpu"))


@pytest.mark.parametrize("option", [{"sample_prompt": "a\udcff"}, {"whole_tokens": ("<unk>", "\udcff")}])
def test_bytes_that_are_not_utf8_are_refused_at_the_start(option: dict) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(option))} has bytes that are not text"):
        TrainConfig.from_options("x.txt", **option)


@pytest.mark.parametrize("option", ["token_cache", "tokenizer", "init_from", "output"])
def test_a_name_too_long_for_a_file_is_a_sentence(option: str, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("The river rises in the hills. " * 60, encoding="utf-8")
    sizes = dict(d_model=16, n_layers=1, n_heads=2, context_length=16, vocab_size=300)
    if option in ("tokenizer", "init_from"):
        sizes = dict(context_length=16)
    run = dict(output=str(tmp_path / "out"), max_steps=1, preflight="off")
    with pytest.raises(TransformerError):
        train(
            TrainConfig.from_options(str(tmp_path / "x.txt"), **{**run, **sizes, option: str(tmp_path / ("n" * 300))})
        )


@pytest.mark.parametrize("content", ["null", "null\n" * 3, "[null]"])
def test_json_of_null_alone_is_a_sentence(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content, encoding="utf-8")
    with pytest.raises(TransformerError):
        train(TrainConfig.from_options(str(tmp_path / "x.json"), output=str(tmp_path / "out"), max_steps=1))
