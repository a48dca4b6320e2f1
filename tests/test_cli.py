"""The commands, as a person types them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from models import SENTENCES, tiny_model_directory

from transformer.cli import main
from transformer.evaluation import evaluate
from transformer.hub import checkpoint

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model_directory(tmp_path_factory.mktemp("model")))


def test_predict_prints_the_prompt_and_what_follows(model: str, capsys) -> None:
    command = ["predict", "--model", model, "--max-tokens", "20", "--seed", "0", "The river"]
    assert main(command) == 0
    first = capsys.readouterr().out
    assert first.startswith("The river") and len(first) > len("The river\n")
    assert main(command) == 0
    assert capsys.readouterr().out == first


def test_predict_prints_text_while_it_is_generated(model: str) -> None:
    command = [sys.executable, "-m", "transformer", "predict", "--model", model, "--max-tokens", "20000", "x"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(20)  # long before 20,000 tokens are there
        assert process.poll() is None
        process.kill()


def test_chat_continues_each_line(model: str, monkeypatch, capsys) -> None:
    lines = iter(["The river", "The tower", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert main(["chat", "--model", model, "--max-tokens", "5", "--seed", "0"]) == 0
    assert capsys.readouterr().out.count("Model: ") == 2


def test_evaluate_prints_what_it_measured(model: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": sentence}) + "\n" for sentence in SENTENCES))
    assert main(["evaluate", "--model", model, "--data", str(path), "--split", "train", "--stride", "8"]) == 0
    out = capsys.readouterr().out
    expected = evaluate(*checkpoint.load(model), SENTENCES, stride=8)
    assert f"{expected.bits_per_byte:.4f}" in out and "context 32, stride 8" in out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["predict", "--model", "./nowhere"], "no model"),
        (["predict", "--temperature", "-1"], "temperature"),
        (["evaluate", "--data", "./nowhere.txt"], "no file or folder"),
        (["import-original", "./nowhere.pt", "out"], "no file"),
    ],
)
def test_an_error_is_one_sentence(arguments: list[str], word: str, model: str, capsys) -> None:
    if "--model" not in arguments and arguments[0] != "import-original":
        arguments = [*arguments, "--model", model]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert word in error and error.count("\n") == 1


def test_card_measures_a_trained_model_and_says_so(tmp_path: Path, capsys) -> None:
    from transformer.reporting.model_card import command_line
    from transformer.reporting.training_facts import TrainingFacts

    folder, texts = tiny_model_directory(tmp_path / "model"), tmp_path / "texts"
    texts.mkdir()
    TrainingFacts(
        command_line({"data": str(texts), "seed": 3, "tokenizer": "a/b"}), 10, 2560, 61.0, "a processor"
    ).write(folder)
    for split in ("train", "validation"):
        (texts / f"{split}.jsonl").write_text("".join(json.dumps({"text": s}) + "\n" for s in SENTENCES))
    command = [
        "card",
        str(folder),
        "--data",
        "Some texts.",
        "--license",
        "cc-by-sa-4.0",
        "--evaluate",
        f"texts={texts}",
        "--evaluate",
        f"others={texts}",
    ]
    assert main(command) == 0
    results = ModelCard.load(folder / "README.md").data.eval_results
    assert [(result.dataset_name, result.metric_type) for result in results] == [
        (name, kind)
        for name in ("texts", "texts (int8)", "others", "others (int8)")
        for kind in ("perplexity", "word_perplexity", "bits_per_byte")
    ]  # each of them an entry of its own
    written = (folder / "README.md").read_text()
    expected = evaluate(*checkpoint.load(folder), SENTENCES)
    assert (
        f"| {expected.token_perplexity:.2f} | {expected.word_perplexity:.1f} | {expected.bits_per_byte:.4f} |"
        in written
    )
    tokenizer = checkpoint.load(folder)[1]
    places = sum(min(len(tokenizer.encode_prompt(text)), 32) for text in SENTENCES)  # the context
    assert f"% of {places} places (others)." in written
    assert (
        "license: cc-by-sa-4.0" in written
        and "--data texts --seed 3 --tokenizer a/b" in written
        and str(tmp_path) not in written
    )


@pytest.mark.parametrize(
    ("called", "name"), [("/usr/bin/transformer", "transformer"), ("transformer/__main__.py", "python -m transformer")]
)
def test_the_program_is_named_as_it_was_called(called: str, name: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", [called, "--help"])
    with pytest.raises(SystemExit):
        main(["--help"])
    assert capsys.readouterr().out.startswith(f"usage: {name} ")
