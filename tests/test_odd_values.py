"""Values of options that cannot work: each is refused by a sentence."""

import pytest

from transformer.device import pick_device
from transformer.errors import ConfigError
from transformer.hub.card import command_line
from transformer.training.config import TrainConfig


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
