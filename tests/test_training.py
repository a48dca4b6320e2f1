"""The loop on small real runs: it learns what there is to learn, keeps the best, and says what went wrong."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import SENTENCES, new_model, tiny_model_directory

import train as entry
from transformer.data.batches import IGNORE_INDEX, Windows
from transformer.data.document import Document
from transformer.data.tokenize import tokenize
from transformer.data.tokenizer import Tokenizer
from transformer.errors import CheckpointError, ConfigError, CorpusError, TransformerError
from transformer.evaluation import evaluate
from transformer.hub import checkpoint
from transformer.inference import Generator, SamplingOptions
from transformer.model import PRESETS
from transformer.reporting.training_facts import TrainingFacts
from transformer.training.loss import LanguageModelLoss
from transformer.training.optimizers import make_optimizers, set_learning_rate
from transformer.training.run import train
from transformer.training.schedule import Budget, Progress, learning_rate
from transformer.training.train_config import TrainConfig
from transformer.training.trainer import Trainer

SMALL = dict(
    vocab_size=300,
    context_length=32,
    d_model=32,
    n_layers=2,
    n_heads=4,
    batch_size=8,
    dropout=0.0,
    precision="fp32",
    preflight="off",
)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": sentence}) + "\n" for sentence in SENTENCES * 10))
    return path


@pytest.mark.parametrize(
    ("preset", "optimizer"), [*((preset, "adamw") for preset in (*PRESETS, "blog")), ("modern", "muon")]
)
def test_a_small_text_is_learned_by_heart(preset: str, optimizer: str, corpus: Path, tmp_path: Path) -> None:
    options = dict(preset=preset, optimizer=optimizer, max_steps=100, learning_rate=1e-2, validation_data=str(corpus))
    result = train(TrainConfig.from_options(data=str(corpus), output=str(tmp_path / "out"), **options, **SMALL))
    assert result.step == 100
    assert result.best_loss < 1.0 < math.log(300)  # four sentences in turn: far below chance
    generator = Generator(*checkpoint.load(tmp_path / "out"))
    text = "".join(generator.generate("The lobster is", SamplingOptions(temperature=0)))
    assert text.startswith(" blue in life")


def test_a_run_leaves_a_model_its_facts_its_numbers_and_its_card(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train(TrainConfig.from_options(data=str(corpus), output=str(out), max_steps=20, validate_every=5, **SMALL))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 21))
    assert [line["step"] for line in lines if "validation_loss" in line] == [5, 10, 15, 20]
    facts = json.loads((out / "training.json").read_text())
    assert facts["steps"] == 20 and facts["tokens"] == lines[-1]["tokens"]
    card = (out / "README.md").read_text()
    assert "bits per byte" in card and "python train.py --data corpus.jsonl" in card and str(tmp_path) not in card


def test_an_epoch_learns_every_token_once(corpus: Path, tmp_path: Path) -> None:
    for epochs, accumulate in ((1, 1), (2, 1), (2, 2)):
        out = tmp_path / f"{epochs}-{accumulate}"
        options = {**SMALL, "batch_size": 5, "gradient_accumulation_steps": accumulate, "max_epochs": epochs}
        result = train(
            TrainConfig.from_options(data=str(corpus), output=str(out), validation_data=str(corpus), **options)
        )
        stream = tokenize([Document.of(sentence) for sentence in SENTENCES * 10], Tokenizer.load(out))
        tokens = len(stream.tokens) - 1
        assert result.tokens == epochs * tokens
        assert result.step == math.ceil(epochs * math.ceil(tokens / 32 / 5) / accumulate)


def test_the_same_seed_trains_the_same_weights(corpus: Path, tmp_path: Path) -> None:
    states = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(TrainConfig.from_options(data=str(corpus), output=str(tmp_path / name), max_steps=5, seed=seed, **SMALL))
        states.append(checkpoint.load_model(tmp_path / name).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])


def test_the_saved_model_is_the_best_by_validation(corpus: Path, tmp_path: Path, monkeypatch) -> None:
    losses = iter([3.0, 1.0, 2.0, 1.5])
    monkeypatch.setattr(Trainer, "validation_loss", lambda self: next(losses))
    out = tmp_path / "out"
    saved_at = []
    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda *arguments: (saved_at.append(1), save(*arguments)))
    result = train(TrainConfig.from_options(data=str(corpus), output=str(out), max_steps=20, validate_every=5, **SMALL))
    assert (result.best_step, result.best_loss, len(saved_at)) == (10, 1.0, 2)


def test_training_goes_on_from_a_model_with_its_tokenizer(corpus: Path, tmp_path: Path) -> None:
    base = tiny_model_directory(tmp_path / "base", preset="gpt2")
    out = tmp_path / "out"
    config = TrainConfig.from_options(
        data=str(corpus), output=str(out), init_from=str(base), max_steps=100, learning_rate=3e-3, preflight="off"
    )
    train(config)
    before, tokenizer = checkpoint.load(base)
    after, same = checkpoint.load(out)
    assert after.config == before.config and same.vocab_size == tokenizer.vocab_size
    scores = [evaluate(model, tokenizer, SENTENCES).bits_per_byte for model in (before, after)]
    assert scores[1] < scores[0] / 2


def test_a_card_names_every_training_and_has_answers_of_a_model_that_talks(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    text, talks = tmp_path / "text.jsonl", tmp_path / "talks.jsonl"
    text.write_text("".join(json.dumps({"text": sentence}) + "\n" for sentence in SENTENCES * 10))
    talk = [{"role": "user", "content": "What is a lobster?"}, {"role": "assistant", "content": SENTENCES[0]}]
    talks.write_text((json.dumps({"messages": talk}) + "\n") * 20)
    options = {"max_steps": 2, "preflight": "off", "price_per_hour": 3600.0}
    train(TrainConfig.from_options(data=str(text), output=str(first), **{**SMALL, **options}))
    assert "Answers" not in (first / "README.md").read_text()
    train(
        TrainConfig.from_options(
            data=str(talks), output=str(second), init_from=str(first), context_length=32, batch_size=4, **options
        )
    )
    facts, before = TrainingFacts.read(second), TrainingFacts.read(first)
    assert list(facts.stages()) == [before, facts] and facts.cost == pytest.approx(facts.seconds)
    card = (second / "README.md").read_text()
    assert card.index("--data text.jsonl") < card.index("--data talks.jsonl") and "--init-from first" in card
    assert f"Together {before.tokens + facts.tokens:,} tokens" in card and f"it cost {before.seconds:.2f}." in card
    answers = card[card.index("## Answers") : card.index("## Limits")]
    assert answers.count("> **") == 10 and "**What are you?**" in answers


@pytest.mark.parametrize("content", ["[]", "{}", "3", "not JSON", '{"lr": 1}', "steps", '{"before": []}'])
def test_a_file_of_another_program_in_place_of_the_facts_of_a_training_is_refused(content: str, tmp_path: Path) -> None:
    facts = TrainingFacts("train", 1, 2, 3.0, "a processor")
    facts.write(tmp_path)
    fields = json.loads((tmp_path / "training.json").read_text())
    if content == "steps":
        content = json.dumps({**fields, "steps": "many"})
    elif "before" in content:
        content = json.dumps({**fields, "before": [1]})
    (tmp_path / "training.json").write_text(content)
    with pytest.raises(CheckpointError, match="does not say how it was trained"):
        TrainingFacts.read(tmp_path)


def test_gradients_do_not_depend_on_how_a_step_is_cut(corpus: Path, tmp_path: Path) -> None:
    states = []
    for name, size, accumulate in (("whole", 8, 1), ("cut", 2, 4)):
        options = {**SMALL, "batch_size": size, "gradient_accumulation_steps": accumulate}
        train(TrainConfig.from_options(data=str(corpus), output=str(tmp_path / name), max_steps=3, **options))
        states.append(checkpoint.load_model(tmp_path / name).state_dict())
    for key in states[0]:
        torch.testing.assert_close(states[0][key], states[1][key], atol=1e-4, rtol=1e-3)


def test_padding_and_prompts_change_no_gradient(tmp_path: Path) -> None:
    model, tokenizer = checkpoint.load(tiny_model_directory(tmp_path / "m"))
    stream = tokenize([Document.of(" blue", prompt="The colour of the lobster is")], tokenizer)
    batch = Windows(stream, 32, pad_id=1).batch([0])
    loss = LanguageModelLoss(model)

    def gradient(inputs: torch.Tensor) -> torch.Tensor:
        model.zero_grad()
        loss(inputs, batch.targets).backward()
        return torch.cat([p.grad.flatten() for p in model.layers.parameters()])

    other = batch.inputs.clone()
    padding = len(stream.tokens) - 1
    assert (batch.targets[0, padding:] == IGNORE_INDEX).all() and padding < 32
    other[0, padding:] = 7
    torch.testing.assert_close(gradient(batch.inputs), gradient(other))
    logits = model(batch.inputs)[0].log_softmax(dim=-1)
    learned = batch.targets[0] != IGNORE_INDEX
    by_hand = -logits[learned, batch.targets[0][learned]].sum()
    torch.testing.assert_close(loss(batch.inputs, batch.targets), by_hand)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("documents", [False, True])
def test_the_step_compiles_as_one_graph(bf16: bool, documents: bool, tmp_path: Path) -> None:
    # Where it breaks in two, torch.compile starts again at every step until it gives up: minutes lost, in silence.
    model, _ = checkpoint.load(tiny_model_directory(tmp_path / "m"))
    loss = LanguageModelLoss(model, bf16)
    compiled = torch.compile(loss, backend="eager", fullgraph=True, dynamic=False)
    tokens = torch.arange(32).reshape(2, 16)
    document = torch.arange(2)[:, None].expand(2, 16) if documents else None
    torch.testing.assert_close(compiled(tokens, tokens, document), loss(tokens, tokens, document))


def test_tiny_texts_train_or_say_that_they_are_too_small(tmp_path: Path) -> None:
    path = tmp_path / "tiny.txt"
    path.write_text("Hello, world.")
    train(TrainConfig.from_options(data=str(path), output=str(tmp_path / "out"), max_steps=2, **SMALL))
    assert (tmp_path / "out" / "model.safetensors").exists()
    path.write_text("")
    with pytest.raises(CorpusError, match="no text"):
        train(TrainConfig.from_options(data=str(path), output=str(tmp_path / "out2"), max_steps=2, **SMALL))


def test_a_diverged_run_stops_and_keeps_the_last_good_model(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = TrainConfig.from_options(
        data=str(corpus),
        output=str(out),
        max_steps=100,
        validate_every=1,
        learning_rate=1e30,
        warmup_ratio=0.02,
        **SMALL,
    )
    with pytest.raises(TransformerError, match="learning_rate"):
        train(config)
    assert all(p.isfinite().all() for p in checkpoint.load_model(out).parameters())


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (dict(batch_size=0), "batch_size"),
        (dict(max_minutes=-1), "max_minutes"),
        (dict(warmup_ratio=1.0), "warmup_ratio"),
        (dict(preset="gpt5"), "gpt5"),
        (dict(precision="fp8"), "precision"),
        (dict(device="abacus"), "abacus"),
        (dict(optimizer="sgd"), "sgd"),
    ],
)
def test_options_that_cannot_work_are_refused_by_name(options: dict, word: str, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=word):
        train(
            TrainConfig.from_options(
                **{**SMALL, "data": str(corpus), "output": str(tmp_path / "o"), "max_steps": 1, **options}
            )
        )


def test_the_command_line_takes_options_and_a_yaml_file(corpus: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "run.yaml").write_text(f"data: {corpus}\nmax_steps: 2\nvocab_size: 300\nd_model: 32\nn_heads: 4\n")
    out = str(tmp_path / "out")
    assert entry.main(["--config", str(tmp_path / "run.yaml"), "--output", out, "--n-layers", "1"]) == 0
    config = checkpoint.load_model(out).config
    assert (config.d_model, config.n_layers, config.vocab_size) == (32, 1, 300)
    assert entry.main(["--data", str(tmp_path / "nothing.txt")]) == 1
    assert "no file or folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        entry.main(["--help"])
    assert "--learning-rate" in capsys.readouterr().out


# ---- pure parts ----


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_the_learning_rate_rises_then_falls_to_its_end(schedule: str) -> None:
    rates = [learning_rate(schedule, i / 100, warmup_ratio=0.1, decay_ratio=0.2, final=0.05) for i in range(101)]
    assert rates[0] == 0 and rates[5] == pytest.approx(0.5) and rates[10] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.05)
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)
    middle = {"cosine": (1 + 0.05) / 2, "linear": (1 + 0.05) / 2, "wsd": 1.0}
    assert rates[55] == pytest.approx(middle[schedule])
    assert schedule != "wsd" or (rates[80] == 1.0 and rates[90] == pytest.approx((1 + 0.05) / 2))
    assert learning_rate(schedule, 0.0, warmup_ratio=0.0, decay_ratio=1.0, final=0.1) == 1.0


def test_progress_has_the_same_names_in_checkpoints_as_before() -> None:
    saved = dict(step=9, tokens=90, seconds=3.0, training_seconds=2.0, best_loss=4.5, best_step=7, waited=2)
    progress = Progress()
    progress.load_state_dict(saved)
    assert progress.validations_since_best == 2 and progress.state_dict() == saved


@given(st.integers(0, 10**6), st.integers(0, 10**9), st.floats(0, 1e6), st.integers(1, 10**6), st.floats(0.01, 1e4))
def test_a_run_is_as_far_as_the_budget_that_is_most_spent(
    step: int, tokens: int, seconds: float, steps: int, limit: float
) -> None:
    so_far = Progress(step=step, tokens=tokens, seconds=seconds)
    assert Budget(steps, 10**8, limit).spent(so_far) == min(1.0, max(step / steps, tokens / 10**8, seconds / limit))
    assert Budget().spent(so_far) == 0.0


def test_budgets_of_time_and_money_are_one_and_a_run_without_any_is_an_epoch() -> None:
    assert TrainConfig.from_options(data="x").run.budget(7.5) == Budget(steps=8)
    assert TrainConfig.from_options(data="x", max_epochs=2, max_steps=20).run.budget(7.5) == Budget(steps=15)
    assert TrainConfig.from_options(data="x", max_minutes=60).run.budget(7.5) == Budget(seconds=3600)
    assert TrainConfig.from_options(data="x", price_per_hour=0.4, max_cost=5).run.budget(None).seconds == pytest.approx(
        5 / 0.4 * 3600
    )
    assert TrainConfig.from_options(data="x", max_tokens=100).run.budget(None) == Budget(tokens=100)
    with pytest.raises(ConfigError, match="max_steps"):
        TrainConfig.from_options(data="x").run.budget(None)
    with pytest.raises(ConfigError, match="price_per_hour"):
        TrainConfig.from_options(data="x", max_cost=5)


def test_only_matrices_decay() -> None:
    model = checkpoint.Transformer(TrainConfig.from_options(data="x").model.architecture(vocab_size=300))
    (optimizer,) = make_optimizers(model, TrainConfig.from_options(data="x"))
    for group in optimizer.param_groups:
        assert all(group["weight_decay"] == (0.1 if p.dim() == 2 else 0.0) for p in group["params"])
    taken = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in taken} == {id(p) for p in model.parameters()} and len(taken) == len(set(map(id, taken)))


def test_embeddings_have_a_learning_rate_of_their_own_and_frozen_weights_have_none() -> None:
    config = TrainConfig.from_options(data="x", learning_rate=1e-3, embedding_learning_rate=1e-2, optimizer="muon")
    model = checkpoint.Transformer(config.model.architecture(vocab_size=300))
    rates = {}
    optimizers = make_optimizers(model, config)
    set_learning_rate(optimizers, 0.5)
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        rates |= {id(p): group["lr"] for p in group["params"]}
    assert rates[id(model.token_embedding.weight)] == pytest.approx(5e-3)
    assert rates[id(model.layers[0].attention.query.weight)] == pytest.approx(5e-4)
    model.token_embedding.weight.requires_grad_(False)
    frozen = id(model.token_embedding.weight)
    groups = (group for optimizer in make_optimizers(model, config) for group in optimizer.param_groups)
    assert all(frozen not in map(id, group["params"]) for group in groups)


@pytest.mark.parametrize("preset", [*PRESETS, "blog"])
def test_muon_takes_the_matrices_of_the_layers_and_every_weight_has_one_optimizer(preset: str) -> None:
    model = new_model(TrainConfig.from_options(data="x", preset=preset).model.architecture(vocab_size=300))
    adamw, muon = make_optimizers(model, TrainConfig.from_options(data="x", optimizer="muon"))
    names = {id(p): name for name, p in model.named_parameters()}
    taken = [[names[id(p)] for group in o.param_groups for p in group["params"]] for o in (adamw, muon)]
    assert sorted(taken[0] + taken[1]) == sorted(names.values())
    assert all(name.startswith("layers.") for name in taken[1]) and "token_embedding.weight" in taken[0]
