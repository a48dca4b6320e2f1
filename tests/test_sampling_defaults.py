"""How a text is continued where nobody says otherwise is the same wherever a model is asked."""

import inspect
import json
from pathlib import Path

import pytest
from models import tiny_model_directory

import predict
from transformer import cli
from transformer.inference import DEFAULT_SAMPLING, Generator, SamplingOptions
from transformer.inference.sampling import MODEL_SETTINGS

NAMES = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "min_tokens", "seed")
DEFAULTS = {name: getattr(DEFAULT_SAMPLING, name) for name in NAMES}


def test_over_http() -> None:
    """What a model may say itself is left to `combine_settings`."""
    inputs = inspect.signature(predict.Predictor.predict).parameters
    expected = DEFAULTS | dict.fromkeys(MODEL_SETTINGS)
    assert {name: inputs[name].default.default for name in NAMES} == expected


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tiny_model_directory(tmp_path / "model")


def test_on_the_command_line(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[SamplingOptions] = []

    def generate(self: Generator, prompt: str, options: SamplingOptions) -> list[str]:
        asked.append(options)
        return []

    monkeypatch.setattr(Generator, "generate", generate)
    assert cli.main(["predict", "--model", str(directory), "The river"]) == 0
    assert asked == [DEFAULT_SAMPLING]


def test_in_the_generation_config_of_a_saved_model(directory: Path) -> None:
    said = json.loads((directory / "generation_config.json").read_text())
    assert said["do_sample"] is True
    assert {name: said[name] for name in ("temperature", "top_k", "top_p", "repetition_penalty")} == {
        name: DEFAULTS[name] for name in ("temperature", "top_k", "top_p", "repetition_penalty")
    }
