"""The story's planted mistakes are what they claim to be, and its command runs and writes what it promises."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from models import SENTENCES, tiny_model

from experiments.story import __main__ as command
from experiments.story.layouts import (
    ChangedBatches,
    ExampleBatches,
    held_out_lines,
    line_examples,
    overwrite_last_target,
)
from experiments.story.runs import Run, Settings, Text, end_probability, score
from experiments.story.tables import fill_in, table, verdict
from experiments.story.variants import TURNS, VARIANTS
from transformer.data.batches import IGNORE_INDEX, EpochBatches, Windows
from transformer.data.tokenize import TokenStream

PAD, SEP = 0, 9
LINES = [[11, 12, 13], [21, 22, 23, 24, 25, 26]]
STORY = Path(command.__file__).parent


def test_a_line_is_padded_on_the_left_and_its_padding_neither_seen_nor_counted() -> None:
    examples = line_examples(LINES, 4, PAD)
    assert examples.inputs.tolist() == [[0, 0, 11, 12], [0, 21, 22, 23], [0, 0, 0, 25]]
    assert examples.targets.tolist() == [
        [IGNORE_INDEX, 11, 12, 13],
        [21, 22, 23, 24],
        [IGNORE_INDEX, IGNORE_INDEX, 25, 26],
    ]


def test_planted_padding_is_counted_and_a_planted_marker_ends_every_line() -> None:
    counted = line_examples(LINES, 4, PAD, count_padding=True)
    assert counted.targets.tolist() == [[0, 11, 12, 13], [21, 22, 23, 24], [0, 0, 25, 26]]
    marked = line_examples(LINES, 4, PAD, marker=SEP)
    assert marked.targets.tolist() == [[11, 12, 13, 9], [21, 22, 23, 24], [IGNORE_INDEX, 25, 26, 9]]


def test_the_last_target_is_overwritten_and_nothing_else() -> None:
    stream = TokenStream(np.arange(1, 42, dtype=np.uint16), None, np.array([0]), 0)
    healthy = EpochBatches(Windows(stream, 8), 2, seed=0)
    planted = ChangedBatches(EpochBatches(Windows(stream, 8), 2, seed=0), lambda b: overwrite_last_target(b, PAD))
    for _ in range(3):
        before, after = healthy.next(), planted.next()
        assert torch.equal(before.inputs, after.inputs)
        assert torch.equal(before.targets[:, :-1], after.targets[:, :-1])
        assert (after.targets[:, -1] == PAD).all() and (before.targets[:, -1] != PAD).all()


def test_examples_come_once_in_an_epoch_and_from_any_position_again() -> None:
    examples = line_examples([[i, i + 1] for i in range(10, 40, 2)], 4, PAD)
    source = ExampleBatches(examples, 4, seed=1)
    epoch = [source.next() for _ in range(source.steps_in_epoch)]
    assert sorted(torch.cat([batch.targets[:, -1] for batch in epoch]).tolist()) == list(range(11, 41, 2))
    state, following = source.state_dict(), source.next()
    again = ExampleBatches(examples, 4, seed=1)
    again.load_state_dict(state)
    assert torch.equal(again.next().inputs, following.inputs)
    assert again.describe_last() == source.describe_last()


@pytest.mark.parametrize("left", [True, False])
def test_every_run_is_measured_on_the_same_tokens_after_the_same_tokens(left: bool) -> None:
    examples = held_out_lines(LINES, 4, PAD, left)
    for line, inputs, targets in zip(LINES, examples.inputs.tolist(), examples.targets.tolist(), strict=True):
        scored = [i for i, target in enumerate(targets) if target != IGNORE_INDEX]
        assert [targets[i] for i in scored] == line[1:4]
        assert [inputs[i] for i in scored] == line[: len(scored)]
        assert inputs[scored[0] - 1] == PAD and scored == list(range(scored[0], scored[0] + len(scored)))


def test_kinds_of_targets_are_scored_apart() -> None:
    model = tiny_model("blog", pad_token_id=PAD)
    examples = line_examples(LINES, 8, PAD, marker=SEP, count_padding=True)
    parts = score(model, examples, PAD, SEP)
    with torch.inference_mode():
        logits = model(torch.from_numpy(examples.inputs.astype(np.int64))).log_softmax(-1)
    targets = torch.from_numpy(examples.targets.astype(np.int64))
    nats = -logits.gather(2, targets[..., None])[..., 0]
    for name, part in {"end": targets == PAD, "marker": targets == SEP, "text": targets > SEP}.items():
        assert parts[name]["share"] == pytest.approx(part.float().mean().item())
        assert parts[name]["nats"] == pytest.approx(nats[part].mean().item(), rel=1e-5)
    assert parts["all"]["nats"] == pytest.approx(nats.mean().item(), rel=1e-5)
    last = end_probability(model, examples, PAD)["last"]
    assert last == pytest.approx(logits[:, -1, PAD].exp().mean().item(), rel=1e-5)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    text = "\n".join([" = A title = ", *SENTENCES, *reversed(SENTENCES)]) + "\n"
    (folder / "train.txt").write_text(text * 10)
    (folder / "validation.txt").write_text(text)
    return folder


def test_every_run_can_be_built_and_is_what_it_says(data: Path, tmp_path: Path) -> None:
    settings = Settings(str(data), None, tmp_path / "cache", few=300, held_out=4)
    text = Text(settings)
    runs = {name: Run.build(name, variant, settings, text) for name, variant in VARIANTS.items()}
    share = {name: float((run.reported.targets == text.end).mean()) for name, run in runs.items()}
    assert share["counted"] > 0.2 and share["lines"] == share["attended"] == share["marker"] == 0
    assert (runs["marker"].source.examples.targets == text.marker).any(axis=1).mean() > 0.9
    assert {name for name, run in runs.items() if getattr(run.model.config, "pad_token_id", None) is not None} == {
        *("lines", "marker", "counted")
    }
    assert runs["sum"].model.config.heads == "sum" and runs["pre-norm"].model.config.norm_placement == "pre"
    assert not runs["frozen"].model.token_embedding.weight.requires_grad
    for name, run in runs.items():
        size = float(run.model.token_embedding.weight.std())
        assert size == pytest.approx(0.1 if name == "drowned" else 1, abs=0.05), name
    held_out = [sorted(run.held_out.targets[run.held_out.targets >= 0].tolist()) for run in runs.values()]
    assert all(tokens == held_out[0] for tokens in held_out)


def test_the_command_runs_a_turn_writes_its_files_and_does_not_run_it_again(
    data: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    trained = []
    real = Run.train
    monkeypatch.setattr(Run, "train", lambda run, text: trained.append(run.config.run.output) or real(run, text))
    output = tmp_path / "out"
    arguments = ["--data", str(data), "--only", "overwritten", "--steps", "2", "--held-out", "3"]
    output.mkdir()
    (output / "README.md").write_text("# A page\n<!-- table -->\nold\n<!-- /table -->\nthe end\n")
    for _ in range(2):
        assert command.main([*arguments, "--output", str(output)]) == 0
    assert len(trained) == 2
    runs = json.loads((output / "results.json").read_text())["runs"]
    assert runs.keys() == {"packed", "overwritten"}
    assert all(run["steps"] == 2 and 5 < run["honest"] < 12 and run["preflight"]["checks"] for run in runs.values())
    assert "fail" in {check["verdict"] for check in runs["overwritten"]["preflight"]["checks"]}
    page = (output / "README.md").read_text()
    assert table(runs) in page and "old" not in page and page.endswith("the end\n")
    picture = ElementTree.parse(output / "plots" / "overwritten.svg").getroot()
    lines = [group for group in picture.iter("{http://www.w3.org/2000/svg}g") if "-run-" in group.get("id", "")]
    assert len(lines) == 3 and all(line.find("{*}path").get("d") for line in lines)


def test_what_is_between_the_marks_of_a_page_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- x -->\nold\n<!-- /x -->\nb\n<!-- y -->\nkept\n<!-- /y -->\n")
    fill_in(page, "x", "new \\1\n")
    assert page.read_text() == "a\n<!-- x -->\nnew \\1\n<!-- /x -->\nb\n<!-- y -->\nkept\n<!-- /y -->\n"


def test_a_mistake_that_nothing_named_is_said_to_be_missed() -> None:
    checks = [{"name": "a", "verdict": "fail"}, {"name": "b", "verdict": "warn"}, {"name": "c", "verdict": "pass"}]
    assert verdict({"checks": checks}, True) == "**fails**: a; **warns**: b"
    assert verdict({"checks": checks[2:]}, True) == "**not caught**"
    assert verdict({"checks": checks[2:]}, False) == "passes"


def test_the_page_has_the_tables_and_pictures_of_the_recorded_results() -> None:
    runs = json.loads((STORY / "results.json").read_text())["runs"]
    page = (STORY / "README.md").read_text()
    assert runs.keys() == VARIANTS.keys() and table(runs) in page
    pictures = set(re.findall(r"\(plots/(\w+)\.svg\)", page))
    assert pictures == TURNS.keys() and all((STORY / "plots" / f"{name}.svg").exists() for name in pictures)


@pytest.mark.parametrize("turn", [turn for turn in TURNS.values() if turn.mistakes], ids=lambda turn: turn.title)
def test_preflight_named_every_mistake_and_failed_nothing_that_is_none(turn) -> None:
    runs = json.loads((STORY / "results.json").read_text())["runs"]
    failed = {name: {c["verdict"] for c in run["preflight"]["checks"]} for name, run in runs.items()}
    for name in (turn.control, *turn.others):
        assert ("fail" in failed[name]) == (name in turn.mistakes), name
