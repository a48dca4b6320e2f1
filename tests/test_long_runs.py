"""What a run of many hours needs: averaged weights, short windows first, a budget that is changed on the way."""

import json

import pytest
import torch

from tests.models import tiny_model
from transformer.data.batches import EpochBatches, ShortWindowsFirst, Windows
from transformer.data.document import Document, first_documents
from transformer.data.shards import tokenized
from transformer.data.tokenize import tokenize
from transformer.data.tokenizer import Tokenizer
from transformer.errors import CheckpointError, ConfigError
from transformer.hub.checkpoint import load_model
from transformer.hub.text_sources import find_text, pieces
from transformer.training.averaging import WeightAverage, without_average
from transformer.training.options import parse
from transformer.training.run import train
from transformer.training.train_config import TrainConfig

TEXT = "".join(
    f"The river number {n} is in the province of {n * n}, and it is {n} kilometres long.\n" for n in range(400)
)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "rivers.txt"
    path.write_text(TEXT)
    return str(path)


def options(text, output, **others):
    sizes = dict(d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=300, context_length=32, batch_size=4)
    return TrainConfig.from_options(
        **{**sizes, **dict(data=text, output=str(output), preflight="off", max_steps=12), **others}
    )


def test_the_average_is_the_one_of_the_formula():
    model = tiny_model("modern")
    average = WeightAverage(model, decay=0.5)
    expected = [parameter.detach().clone() for parameter in model.parameters()]
    for step in range(1, 6):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        decay = min(0.5, (1 + step) / (10 + step))
        expected = [decay * e + (1 - decay) * p for e, p in zip(expected, model.parameters(), strict=True)]
        average.update(step)
    current = [parameter.detach().clone() for parameter in model.parameters()]
    with average.applied():
        torch.testing.assert_close(list(model.parameters()), expected)
    torch.testing.assert_close(list(model.parameters()), current, rtol=0, atol=0)


def test_the_weights_come_back_after_an_error():
    model = tiny_model("modern")
    average = WeightAverage(model, decay=0.9)
    with torch.no_grad():
        model.token_embedding.weight.add_(1)
    before = model.token_embedding.weight.detach().clone()
    with pytest.raises(ZeroDivisionError), average.applied():
        raise ZeroDivisionError
    assert torch.equal(model.token_embedding.weight, before)


def test_an_average_of_another_model_is_refused():
    with pytest.raises(CheckpointError, match="no average of these weights"):
        WeightAverage(tiny_model("modern"), 0.9).load_state_dict({})


def test_what_is_saved_is_the_average_and_a_resumed_run_ends_with_the_same_bits(text, tmp_path):
    run = dict(ema_decay=0.8, seed=3, schedule="wsd")
    train(options(text, tmp_path / "whole", **run))
    train(options(text, tmp_path / "plain", seed=3, schedule="wsd"))
    # The same run in two parts; the second has the budget of the whole, which may change on a resume.
    train(options(text, tmp_path / "parts", **run, validate_every=6, checkpoint_every=6))
    for newest in sorted((tmp_path / "parts" / "checkpoints").glob("step-00000012-*")):
        newest.unlink()
    train(options(text, tmp_path / "parts", **run, validate_every=6, checkpoint_every=6))
    whole, plain, parts = (load_model(tmp_path / name).state_dict() for name in ("whole", "plain", "parts"))
    assert not torch.equal(whole["token_embedding.weight"], plain["token_embedding.weight"])
    for name, tensor in whole.items():
        assert torch.equal(parts[name], tensor), name


def test_the_decay_of_wsd_may_change_on_a_resume(text, tmp_path):
    train(options(text, tmp_path, schedule="wsd", max_steps=4, warmup_ratio=0.0, decay_ratio=0.0))
    train(
        options(
            text, tmp_path, schedule="wsd", max_steps=8, warmup_ratio=0.0, decay_ratio=0.5, final_learning_rate=0.05
        )
    )
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = [line["learning_rate"] for line in lines if "learning_rate" in line]
    assert len(rates) == 8 and rates[0] == rates[4] > rates[5] > rates[7]


def test_short_windows_come_first_and_a_resume_knows_both_positions(text):
    tokenizer = Tokenizer.train([TEXT], 300)
    stream = tokenize([Document.of(TEXT)], tokenizer)

    def source():
        short, long = EpochBatches(Windows(stream, 8), 8, 0), EpochBatches(Windows(stream, 32), 2, 0)
        return ShortWindowsFirst(short, long, 0.5)

    batches = source()
    shapes, seen = [], []
    for step in range(8):
        batches.set_progress(step / 8)
        seen.append(batches.next())
        shapes.append(tuple(seen[-1].inputs.shape))
        if step == 5:
            state = json.loads(json.dumps(batches.state_dict()))
    assert shapes == [(8, 8)] * 4 + [(2, 32)] * 4
    again = source()
    again.load_state_dict(state)
    again.set_progress(6 / 8)
    assert torch.equal(again.next().inputs, seen[6].inputs)


def test_a_run_with_short_windows_passes_its_preflight_and_trains_on_both(text, tmp_path):
    progress = train(
        options(
            text, tmp_path, short_window_share=0.5, short_window_length=8, preflight="stop", max_steps=6, batch_size=2
        )
    )
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    tokens = [line["tokens"] for line in lines if "learning_rate" in line]
    assert progress.step == 6 and tokens == [64 * step for step in range(1, 7)]


def test_only_the_first_documents_are_read(tmp_path):
    rows = [{"text": f"Article {n}. " + "It is a long story. " * 20} for n in range(10)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert [d.text for d in pieces(str(path), max_documents=3)] == [row["text"] for row in rows[:3]]
    tokenizer = Tokenizer.train([TEXT], 300)
    few, more = (
        tokenized(find_text(str(path)), tokenizer, tmp_path / "cache", max_documents=count) for count in (3, 4)
    )
    assert (len(few.starts), len(more.starts)) == (3, 4)


def test_the_first_documents_have_all_their_pieces():
    found = [Document.of("a"), Document((("b", True),), continues=True), Document.of("c"), Document.of("d")]
    assert [document.text for document in first_documents(found, 2)] == ["a", "b", "c"]


def test_a_step_without_targets_leaves_the_average_alone(tmp_path):
    rows = [{"prompt": "What is it? " * 40, "completion": " It is a river."}] * 12
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run = dict(ema_decay=0.8, context_length=16, batch_size=1, max_steps=60, seed=1)
    calls = []
    update = WeightAverage.update
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WeightAverage, "update", lambda self, step: (calls.append(step), update(self, step)))
        train(options(str(path), tmp_path / "out", **run))
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    learned = [line["step"] for line in lines if "learning_rate" in line]
    assert 0 < len(learned) < 60 and calls == learned


def test_data_on_the_command_line_has_not_the_configuration_of_the_presets_own(tmp_path):
    (tmp_path / "x.txt").write_text(TEXT, encoding="utf-8")
    config = parse(["--config", "default", "--data", str(tmp_path / "x.txt"), "--max-minutes", "10"])
    assert (config.text.data_config, config.text.clean, config.model.context_length) == (None, "wikipedia", 1024)
    assert parse(["--config", "default"]).text.data_config == "20231101.en"


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (dict(ema_decay=1.0), "ema_decay must be in"),
        (dict(short_window_share=0.5, short_window_length=32), "short_window_length must be below"),
        (dict(max_documents=0), "must be a number more than 0"),
    ],
)
def test_options_that_cannot_work_are_refused(wrong, sentence):
    with pytest.raises(ConfigError, match=sentence):
        options("text.txt", "out", **wrong)


def test_the_tensors_of_an_average_are_told_from_the_others():
    assert without_average({"average.a": torch.ones(1), "model.a": torch.zeros(1)}).keys() == {"model.a"}
