"""Windows, the order of an epoch, and positions that a run can go on from."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import SENTENCES, tiny_tokenizer

from transformer.data.batches import (
    IGNORE_INDEX,
    Batch,
    BatchSource,
    EpochBatches,
    Windows,
    epoch_order,
    validation_batches,
)
from transformer.data.document import Document
from transformer.data.streaming import StreamBatches
from transformer.data.tokenize import TokenStream, tokenize
from transformer.errors import ConfigError, CorpusError
from transformer.hub.text_sources import find_text

TOKENIZER = tiny_tokenizer()
END = TOKENIZER.end_of_text_id
STREAM = tokenize([Document.of(sentence) for sentence in SENTENCES], TOKENIZER)


def encode(text: str) -> list[int]:
    return TOKENIZER.encode_documents([text])[0]


def numbers(n: int) -> TokenStream:
    """The stream 0, 1, 2 … of one document."""
    return TokenStream(np.arange(n, dtype=np.uint16), None, np.array([0]), n)


def everything(windows: Windows) -> Batch:
    return windows.batch(np.arange(len(windows)))


# ---- windows ----


@pytest.mark.parametrize("length", [1, 7, 8, 1000])
def test_each_target_is_the_next_token_and_each_token_is_a_target_once(length: int) -> None:
    batch = everything(Windows(STREAM, length, pad_id=1))
    tokens = torch.from_numpy(STREAM.tokens.astype(np.int64))
    real = batch.targets != IGNORE_INDEX
    assert torch.equal(batch.inputs[real], tokens[:-1])
    assert torch.equal(batch.targets[real], tokens[1:])
    assert (batch.inputs[~real] == 1).all()  # padding, and only there
    assert (~real).sum() == real.numel() - (len(tokens) - 1)


@settings(deadline=None)
@given(n=st.integers(2, 60), length=st.integers(1, 12), data=st.data())
def test_a_sliding_window_moves_on_by_its_stride(n: int, length: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, length))
    windows = Windows(numbers(n), length, stride=stride)
    batch = everything(windows)
    real = batch.targets != IGNORE_INDEX
    assert batch.inputs[:, 0].tolist() == [i * stride for i in range(len(windows))]
    assert torch.equal(batch.inputs[real] + 1, batch.targets[real])
    assert sorted(set(batch.targets[real].tolist())) == list(range(1, n))  # all are learned
    assert real[:-1].all()  # and only the last window is filled up


@pytest.mark.parametrize("options", [{"stride": 0}, {"stride": 9}, {"prompt_share": 1.5}])
def test_windows_that_cannot_be_cut_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError):
        Windows(STREAM, 8, **options)
    with pytest.raises(CorpusError):
        Windows(numbers(1), 8)


def test_document_numbers_change_at_the_end_of_text() -> None:
    batch = everything(Windows(STREAM, 8, pad_id=1))
    row, inputs = batch.segment_ids.flatten(), batch.inputs.flatten()
    assert (row.diff() >= 0).all() and row[0] == 0
    starts = (row.diff() > 0).nonzero().flatten() + 1
    assert (inputs[starts] == END).all() and len(starts) == len(SENTENCES) - 1


def test_prompts_are_read_but_not_learned() -> None:
    pairs = [Document.of(" blue", prompt="Q: colour?"), Document.of(" tall", prompt="Q: tower?")]
    stream = tokenize(pairs, TOKENIZER)
    batch = everything(Windows(stream, len(stream.tokens) - 1))
    learned = batch.targets[0][batch.targets[0] != IGNORE_INDEX].tolist()
    assert learned == [*encode(" blue"), END, *encode(" tall"), END]
    assert TOKENIZER.decode(batch.inputs[0].tolist()).startswith("Q: colour? blue")


def test_a_span_is_cut_out_of_the_stream() -> None:
    head, tail = Windows(STREAM, 8, span=(0, 20)), Windows(STREAM, 8, span=(19, len(STREAM.tokens)))
    targets = [everything(w).targets for w in (head, tail)]
    joined = torch.cat([t[t != IGNORE_INDEX] for t in targets])
    assert joined.tolist() == STREAM.tokens[1:].tolist()


def test_a_share_of_the_windows_begins_as_a_prompt_does() -> None:
    stream = numbers(4000)
    plain, some = (everything(Windows(stream, 8, prompt_share=share, seed=3)) for share in (0.0, 0.25))
    changed = some.inputs[:, 0] != plain.inputs[:, 0]
    assert 0.15 < changed.float().mean() < 0.35
    assert (some.inputs[changed, 0] == stream.tokens[0]).all()
    assert torch.equal(some.inputs[:, 1:], plain.inputs[:, 1:]) and torch.equal(some.targets, plain.targets)
    again = Windows(stream, 8, prompt_share=0.25, seed=3)
    assert torch.equal(again.batch([5, 77]).inputs, some.inputs[[5, 77]])
    other = everything(Windows(stream, 8, prompt_share=0.25, seed=4))
    assert not torch.equal(other.inputs, some.inputs)


# ---- epochs ----


def test_every_epoch_is_a_new_permutation_from_the_seed() -> None:
    first, second = epoch_order(100, seed=1, epoch=0), epoch_order(100, seed=1, epoch=1)
    assert sorted(first) == sorted(second) == list(range(100))
    assert not np.array_equal(first, second)
    assert np.array_equal(first, epoch_order(100, seed=1, epoch=0))
    assert not np.array_equal(first, epoch_order(100, seed=2, epoch=0))


def test_an_epoch_of_batches_holds_every_window_once() -> None:
    windows = Windows(numbers(85), 8)
    source = EpochBatches(windows, 3, seed=0)
    assert source.describe_last() == "no batch yet"
    epochs = [[source.next().inputs for _ in range(source.steps_in_epoch)] for _ in range(2)]
    for batches in epochs:
        assert sorted(torch.cat(batches).tolist()) == everything(windows).inputs.tolist()
    assert not torch.equal(torch.cat(epochs[0]), torch.cat(epochs[1]))
    shown = [int(word) for word in source.describe_last().split("windows ")[1].split(", ")]
    assert "epoch 2, batch 4 of 4" in source.describe_last()
    assert torch.equal(windows.batch(shown).inputs, epochs[1][-1])


def test_validation_is_spread_over_the_text_and_the_same_for_any_number_of_processes() -> None:
    windows = Windows(numbers(801), 8)
    alone = validation_batches(windows, 10, rows=4)
    assert [len(batch.inputs) for batch in alone] == [4, 4, 2]
    first = torch.cat([batch.inputs[:, 0] for batch in alone])
    assert first[0] == 0 and first[-1] == 8 * 99 and len(set(first.tolist())) == 10
    assert (first.diff() >= 8 * 10).all()
    shares = [validation_batches(windows, 10, rows=4, rank=rank, world_size=3) for rank in range(3)]
    assert [len(share) for share in shares] == [3, 3, 3]
    targets = torch.cat([batch.targets for share in shares for batch in share]).flatten()
    assert sorted(targets[targets != IGNORE_INDEX].tolist()) == torch.cat([b.targets for b in alone]).flatten().tolist()
    assert sum(len(batch.inputs) for batch in validation_batches(windows, 1000, rows=4)) == 100


# ---- both sources: positions, and several processes ----

Make = Callable[[int, int], BatchSource]


def write_corpus(folder: Path, kind: str) -> str:
    """Documents in several files or one, in each format that has a reader of its own."""
    texts = [f"{sentence} {i}" for i in range(30) for sentence in SENTENCES]
    if kind == "files":
        for i in range(3):
            lines = "".join(json.dumps({"text": text}) + "\n" for text in texts[i * 40 : (i + 1) * 40])
            (folder / f"train-{i}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
        return str(folder)
    path = folder / f"corpus.{kind}"
    if kind == "parquet":
        import pandas

        pandas.DataFrame({"text": texts}).to_parquet(path, row_group_size=50)
    elif kind == "txt":
        path.write_text("".join(f" = Title {i} = \n {text}\n" for i, text in enumerate(texts)))
    else:
        path.write_text("".join(json.dumps({"prompt": text[:5], "completion": text[5:]}) + "\n" for text in texts))
    return str(path)


@pytest.fixture(scope="module", params=["epochs", "files", "parquet", "txt", "jsonl"])
def make(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes a source of batches of 4 rows for (rank, world_size)."""
    if request.param == "epochs":
        return lambda rank, world_size: EpochBatches(Windows(STREAM, 8), 4, 5, rank, world_size)
    where = write_corpus(tmp_path_factory.mktemp("corpus"), request.param)
    options = dict(tokenizer=TOKENIZER, length=16, batch_size=4, seed=5, block_windows=30)
    return lambda rank, world_size: StreamBatches(find_text(where), rank=rank, world_size=world_size, **options)  # type: ignore[arg-type]


def rows(batch: Batch) -> list[tuple]:
    """The rows of a batch that have targets."""
    kept = (batch.targets != IGNORE_INDEX).any(1)
    return list(zip(batch.inputs[kept].tolist(), batch.targets[kept].tolist(), strict=True))


def test_a_run_goes_on_where_it_was_interrupted(make: Make) -> None:
    whole = make(0, 1)
    batches, states, shown = [], [whole.state_dict()], []
    for _ in range(200):  # more than one epoch of each
        batches.append(whole.next())
        states.append(json.loads(json.dumps(whole.state_dict())))
        shown.append(whole.describe_last())
    assert "epoch 1," in shown[0] and "epoch 1," not in shown[-1]
    for cut in [0, 1, *np.random.default_rng(0).integers(2, 190, 6).tolist()]:
        state = states[cut]
        for begin in range(cut, min(cut + 36, 200), 9):  # and is interrupted again and again
            resumed = make(0, 1)
            resumed.load_state_dict(state)
            for i in range(begin, min(begin + 9, 200)):
                again = resumed.next()
                assert torch.equal(again.inputs, batches[i].inputs) and torch.equal(again.targets, batches[i].targets)
                assert resumed.describe_last() == shown[i]
            state = json.loads(json.dumps(resumed.state_dict()))


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_the_batches_do_not_depend_on_the_number_of_processes(make: Make, world_size: int) -> None:
    alone = make(0, 1)
    for _ in range(7):
        alone.next()
    together = [make(rank, world_size) for rank in range(world_size)]
    for source in together:
        source.load_state_dict(alone.state_dict())
    for _ in range(12):
        expected, parts = alone.next(), [source.next() for source in together]
        assert sorted(row for part in parts for row in rows(part)) == sorted(rows(expected))
        assert all(len(part.inputs) >= 1 for part in parts)  # each has something to compute
        assert parts[0].inputs.tolist() == expected.inputs[::world_size].tolist()


def test_a_stream_holds_every_token_in_each_epoch_in_blocks_of_even_batches(tmp_path: Path) -> None:
    source = StreamBatches(find_text(write_corpus(tmp_path, "files")), TOKENIZER, 16, 4, seed=0, block_windows=30)
    assert source.steps_in_epoch is None
    epochs: list[list[int]] = [[], []]
    order: list[list[int]] = [[], []]
    while (epoch := source.state_dict()["epoch"]) < 2:
        batch = source.next()
        epoch = source.state_dict()["epoch"]
        if epoch < 2:
            assert 3 <= len(batch.inputs) <= 4
            epochs[epoch] += batch.targets[batch.targets != IGNORE_INDEX].tolist()
            order[epoch] += batch.inputs[:, 0].tolist()
    texts = [f"{sentence} {i}" for i in range(30) for sentence in SENTENCES]
    tokens = [token for text in texts for token in [*encode(text), END]]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(tokens)
    assert order[0] != order[1]


def test_a_stream_with_nothing_to_read_or_to_learn_is_refused(tmp_path: Path) -> None:
    for row, word in (({"text": " "}, "no text"), ({"prompt": "a", "completion": ""}, "nothing")):
        (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
        with pytest.raises(CorpusError, match=word):
            StreamBatches(find_text(str(tmp_path / "a.jsonl")), TOKENIZER, 16, 4, seed=0)
