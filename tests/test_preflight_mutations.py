"""Preflight names one broken line of the source, and does not stop the fine-tuning of any architecture."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import FEATURES, new_model, tiny_tokenizer
from test_preflight import TRAIN, VALID, write

from benchmarks import preflight_mutations
from transformer.data.batches import EpochBatches, Windows
from transformer.data.document import Document
from transformer.data.tokenize import tokenize
from transformer.legacy import preset_config
from transformer.preflight import Report, preflight
from transformer.training.distributed import Engine
from transformer.training.run_components import RunComponents
from transformer.training.step import TrainStep
from transformer.training.train_config import TrainConfig

ROOT = Path(__file__).parent.parent
# One of each kind: attention in bf16, positions, step, checkpoint; scores, residuals, loss, batches, validation.
FAST = (
    "bf16 attention: a block sees all of itself",
    "positions are constant",
    "no zero_grad",
    "the place in the text is not taken from the checkpoint",
)
OTHERS = (
    "no sqrt(d_k)",
    "a dropped residual",
    "padding counts in the loss",
    "targets are the inputs",
    "validation in training mode",
)
ARCHITECTURES = {
    "paper": dict(preset="paper"),
    "gpt2": dict(preset="gpt2"),
    "qwen3": dict(preset="modern"),
    "blog": dict(preset="blog"),
    "llama": dict(preset="modern", qk_norm=False),
    "opt": dict(preset="gpt2", activation="relu"),
    **{name: dict(preset="modern", **choices) for name, choices in FEATURES.items()},
}


def test_the_mutations_are_many_and_each_breaks_one_line() -> None:
    mutations = preflight_mutations.MUTATIONS
    assert len(mutations) >= 30 and len({mutation.name for mutation in mutations}) == len(mutations)
    for mutation in mutations:
        source = (preflight_mutations.PACKAGE / mutation.file).read_text()
        assert source.count(mutation.old) == 1, mutation.name
        compile(source.replace(mutation.old, mutation.new), mutation.file, "exec")


@pytest.mark.parametrize("names", [FAST, pytest.param(OTHERS, marks=pytest.mark.slow)], ids=["fast", "others"])
def test_mutations_of_each_kind_are_named_rightly(names: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "benchmarks.preflight_mutations", "--json", "--only", *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    results = json.loads(done.stdout)
    assert [result["name"] for result in results] == list(names)
    assert not [result for result in results if not result["rightly"]]


@pytest.mark.parametrize(
    ("architecture", "steps"),
    [*((name, 10) for name in ARCHITECTURES), ("qwen3", 0), pytest.param("paper", 60, marks=pytest.mark.slow)],
)
def test_fine_tuning_is_not_stopped(architecture: str, steps: int, tmp_path: Path) -> None:
    report = fine_tuning(tmp_path, steps, **ARCHITECTURES[architecture])
    assert not report.failed, report.table()


@pytest.mark.parametrize("name", FEATURES)
def test_every_part_of_a_feature_is_compared_with_its_formula(name: str, tmp_path: Path) -> None:
    """Also with documents apart, in bf16, and from an untrained model."""
    for options in (dict(precision="bf16"), dict(separate_documents=True)):
        report = fine_tuning(tmp_path, 0, preset="modern", **options, **FEATURES[name])
        assert not report.failed and not [check for check in report.checks if "not compared" in check.measured]


def test_weights_that_grew_warn_at_most(tmp_path: Path) -> None:
    report = fine_tuning(tmp_path, 0, scale=8.0, preset="modern", precision="bf16")
    assert not report.failed, report.table()


def test_weights_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    report = fine_tuning(tmp_path, 0, scale=float("nan"), preset="modern")
    assert report.failed


def fine_tuning(
    folder: Path,
    steps: int,
    preset: str,
    scale: float = 1.0,
    precision: str = "fp32",
    separate_documents: bool = False,
    **choices: object,
) -> Report:
    """The preflight of a run that begins with a model after this many steps, or with weights of another size."""
    torch.manual_seed(0)
    tokenizer, device = tiny_tokenizer(), torch.device("cpu")
    sizes = dict(context_length=32, d_model=32, n_layers=2, n_heads=4, dropout=0.0)
    model = new_model(preset_config(preset, **{**sizes, **choices}, vocab_size=tokenizer.vocab_size))
    data = write(folder, TRAIN[:40])
    config = TrainConfig.from_options(
        data=data,
        init_from="weights",
        context_length=32,
        batch_size=8,
        precision=precision,
        learning_rate=5e-4,
        separate_documents=separate_documents,
    )
    training, validation = (
        Windows(tokenize([Document.of(text) for text in texts], tokenizer), 32) for texts in (TRAIN[:40], VALID)
    )
    source = EpochBatches(training, 8, 0)
    if steps:
        train_step = TrainStep(model, source, tokenizer, config, Engine(device))
        for number in range(steps):
            train_step.run(number + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    beginning = EpochBatches(training, 8, 0)  # another run's: not where the first one's source stands
    return preflight(RunComponents(tokenizer, model, beginning, training, validation), config, Engine(device))
