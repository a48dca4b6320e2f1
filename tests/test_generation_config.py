"""What a model says of how it is sampled and where its texts end, and what a user says to that."""

import json
from pathlib import Path

import pytest
import torch
from models import tiny_model, tiny_model_directory, tiny_tokenizer

from transformer.cli import main
from transformer.data.tokenizer import Tokenizer
from transformer.errors import CheckpointError, ConfigError
from transformer.hub.generation_config import read_sampling
from transformer.inference import Generator, SamplingOptions, combine_settings
from transformer.inference.sampling import MODEL_SETTINGS


def says(folder: Path, name: str = "generation_config.json", **fields: object) -> Path:
    path = folder / name
    folder.mkdir(exist_ok=True)
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() and name != "generation_config.json" else {}
    path.write_text(json.dumps({**kept, **fields}), encoding="utf-8")
    return folder


def test_every_end_of_a_text_ends_it_wherever_it_is_named(tmp_path: Path) -> None:
    tiny_model_directory(tmp_path)
    says(tmp_path, eos_token_id=[5, 6])
    says(tmp_path, "config.json", eos_token_id=7)
    says(tmp_path, "tokenizer_config.json", eos_token="<|endoftext|>", eot_token={"content": "<|pad|>"})
    assert Tokenizer.load(tmp_path).end_ids == {0, 1, 5, 6, 7}
    says(tmp_path, "tokenizer_config.json", eot_token=7)
    says(tmp_path, "config.json", eos_token_id=None)
    says(tmp_path, eos_token_id=None)
    assert Tokenizer.load(tmp_path).end_ids == {0}


@pytest.mark.parametrize(
    ("fields", "settings"),
    [
        ({}, {}),
        ({"temperature": 0.6, "top_p": 0.9, "do_sample": True}, {"temperature": 0.6, "top_p": 0.9}),
        ({"do_sample": False, "temperature": 0.6, "top_k": 20.0}, {"temperature": 0, "top_k": 20}),
        ({"temperature": None, "min_p": 0.1, "repetition_penalty": 1}, {"min_p": 0.1, "repetition_penalty": 1}),
    ],
)
def test_the_settings_of_a_model_come_before_the_defaults(fields: dict, settings: dict, tmp_path: Path) -> None:
    assert read_sampling(tmp_path / "empty") == {}
    assert read_sampling(says(tmp_path, **fields)) == settings
    options, _ = combine_settings(settings, {})
    assert options == SamplingOptions(**settings)


def test_the_settings_of_a_user_come_before_those_of_a_model() -> None:
    options, text = combine_settings({"temperature": 0.6, "top_k": 20}, {"temperature": 0.0, "seed": 3})
    assert options == SamplingOptions(temperature=0.0, top_k=20, seed=3)
    assert text == (
        "sampling: temperature 0 (user), top_k 20 (model), top_p 0.95 (default), min_p 0 (default), "
        "repetition_penalty 1 (default)"
    )
    with pytest.raises(ConfigError, match="top_p must be between"):
        combine_settings({"top_p": 0.5}, {"top_p": 2})


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"temperature": "hot"}, r"generation_config.json: temperature is 'hot', expected a number"),
        ({"top_p": True}, "top_p is True, expected a number"),
        ({"top_k": 1.5}, "top_k is 1.5, expected a whole number"),
        ({"top_k": -1}, r"generation_config.json: top_k must be between 0 and .* Correct or remove it there"),
        ({"temperature": float("nan")}, "temperature must be between"),
        ({"top_k": float("inf")}, "top_k is inf, expected a whole number"),
    ],
)
def test_a_setting_that_cannot_be_is_named(fields: dict, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        read_sampling(says(tmp_path, **fields))


def test_settings_that_are_not_computed_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_sampling(says(tmp_path, num_beams=1, no_repeat_ngram_size=0, typical_p=1.0, suppress_tokens=None))
    assert not caplog.records
    read_sampling(says(tmp_path, num_beams=4, no_repeat_ngram_size=3))
    assert "says num_beams, no_repeat_ngram_size, which is not computed here" in caplog.text


def test_the_command_line_uses_them_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = says(tiny_model_directory(tmp_path), temperature=0.0, repetition_penalty=1.2)
    command = ["predict", "The", "--model", str(folder), "--max-tokens", "20", "--dtype", "fp32"]
    generator = Generator(tiny_model(vocab_size=tiny_tokenizer().vocab_size), tiny_tokenizer())
    for given, settings in (([], {}), (["--repetition-penalty", "1"], {"repetition_penalty": 1.0})):
        assert main([*command, *given]) == 0
        options = SamplingOptions(**{"max_tokens": 20, "temperature": 0, "repetition_penalty": 1.2, **settings})
        captured = capsys.readouterr()
        assert captured.out == "The" + "".join(generator.generate("The", options)) + "\n"
        source = "user" if given else "model"
        penalty = options.repetition_penalty
        assert captured.err.startswith("sampling: temperature 0 (model), top_k 50 (default), ")
        assert captured.err.endswith(f"repetition_penalty {penalty:g} ({source})\n")


def test_what_training_writes_is_what_a_model_says(tmp_path: Path) -> None:
    assert set(read_sampling(tiny_model_directory(tmp_path))) == set(MODEL_SETTINGS) - {"min_p"}


@pytest.mark.parametrize("temperature", [0.0, 5.0])
def test_ids_without_a_token_are_never_sampled(temperature: float) -> None:
    tokenizer = tiny_tokenizer()
    size = tokenizer.vocab_size
    model = tiny_model(vocab_size=size + 40, tie_embeddings=False)
    assert tokenizer.ids_without_token(size + 40) == list(range(size, size + 40))
    with torch.no_grad():
        model.head.weight[size:] *= 30  # by itself it would say little else
    generator = Generator(model, tokenizer)
    options = SamplingOptions(max_tokens=30, min_tokens=30, temperature=temperature, top_k=0, top_p=1, seed=0)
    generation = generator.generate("The river", options)
    "".join(generation)
    assert generation.completion_tokens == 30
    assert max(generation.token_ids) < size
    generator.generate_batch(["The", "A"], options)
    generator.excluded = []
    unguarded = generator.generate("The river", options)
    "".join(unguarded)
    assert max(unguarded.token_ids) >= size
