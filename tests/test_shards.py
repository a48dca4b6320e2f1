"""Documents as tokens, in memory and on disk."""

import json
import logging
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from models import SENTENCES, tiny_tokenizer

from transformer.data.document import Document, pieces_of
from transformer.data.shards import tokenized
from transformer.data.tokenize import TokenStream, tokenize
from transformer.errors import CorpusError
from transformer.hub.text_sources import documents, find_text

TOKENIZER = tiny_tokenizer()
END = TOKENIZER.end_of_text_id


def encode(text: str) -> list[int]:
    return TOKENIZER.encode_documents([text])[0]


def write_rows(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def assert_same(a: TokenStream, b: TokenStream) -> None:
    assert np.array_equal(a.tokens, b.tokens) and np.array_equal(a.starts, b.starts) and a.n_bytes == b.n_bytes
    assert (a.loss_mask is None) == (b.loss_mask is None)
    assert a.loss_mask is None or np.array_equal(a.loss_mask, b.loss_mask)


# ---- in memory ----


def test_documents_are_packed_with_the_end_of_text_between_them() -> None:
    stream = tokenize([Document.of("river"), Document.of("sea")], TOKENIZER)
    assert stream.tokens.tolist() == [END, *encode("river"), END, *encode("sea"), END]
    assert stream.starts.tolist() == [0, 1 + len(encode("river"))]
    assert stream.n_bytes == 8 and stream.loss_mask is None


def test_what_is_only_read_is_marked_and_so_is_the_end_of_a_text_that_ends_with_it() -> None:
    read_last = Document((("Q:", False), (" red", True), ("\nQ: more?", False)))
    stream = tokenize([read_last, Document.of(" blue", prompt="Q:")], TOKENIZER)
    question, red, more, blue = (len(encode(text)) for text in ("Q:", " red", "\nQ: more?", " blue"))
    expected = [True] + [False] * question + [True] * red + [False] * (more + 1 + question) + [True] * (blue + 1)
    assert stream.loss_mask is not None and stream.loss_mask.tolist() == expected
    assert stream.n_bytes == len(" red blue")


def test_pieces_of_a_document_have_no_end_of_text_between_them() -> None:
    long = Document.of(" ".join(SENTENCES * 1500))
    cut = list(pieces_of(long))
    assert len(cut) > 1
    assert_same(tokenize([*cut, Document.of("sea")], TOKENIZER), tokenize([long, Document.of("sea")], TOKENIZER))


def test_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(CorpusError):
        tokenize([], TOKENIZER)


# ---- on disk ----


@pytest.mark.parametrize("learned", [True, False])
def test_shards_are_the_same_tokens_and_are_made_once(learned: bool, tmp_path: Path) -> None:
    names = ("text",) if learned else ("prompt", "completion")
    source = write_rows(tmp_path / "a.jsonl", *(dict.fromkeys(names, s) for s in SENTENCES))
    first = tokenized(find_text(source), TOKENIZER, tmp_path / "cache")
    assert_same(first, tokenize(documents(source), TOKENIZER))
    assert isinstance(first.tokens, np.memmap) and (first.loss_mask is None) == learned
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    assert_same(tokenized(find_text(source), TOKENIZER, tmp_path / "cache"), first)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")} == made


def test_a_changed_text_tokenizer_or_split_has_its_own_shards(tmp_path: Path) -> None:
    cache, folder = tmp_path / "cache", tmp_path / "corpus"
    folder.mkdir()
    write_rows(folder / "train.jsonl", {"text": "the river"})
    write_rows(folder / "validation.jsonl", {"text": "the sea"})
    seen = [tokenized(find_text(str(folder)), TOKENIZER, cache)]
    seen.append(tokenized(find_text(str(folder), split="validation"), TOKENIZER, cache))
    seen.append(tokenized(find_text(str(folder)), tiny_tokenizer(290), cache))
    write_rows(folder / "train.jsonl", {"text": "the hills"})  # of the same length
    seen.append(tokenized(find_text(str(folder)), TOKENIZER, cache))
    assert len(list(cache.iterdir())) == len(seen) == 4
    assert TOKENIZER.decode(seen[-1].tokens.tolist()) == "the hills"


@pytest.mark.parametrize("damage", ["cut", "gone", "meta"])
def test_damaged_shards_are_made_again(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_rows(tmp_path / "a.jsonl", *({"text": s} for s in SENTENCES))
    whole = tokenized(find_text(source), TOKENIZER, tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    tokens = folder / "tokens"
    if damage == "cut":
        tokens.write_bytes(tokens.read_bytes()[:-1])
    elif damage == "gone":
        tokens.unlink()
    else:
        (folder / "meta.json").write_text("{")
    whole = tokenize(documents(source), TOKENIZER)
    with caplog.at_level(logging.WARNING):
        assert_same(tokenized(find_text(source), TOKENIZER, tmp_path / "cache"), whole)
    assert "damaged" in caplog.text
    caplog.clear()
    assert_same(tokenized(find_text(source), TOKENIZER, tmp_path / "cache"), whole)
    assert not caplog.text and list((tmp_path / "cache").iterdir()) == [folder]


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "a.jsonl", {"text": "good"}, {"text": 5})
    with pytest.raises(CorpusError):
        tokenized(find_text(source), TOKENIZER, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "a.jsonl", *({"text": s} for s in SENTENCES * 2000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # writing fails there, as on a disk that is full
    try:
        with pytest.raises(CorpusError, match="cannot be written"):
            tokenized(find_text(source), TOKENIZER, tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "a.jsonl", {"text": "good"})
    with pytest.raises(CorpusError, match="XDG_CACHE_HOME"):
        tokenized(find_text(source), TOKENIZER, Path(source) / "cache")


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_rows(tmp_path / "a.jsonl", {"text": "good"})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    tokenized(find_text(source), TOKENIZER)
    assert len(list((tmp_path / "xdg" / "decoder-only-transformer" / "tokens").iterdir())) == 1


@pytest.mark.parametrize("damaged", [False, True])
def test_several_at_once_do_not_harm_each_other(damaged: bool, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "a.jsonl", *({"text": s} for s in SENTENCES * 20))
    if damaged:
        tokenized(find_text(source), TOKENIZER, tmp_path / "cache")
        (folder,) = (tmp_path / "cache").iterdir()
        (folder / "starts").write_bytes(b"")
    # Each with a tokenizer of its own: the library's switch for special tokens is not for threads.
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda t: tokenized(find_text(source), t, tmp_path / "cache"), [tiny_tokenizer()] * 4))
    for stream in made:
        assert_same(stream, tokenize(documents(source), TOKENIZER))
    assert len(list((tmp_path / "cache").iterdir())) == 1
