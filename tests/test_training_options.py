"""Options of a run that change what is learned, or when it ends."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import FEATURES, SENTENCES, tiny_model, tiny_model_directory, tiny_tokenizer

from transformer.data.document import Document
from transformer.data.tokenize import tokenize
from transformer.errors import ConfigError, TransformerError
from transformer.hub import checkpoint
from transformer.model import ModelConfig, Transformer
from transformer.training.bigrams import start_from_bigrams
from transformer.training.run import train
from transformer.training.train_config import TrainConfig
from transformer.training.trainer import Trainer

SMALL = dict(
    vocab_size=300,
    context_length=32,
    d_model=32,
    n_layers=1,
    batch_size=8,
    dropout=0.0,
    precision="fp32",
    preflight="off",
)


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": sentence}) + "\n" for sentence in SENTENCES * 5))
    return str(path)


@pytest.mark.parametrize("preset", ["paper", "gpt2", "modern", *FEATURES])
def test_separate_documents_are_read_as_if_each_were_alone(preset: str) -> None:
    model = tiny_model(preset)
    first, second = torch.randint(300, (1, 9)), torch.randint(300, (1, 14))
    document = torch.tensor([[5] * 9 + [6] * 14])
    packed = model.hidden_states(torch.cat([first, second], dim=1), segment_ids_BT=document)
    torch.testing.assert_close(packed[:, :9], model.hidden_states(first), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(packed[:, 9:], model.hidden_states(second), atol=1e-5, rtol=1e-4)


def test_a_model_that_starts_from_bigrams_predicts_as_they_do() -> None:
    tokenizer = tiny_tokenizer()
    tokens = tokenize([Document.of(sentence) for sentence in SENTENCES * 200], tokenizer).tokens
    torch.manual_seed(0)
    config = dict(vocab_size=300, context_length=32, d_model=128, n_layers=2, n_heads=4, tie_embeddings=False)
    model = Transformer(ModelConfig.preset("modern", **config))
    start_from_bigrams(model, tokens)
    text = torch.from_numpy(tokens.astype(np.int64))[: 32 * 40 + 1]
    loss = float(F.cross_entropy(model.requires_grad_(False)(text[:-1].view(40, 32)).flatten(0, 1), text[1:]))
    counts = np.zeros((300, 300))
    np.add.at(counts, (tokens[:-1], tokens[1:]), 1)
    joint = counts / counts.sum()
    of_pairs = -(joint[joint > 0] * np.log((counts / counts.sum(1, keepdims=True).clip(1))[joint > 0])).sum()
    single = counts.sum(0) / counts.sum()
    of_tokens = -(single[single > 0] * np.log(single[single > 0])).sum()
    assert loss < of_pairs + 0.4 * (of_tokens - of_pairs) < math.log(300)
    with pytest.raises(ConfigError, match="tie-embeddings"):
        start_from_bigrams(tiny_model(), tokens)


def test_a_run_without_progress_ends_early(corpus: str, tmp_path: Path, monkeypatch) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.1, 1.0])
    monkeypatch.setattr(Trainer, "validation_loss", lambda self: next(losses))
    config = TrainConfig.from_options(
        corpus, str(tmp_path / "out"), max_steps=50, validate_every=2, patience=2, **SMALL
    )
    progress = train(config)
    assert (progress.step, progress.best_step) == (8, 4)


@pytest.mark.usefixtures("drawn_charts")
def test_tokens_and_cost_are_counted(corpus: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert (
        train(TrainConfig.from_options(corpus, str(out), max_tokens=1000, price_per_hour=36.0, **SMALL)).tokens >= 1000
    )
    steps = [line for line in map(json.loads, (out / "metrics.jsonl").open()) if "loss" in line]
    assert steps[-2]["tokens"] < 1000
    assert steps[-1]["cost"] == pytest.approx(steps[-1]["seconds"] / 100, rel=1e-3)
    assert 'id="loss-training"' in (out / "report.html").read_text()


def test_a_diverging_run_names_the_step_the_batch_and_the_cause(corpus: str, tmp_path: Path) -> None:
    config = TrainConfig.from_options(corpus, str(tmp_path / "out"), max_steps=50, max_loss=5.0, **SMALL)
    with pytest.raises(TransformerError, match=r"step 1: loss .*limit is 5\.00.*epoch 1, batch 1 .*windows"):
        train(config)


def test_frozen_embeddings_stay_those_of_the_model_they_are_from(corpus: str, tmp_path: Path) -> None:
    base, out = tiny_model_directory(tmp_path / "base"), tmp_path / "out"
    options = dict(tokenizer=str(base), embeddings_from=str(base), freeze_embeddings=True, tie_embeddings=False)
    sizes = {name: value for name, value in SMALL.items() if name != "vocab_size"}  # the tokenizer has its own
    train(TrainConfig.from_options(corpus, str(out), max_steps=5, **options, **sizes))
    trained, before = checkpoint.load_model(out), checkpoint.load_model(base)
    assert torch.equal(trained.token_embedding.weight, before.token_embedding.weight)


def test_three_conversations_are_enough_to_fine_tune(tmp_path: Path) -> None:
    path = tmp_path / "three.jsonl"
    rows = [
        [{"role": "user", "content": text[:9]}, {"role": "assistant", "content": text[9:]}] for text in SENTENCES[:3]
    ]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    base = tiny_model_directory(tmp_path / "base", context_length=64)
    progress = train(
        TrainConfig.from_options(str(path), str(tmp_path / "out"), init_from=str(base), max_steps=5, batch_size=2)
    )
    assert progress.step == 5 and math.isfinite(progress.best_loss)


def test_a_stream_is_trained_on_and_needs_an_end_and_validation_text(corpus: str, tmp_path: Path) -> None:
    options = dict(stream=True, validation_data=corpus, **SMALL)
    assert train(TrainConfig.from_options(corpus, str(tmp_path / "out"), max_steps=8, **options)).step == 8
    with pytest.raises(ConfigError, match="no known length"):
        train(TrainConfig.from_options(corpus, str(tmp_path / "out2"), **options))
    with pytest.raises(ConfigError, match="validation_data"):
        train(
            TrainConfig.from_options(
                corpus, str(tmp_path / "out3"), max_steps=8, **{**options, "validation_data": None}
            )
        )


def test_trackers_get_the_numbers(corpus: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(TrainConfig.from_options(corpus, str(tmp_path / "out"), max_steps=4, trackers=("tensorboard",), **SMALL))
    assert any(file.stat().st_size for file in (tmp_path / "out").rglob("events.out.tfevents*"))
