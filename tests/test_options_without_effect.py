"""An option that would change nothing is an error that names it and says what to do."""

import json
from pathlib import Path

import pytest
import torch
from models import SENTENCES, tiny_model_directory

from transformer.cli import main
from transformer.errors import ConfigError
from transformer.hub import checkpoint
from transformer.inference import SamplingOptions
from transformer.model import PRESETS
from transformer.reporting.training_facts import TrainingFacts
from transformer.training.options import parse
from transformer.training.run import train
from transformer.training.train_config import TrainConfig


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": sentence}) + "\n" for sentence in SENTENCES * 5))
    return str(path)


@pytest.mark.parametrize(
    "option",
    [
        *(
            "--tokenizer=weights",
            "--vocab-size=8192",
            "--preset=modern",
            "--d-model=256",
            "--n-layers=6",
            "--n-heads=4",
        ),
        *("--n-kv-heads=2", "--d-feed-forward=64", "--tie-embeddings True", "--whole-tokens <unk>", "--vocab_size 300"),
    ],
)
def test_what_the_model_decides_is_refused_even_at_its_default(option: str) -> None:
    name = option.replace("_", "-").partition("=")[0].split()[0]
    with pytest.raises(ConfigError, match=rf"{name} has no effect with --init-from.*Leave it out, or leave out --init"):
        parse(["--data", "x", "--init-from", "weights", *option.split()])


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ("--stream --window-stride=512", "--window-stride has"),
        ("--stream --prompt-share=0", "--prompt-share has"),
        ("--stream --token-cache=x --clean wikipedia", "--token-cache and --clean have"),
        ("--tokenizer=t --vocab-size=300 --whole-tokens a", "--vocab-size and --whole-tokens have"),
        ("--stream --max-documents=3 --short-window-share=0.5", "--max-documents and --short-window-share have"),
        ("--short-window-length=64", "--short-window-length has"),
        ("--short-window-share=0.5 --window-stride=64", "--window-stride has"),
        ("--decay-ratio=0.3", "--decay-ratio has"),
        ("--schedule=linear --decay-ratio=0.2", "--decay-ratio has"),
        ("--schedule=wsd --decay-ratio=0 --final-learning-rate=0.1", "--final-learning-rate has"),
        ("--push-public", "--push-public has"),
        ("--freeze-embeddings --embedding-learning-rate=0.1", "--embedding-learning-rate has"),
        ("--parallel=fsdp", "--parallel has"),
        (f"--data={__file__} --data-config=wikitext-2-raw-v1", "--data-config has"),
    ],
)
def test_other_options_without_effect(options: str, names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        parse(["--data", "x", *options.split()])


@pytest.mark.parametrize(
    "options",
    [
        "--init-from weights --dropout 0.1 --context-length 512 --learning-rate 0.001 --seed 0",
        "--init-from weights --tokenizer None --freeze-embeddings --no-push-public --parallel ddp",
        "--schedule wsd --decay-ratio 0.3 --final-learning-rate 0",
        "--schedule wsd --decay-ratio 0",
        "--device cuda:1",
        "--tokenizer t --preset paper --d-model 64 --n-heads 4",
        "--stream --separate-documents --max-steps 3 --price-per-hour 1",
        "--push-to a/b --push-public",
        "--preset gpt2 --freeze-embeddings --embedding-learning-rate 0.1",
        "--optimizer muon --beta2 0.9 --weight-decay 0",
    ],
)
def test_options_with_an_effect_are_taken(options: str) -> None:
    assert parse(["--data", "x", *options.split()]).text.data == "x"


def test_a_file_counts_as_given_and_the_sentence_says_so(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("data: x\nvocab_size: 8192\ntokenizer: null\n")
    with pytest.raises(ConfigError, match=r"--vocab-size \(from --config\) has no effect .* copy its file"):
        parse(["--config", str(path), "--init-from", "weights"])
    with pytest.raises(
        ConfigError, match=r"--preset \(from --config\).*have no effect with --init-from.* copy its file"
    ):
        parse(["--config", "quick", "--init-from", "weights"])
    path.write_text("data: x\nlearning_rate: 1e-4\n")
    assert parse(["--config", str(path), "--init-from", "weights"]).optimization.learning_rate == 1e-4


def test_the_library_refuses_too(corpus: str, tmp_path: Path) -> None:
    config = TrainConfig.from_options(corpus, str(tmp_path / "out"), init_from=str(tmp_path), d_model=32)
    with pytest.raises(ConfigError, match="--d-model has no effect with --init-from"):
        train(config)
    assert not (tmp_path / "out").exists()


def test_dropout_takes_effect_on_a_model_that_goes_on_and_the_card_says_it(corpus: str, tmp_path: Path) -> None:
    base = tiny_model_directory(tmp_path / "base", "gpt2")
    options = dict(init_from=str(base), batch_size=4, max_steps=2, precision="fp32", preflight="off")
    losses = []
    for dropout in (0.0, 0.5):
        out = tmp_path / str(dropout)
        train(TrainConfig.from_options(corpus, str(out), dropout=dropout, restart=True, **options))
        losses.append(json.loads((out / "metrics.jsonl").read_text().splitlines()[0])["loss"])
        assert checkpoint.load_model(out).config.dropout == dropout
        command = TrainingFacts.read(out).command
        assert f"--dropout {dropout}" in command and "--restart" not in command
    assert losses[1] > losses[0] + 0.01


def test_a_context_beyond_that_of_the_model_is_refused(corpus: str, tmp_path: Path) -> None:
    base = tiny_model_directory(tmp_path / "base", context_length=16)
    options = dict(init_from=str(base), max_steps=1, preflight="off")
    with pytest.raises(ConfigError, match="context_length 64 is more than the 16 tokens"):
        train(TrainConfig.from_options(corpus, str(tmp_path / "out"), context_length=64, **options))
    assert (
        train(TrainConfig.from_options(corpus, str(tmp_path / "out"), **options)).step == 1
    )  # the default is cut to the model's


def test_one_gpu_of_several_is_no_choice_of_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="--device has no effect in several processes"):
        parse(["--data", "x", "--device", "cuda:1"])
    assert parse(["--data", "x", "--device", "cuda"]).run.device == "cuda"


@pytest.mark.parametrize(("preset", "has_others"), [("modern", False), ("gpt2", True)])
def test_a_rate_for_embeddings_that_are_all_frozen_is_refused(
    preset: str, has_others: bool, corpus: str, tmp_path: Path
) -> None:
    """GPT-2's positions are embeddings too, and are not frozen."""
    base = tiny_model_directory(tmp_path / "base", preset)
    options = dict(init_from=str(base), context_length=16, max_steps=1, preflight="off")
    frozen = dict(freeze_embeddings=True, embedding_learning_rate=0.1)
    config = TrainConfig.from_options(corpus, str(tmp_path / "out"), **options, **frozen)
    if has_others:
        assert train(config).step == 1
    else:
        with pytest.raises(ConfigError, match="--embedding-learning-rate has no effect with --freeze-embeddings"):
            train(config)


# ---- other commands ----


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model without a chat template."""
    return str(tiny_model_directory(tmp_path_factory.mktemp("model")))


@pytest.mark.parametrize("command", ["predict", "chat"])
@pytest.mark.parametrize("option", ["--top-k=50", "--top-p=0.9", "--min-p=0", "--seed=0"])
def test_how_to_sample_has_no_effect_where_nothing_is_sampled(
    command: str, option: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--model", model, "--temperature", "0", option]) == 1
    name = option.partition("=")[0]
    assert f"{name}: no effect with --temperature 0" in capsys.readouterr().err


def test_greedy_text_takes_the_other_options(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--temperature 0 --max-tokens 3 --min-tokens 1 --repetition-penalty 1.2 --stop xx"
    assert main(["predict", "x", "--model", model, *options.split()]) == 0
    assert main(["predict", "x", "--model", model, "--max-tokens", "3", "--top-k", "50", "--seed", "0"]) == 0


@pytest.mark.parametrize("options", [["--system", "Be brief."], ["--enable-thinking"]])
def test_a_chat_without_a_template_takes_no_options_of_one(
    options: list[str], model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", "--model", model, *options]) == 1
    assert f"{options[0]} is for models with a chat template" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "conversations"])
def test_a_file_has_no_configurations(
    command: str, corpus: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"evaluate": ["--model", model, "--split", "train"], "conversations": ["--output", str(tmp_path / "o")]}
    assert main([command, "--data", corpus, "--data-config", "en", *options[command]]) == 1
    assert "is a file, which has no configurations: leave out 'en'" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--preflight=off", "--preflight=warn", "--resume", "--restart"])
def test_a_check_alone_takes_no_options_of_how_a_run_begins(
    option: str, corpus: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["preflight", "--data", corpus, option]) == 1
    assert f"{option.partition('=')[0]} has no effect on this command" in capsys.readouterr().err


# ---- values ----


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64, True, 1.0])
def test_a_seed_out_of_range_is_refused_everywhere(seed: int) -> None:
    with pytest.raises(ConfigError, match="seed must be a whole number from 0"):
        TrainConfig.from_options("x", seed=seed)
    if type(seed) is int:
        with pytest.raises(ConfigError, match="seed must be a whole number from 0"):
            SamplingOptions(seed=seed)


def test_the_largest_seed_trains(corpus: str, tmp_path: Path) -> None:
    sizes = dict(vocab_size=300, context_length=16, d_model=16, n_layers=1, n_heads=1)
    config = TrainConfig.from_options(
        corpus, str(tmp_path / "out"), seed=2**63 - 1, max_steps=2, preflight="off", **sizes
    )
    assert train(config).step == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("learning_rate", float("nan")), ("learning_rate", float("inf")), ("max_grad_norm", float("nan"))),
        *(
            ("beta2", 1.0),
            ("beta2", float("nan")),
            ("weight_decay", -0.1),
            ("dropout", 1.0),
            ("max_minutes", float("nan")),
        ),
    ],
)
def test_a_value_that_cannot_work_is_named(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        TrainConfig.from_options("x", **{name: value})


@pytest.mark.parametrize("preset", [*PRESETS, "blog"])
@pytest.mark.parametrize("n_heads", [1, 2, 3, 6])
def test_any_number_of_heads_goes_with_any_preset(preset: str, n_heads: int) -> None:
    config = TrainConfig.from_options("x", preset=preset, d_model=48, n_heads=n_heads).model.architecture(300)
    assert config.n_heads == n_heads and n_heads % config.kv_heads == 0
    if preset == "modern":
        assert config.kv_heads == (1 if n_heads % 2 else 2)


def test_a_tokenizer_beyond_the_embeddings_is_refused_at_once(corpus: str, tmp_path: Path) -> None:
    base = tiny_model_directory(tmp_path / "base")
    model, tokenizer = checkpoint.load(base)
    tokenizer.backend.add_tokens(["lobster", "tower"])
    tokenizer.save(base)
    with pytest.raises(ConfigError, match="has 302 tokens, but the model has embeddings for 300"):
        train(
            TrainConfig.from_options(corpus, str(tmp_path / "out"), init_from=str(base), max_steps=1, preflight="off")
        )
    assert torch.equal(checkpoint.load_model(base).head.weight, model.head.weight)
