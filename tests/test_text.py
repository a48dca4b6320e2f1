"""Tokenizer, corpus and batches."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import SENTENCES, tiny_tokenizer

from transformer.errors import CheckpointError, ConfigError, CorpusError
from transformer.text.batches import IGNORE, Windows, batches, epoch_order, tokenize
from transformer.text.corpus import Document, articles, documents, has_split
from transformer.text.tokenizer import Tokenizer

TOKENIZER = tiny_tokenizer()


def encode(text: str) -> list[int]:
    return TOKENIZER.encode_documents([text])[0]


# ---- tokenizer ----


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_every_text_comes_back_unchanged(text: str) -> None:
    assert TOKENIZER.decode(encode(text), skip_special=False) == text


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_streamed_pieces_are_the_text_and_never_half_a_character(text: str) -> None:
    stream = TOKENIZER.stream()
    pieces = [stream.add(token) for token in encode(text)]
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(2, 257), max_size=12))
def test_streamed_bytes_that_are_no_text_are_never_an_error(ids: list[int]) -> None:
    stream = TOKENIZER.stream()
    text = "".join(stream.add(token) for token in ids)
    whole = TOKENIZER.decode(ids)
    assert whole.startswith(text)
    assert set(whole[len(text) :]) <= {"\ufffd"}  # only what is incomplete at the end is held back


def test_special_tokens_are_named_and_cannot_be_written_by_a_text() -> None:
    assert (TOKENIZER.end_of_text, TOKENIZER.pad) == ("<|endoftext|>", "<|pad|>")
    assert (TOKENIZER.end_of_text_id, TOKENIZER.pad_id) == (0, 1)
    assert TOKENIZER.end_of_text_id not in encode("a <|endoftext|> b")
    assert TOKENIZER.encode_prompt("river")[0] == TOKENIZER.end_of_text_id
    assert TOKENIZER.encode_prompt("") == [TOKENIZER.end_of_text_id]
    other = Tokenizer.train(SENTENCES, 300, end_of_text="<end>", pad=None)
    assert other.end_of_text_id == 0 and other.pad_id is None


def test_whole_tokens_are_one_token_each_and_stay_in_the_text() -> None:
    tokenizer = Tokenizer.train(["the <unk> sea", *SENTENCES], 300, whole=["<unk>"])
    assert tokenizer.vocab_size == 300 and tokenizer.backend.token_to_id("<unk>") == 299
    ids = tokenizer.encode_documents(["a <unk>, b<unk>"])[0]
    assert ids.count(299) == 2 and tokenizer.decode(ids) == "a <unk>, b<unk>"
    assert "".join(map(tokenizer.stream().add, ids)) == "a <unk>, b<unk>"


def test_half_a_utf16_pair_becomes_the_replacement_character() -> None:
    assert TOKENIZER.decode(TOKENIZER.encode_prompt("a\ud83d b")) == "a\ufffd b"
    assert TOKENIZER.decode(TOKENIZER.encode_prompt("\ud83e\udd9e")) == "🦞"


def test_saved_and_loaded_from_file_and_directory(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    for source in (tmp_path, tmp_path / "tokenizer.json"):
        again = Tokenizer.load(source)
        assert again.encode_prompt(SENTENCES[2]) == TOKENIZER.encode_prompt(SENTENCES[2])
        assert (again.end_of_text, again.pad, again.vocab_size) == ("<|endoftext|>", "<|pad|>", 300)


def test_a_tokenizer_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)
    with pytest.raises(ConfigError, match="258"):
        Tokenizer.train(SENTENCES, 100)


def test_gpt2s_own_tokenizer(shared: Path) -> None:
    gpt2 = Tokenizer.load(shared / "tokenizers" / "gpt2")
    assert gpt2.encode_documents(["Hello world"]) == [[15496, 995]]
    assert gpt2.encode_prompt("Hello world") == [15496, 995]
    assert (gpt2.end_of_text_id, gpt2.vocab_size) == (50256, 50257)


# ---- corpus ----

ROWS = [{"text": "First text."}, {"text": "Second text,\nin two lines."}, {"text": "  "}]
TEXTS = ["First text.", "Second text,\nin two lines."]


def write_corpus(folder: Path, kind: str) -> Path:
    path = folder / f"corpus.{kind}"
    if kind == "parquet":
        import pandas

        pandas.DataFrame(ROWS).to_parquet(path)
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet"])
def test_rows_are_documents(kind: str, tmp_path: Path) -> None:
    path = write_corpus(tmp_path, kind)
    assert [d.text for d in documents(str(path))] == TEXTS
    assert has_split(str(path), None, "train") and not has_split(str(path), None, "validation")


def test_a_text_file_is_one_document_or_wikitext_articles(tmp_path: Path) -> None:
    plain, wiki = tmp_path / "plain.txt", tmp_path / "wiki.txt"
    plain.write_text("One line.\n\nAnother = line =.\n")
    lobster = " \n = Lobster = \n \n It is blue . \n = = Names = = \n Homarus . \n \n"
    wiki.write_text(lobster + " = Tower = \n \n It is tall . \n")
    assert [d.text for d in documents(str(plain))] == ["One line.\n\nAnother = line =.\n"]
    first, second = (d.text for d in documents(str(wiki)))
    assert first == lobster
    assert second == " = Tower = \n \n It is tall . \n"
    assert first + second == wiki.read_text()


def test_lines_of_a_wikitext_data_set_become_articles(tmp_path: Path) -> None:
    lines = ["", " = Lobster = \n", " It is blue . \n", " = Tower = \n", " It is tall . \n"]
    path = tmp_path / "wiki.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    first, second = (d.text for d in documents(str(path)))
    assert (first, second) == (" = Lobster = \n It is blue . \n", " = Tower = \n It is tall . \n")
    assert list(articles([])) == []


def test_a_folder_has_the_splits_of_its_file_names(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": "to learn"}) + "\n")
    (tmp_path / "validation.jsonl").write_text(json.dumps({"text": "to check"}) + "\n")
    assert [d.text for d in documents(str(tmp_path))] == ["to learn"]
    assert [d.text for d in documents(str(tmp_path), split="validation")] == ["to check"]
    assert has_split(str(tmp_path), None, "validation")


def test_prompts_and_completions(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "Q: colour?", "completion": " blue"}) + "\n")
    assert list(documents(str(path))) == [Document(" blue", prompt="Q: colour?")]


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("a.jsonl", '{"body": "x"}\n', "column 'text'"),
        ("a.jsonl", '{"text": " "}\n', "no text"),
        ("a.jsonl", '{"text": \n', "a.jsonl"),
        ("a.jsonl", '{"text": 5}\n', "expected strings"),
        ("a.txt", "", "no text"),
        ("a.pdf", "x", "not a text file"),
    ],
)
def test_a_corpus_that_cannot_be_used_says_why(name: str, content: str, word: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(CorpusError, match=word):
        list(documents(str(tmp_path / name)))


def test_a_corpus_that_is_not_there_says_so() -> None:
    with pytest.raises(CorpusError, match="no file or folder"):
        list(documents("./nowhere/corpus.txt"))


def test_wikitext_2_is_its_articles(shared: Path) -> None:
    found = [d.text for d in documents(str(shared / "data" / "wikitext-2"), split="validation")]
    assert len(found) == 60  # the articles that the data set's makers count
    assert "".join(found).strip("\n ") == (shared / "data/wikitext-2/validation.txt").read_text().strip("\n ")


# ---- batches ----


def small_windows(length: int = 8) -> Windows:
    stream = tokenize([Document(s) for s in SENTENCES], TOKENIZER)
    return Windows(stream, length, pad_id=1)


def test_documents_are_packed_with_the_end_of_text_between_them() -> None:
    stream = tokenize([Document("river"), Document("sea")], TOKENIZER)
    end = TOKENIZER.end_of_text_id
    assert stream.tokens.tolist() == [end, *encode("river"), end, *encode("sea"), end]
    assert stream.starts.tolist() == [0, 1 + len(encode("river"))]
    assert stream.n_bytes == 8


@pytest.mark.parametrize("length", [1, 7, 8, 1000])
def test_each_target_is_the_next_token_and_each_token_is_a_target_once(length: int) -> None:
    windows = small_windows(length)
    batch = windows.batch(np.arange(len(windows)))
    tokens = torch.from_numpy(windows.stream.tokens.astype(np.int64))
    real = batch.targets != IGNORE
    assert torch.equal(batch.inputs[real], tokens[:-1])
    assert torch.equal(batch.targets[real], tokens[1:])
    assert (batch.inputs[~real] == 1).all()  # padding, and only there
    assert (~real).sum() == real.numel() - (len(tokens) - 1)


def test_document_numbers_change_at_the_end_of_text() -> None:
    windows = small_windows()
    batch = windows.batch(np.arange(len(windows)))
    row, inputs = batch.document.flatten(), batch.inputs.flatten()
    assert (row.diff() >= 0).all() and row[0] == 0
    starts = (row.diff() > 0).nonzero().flatten() + 1
    assert (inputs[starts] == TOKENIZER.end_of_text_id).all() and len(starts) == len(SENTENCES) - 1


def test_prompts_are_read_but_not_learned() -> None:
    stream = tokenize([Document(" blue", prompt="Q: colour?"), Document(" tall", prompt="Q: tower?")], TOKENIZER)
    windows = Windows(stream, len(stream.tokens) - 1)
    batch = windows.batch(np.arange(1))
    learned = batch.targets[0][batch.targets[0] != IGNORE].tolist()
    end = TOKENIZER.end_of_text_id
    assert learned == [*encode(" blue"), end, *encode(" tall"), end]
    assert TOKENIZER.decode(batch.inputs[0].tolist()).startswith("Q: colour? blue")


def test_every_epoch_is_a_new_permutation_from_the_seed() -> None:
    first, second = epoch_order(100, seed=1, epoch=0), epoch_order(100, seed=1, epoch=1)
    assert sorted(first) == sorted(second) == list(range(100))
    assert not np.array_equal(first, second)
    assert np.array_equal(first, epoch_order(100, seed=1, epoch=0))
    assert not np.array_equal(first, epoch_order(100, seed=2, epoch=0))


def test_an_epoch_of_batches_holds_every_window_once() -> None:
    windows = small_windows()
    rows = torch.cat([b.inputs for b in batches(windows, 3, seed=0, epoch=0)])
    everything = windows.batch(np.arange(len(windows))).inputs
    assert sorted(rows.tolist()) == sorted(everything.tolist())


def test_a_span_is_cut_out_of_the_stream() -> None:
    stream = small_windows().stream
    head, tail = Windows(stream, 8, span=(0, 20)), Windows(stream, 8, span=(19, len(stream.tokens)))
    targets = [w.batch(np.arange(len(w))).targets for w in (head, tail)]
    joined = torch.cat([t[t != IGNORE] for t in targets])
    assert joined.tolist() == stream.tokens[1:].tolist()


def test_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(CorpusError):
        tokenize([], TOKENIZER)
