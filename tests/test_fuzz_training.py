"""The fuzzer of training finds what it is for, and some of its runs find nothing."""

import itertools
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

import fuzz_files
import fuzz_training
import pytest
from fuzz_training import Run, attempt, judge, sandbox
from models import SENTENCES, tiny_model_directory

import train
from transformer.hub import checkpoint
from transformer.reporting.training_facts import TrainingFacts

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("runs", [12, pytest.param(30, marks=pytest.mark.slow)])
def test_a_range_of_random_runs_finds_nothing(runs: int) -> None:
    command = [sys.executable, "-m", "tests.fuzz_training", "--first", "225", "--runs", str(runs)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "0 findings" in done.stdout and "'0':" in done.stdout and "'1':" in done.stdout
    )  # some train, some are refused


def exits(status: int, said: str) -> NoReturn:
    sys.stderr.write(said)
    raise SystemExit(status)


def fails(error: BaseException) -> NoReturn:
    raise error


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        (lambda: fails(TypeError("unsupported")), "TypeError in"),
        (lambda: fails(MemoryError()), "MemoryError in"),
        (lambda: exits(1, "Traceback (most recent call last):\nKeyError: 'x'"), "a traceback is shown: KeyError"),
        (lambda: [None for _ in iter(int, 1)], "hang in"),
        (lambda: time.sleep(60), "hang in"),
    ],
)
def test_what_ends_wrongly_is_a_finding(call, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_training, "BUSY", 2)
    assert attempt(call, 0.5).fault.startswith(fault)


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ("", "an error without a word"),
        ("something else", "no sentence of train.py"),
        ("train.py: pyarrow.lib.ArrowInvalid: JSON parse error", "a message of the inside"),
        ("train.py: x holds NoneType", "a message of the inside"),
        ("train.py: x.txt has no text.", ""),
    ],
)
def test_an_error_is_a_sentence_for_a_person(said: str, fault: str) -> None:
    result = attempt(lambda: exits(1, said))
    judged = fuzz_training.judge_message(result)
    assert judged.startswith(fault) if fault else judged == ""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run that ends well, of a program that only leaves a model: its faults are planted by the tests."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("\n".join(SENTENCES))
    data = fuzz_files.Data(Path("text.txt"), ["\n".join(SENTENCES)], True, "plain")

    def main(arguments: list[str]) -> int:
        tiny_model_directory("out", d_model=16, n_heads=2)
        TrainingFacts("train", 1, 10, 1.0, "a processor").write("out")
        return 0

    monkeypatch.setattr(train, "main", main)
    groups = [("--data", "text.txt"), ("--output", "out"), ("--d-model", "16"), ("--max-steps", "1")]
    return Run(groups, data)


def test_a_right_run_is_none(run: Run) -> None:
    assert judge(run).fault == ""


def test_a_wrong_value_that_is_accepted_is_a_finding(run: Run) -> None:
    run.groups.append(("--seed", "-1"))
    assert judge(run).fault == "accepted: --seed '-1'"


def test_another_model_than_the_options_say_is_a_finding(run: Run) -> None:
    run.groups[2] = ("--d-model", "32")
    assert judge(run).fault == "the model has not the d-model that was given"


def test_other_text_than_the_file_has_is_a_finding(run: Run) -> None:
    run.data = fuzz_files.Data(Path("text.txt"), ["Something else."], True, "plain")
    assert judge(run).fault == "other text than in the file: plain"


def test_a_model_that_is_not_there_or_not_of_numbers_is_a_finding(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = train.main

    def breaks(arguments: list[str]) -> int:
        leaves(arguments)
        model, tokenizer = checkpoint.load("out")
        model.requires_grad_(False).token_embedding.weight[:] = float("nan")
        checkpoint.save(model, tokenizer, "out")
        return 0

    monkeypatch.setattr(train, "main", breaks)
    assert judge(run).fault.startswith(("weights are not finite", "the model does not open: CheckpointError"))
    monkeypatch.setattr(train, "main", lambda arguments: 0)
    run.groups[1] = ("--output", "nowhere")
    assert judge(run).fault.startswith("the model does not open")


def test_an_input_that_is_changed_is_a_finding(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoils(arguments: list[str]) -> int:
        Path("text.txt").write_text("")
        return exits(1, "train.py: no.")

    monkeypatch.setattr(train, "main", spoils)
    assert judge(run).fault == "input files changed: ['text.txt']"


def test_the_same_number_is_the_same_run(tmp_path: Path) -> None:
    fuzz_training.make_models(tmp_path)
    for seed, n in itertools.product(("0", "each"), range(20)):
        drawn = []
        for _ in range(2):
            with sandbox():
                drawn.append(fuzz_training.draw_run(seed, n, tmp_path).command())
        assert drawn[0] == drawn[1]
