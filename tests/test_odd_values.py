"""Values of options that cannot work: each is refused by a sentence."""

from pathlib import Path

import pytest

from transformer.device import pick_device
from transformer.errors import ConfigError
from transformer.hub.card import command_line
from transformer.training.config import TrainConfig
from transformer.training.options import parse


@pytest.mark.parametrize(
    "option", [{"short_window_length": 0}, {"short_window_length": -1}, {"push_to": ""}, {"push_to": " "}]
)
def test_a_value_that_cannot_work_is_refused_by_its_name(option: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(option))):
        TrainConfig("my.txt", **option)


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
