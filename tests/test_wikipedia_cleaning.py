"""Cleaning of Wikipedia articles: what an extraction leaves behind goes, prose stays as it is."""

import json
import logging
import time
from collections import Counter
from pathlib import Path

import pytest
from models import tiny_tokenizer

from transformer.data.document import PIECE, Document
from transformer.data.shards import tokenized
from transformer.data.wikipedia import MIN_CHARACTERS, clean_article, clean_articles, fault_of
from transformer.errors import CorpusError
from transformer.hub.text_sources import documents, find_text, pieces

PROSE = (
    "The River Ouse rises in the hills near the old town, and it meets the sea at the port some 240.5 km to the east. "
    "It was named in 1086, and its banks were walled in the time of the mills."
)
ARTICLE = "\n\n".join(["River Ouse", PROSE, "History", PROSE.replace("Ouse", "Nene"), PROSE.replace("Ouse", "Tees")])


@pytest.mark.parametrize(
    "text", [PROSE, ARTICLE, f"{PROSE}\n{PROSE}", f"A short line.\n{PROSE}", "naïve 東京 – (1889) [sic]."]
)
def test_prose_stays_as_it_is(text: str) -> None:
    assert clean_article(text) == text


@pytest.mark.parametrize(
    ("line", "cleaned"),
    [
        ("The Ouse () is a river.", "The Ouse is a river."),
        ("The Ouse ( ; , or ) is a river.", "The Ouse is a river."),
        ("The Ouse (; born 1086) is a river.", "The Ouse (born 1086) is a river."),
        ("The Ouse (Latin: ; ) is a river.", "The Ouse (Latin) is a river."),
        ("The Ouse [ ] is a river.", "The Ouse is a river."),
        ("The Ouse (  a river ) is old.", "The Ouse (a river) is old."),
        ("It is old (), and long.", "It is old, and long."),
        ("It is old,<br> and <small>long</small>.", "It is old, and long."),
        ("It is long.[[update]] It is old.", "It is long. It is old."),
        ("s of 2010[[update]], it is long.", "As of 2010, it is long."),
        ("It is, s of 2010[[update]], long.", "It is, as of 2010, long."),
        ("It is old. s of 2010[[update]] it is long.", "It is old. As of 2010 it is long."),
        ("The  Ouse   is a river.", "The Ouse is a river."),
    ],
)
def test_what_templates_left_is_taken_out(line: str, cleaned: str) -> None:
    assert clean_article(f"{line}\n{PROSE}") == f"{cleaned}\n{PROSE}"


@pytest.mark.parametrize(
    "line",
    [
        "{{Infobox river",
        "|length = 240",
        "! header",
        "[[File:Ouse.jpg",
        '<gallery mode="packed">',
        "width = 240",
        'It has class="wikitable" in it.',
        "The length is formula_1 in all.",
        "AT&amp;T is a firm.",
        'It is called "" by some.',
        "( )",
    ],
)
def test_lines_of_markup_are_left_out(line: str) -> None:
    assert clean_article(f"{PROSE}\n{line}\n{PROSE}") == f"{PROSE}\n{PROSE}"


@pytest.mark.parametrize("heading", ["References", "See also", "EXTERNAL LINKS", "Notes.", "Further reading"])
def test_sections_of_references_are_left_out(heading: str) -> None:
    assert clean_article(f"{PROSE}\n\n{heading}\n\nA. Author, A long book of rivers. {PROSE}") == PROSE
    assert clean_article(f"{PROSE}\n{heading} of the river\n{PROSE}").count(PROSE) == 2


def test_lists_are_left_out_and_a_few_short_lines_are_not() -> None:
    items = [f"Mill number {number}" for number in range(4)]
    assert clean_article("\n".join([PROSE, *items, PROSE])) == f"{PROSE}\n{PROSE}"
    assert clean_article("\n".join([PROSE, *items[:3], PROSE])) == "\n".join([PROSE, *items[:3], PROSE])


def test_headings_without_a_section_are_left_out() -> None:
    assert clean_article(f"{PROSE}\n\nHistory\n\nMills") == PROSE


def test_an_article_that_is_not_worth_learning_from_says_why() -> None:
    assert fault_of(ARTICLE) is None
    assert fault_of(PROSE[: MIN_CHARACTERS - 1]) == f"shorter than {MIN_CHARACTERS} characters"
    assert fault_of("A short line.\n" * 50) == "mostly short lines"
    assert fault_of("Это река, и она длинная. " * 30) == "mostly other characters than Latin letters"
    assert fault_of("1889 1890 1891 1892 " * 30) == "mostly other characters than Latin letters"


def test_articles_are_cleaned_counted_and_kept_once() -> None:
    counts: Counter[str] = Counter()
    dirty = f"{ARTICLE}\n\nReferences\n\nA. Author, A book of rivers, 1889"
    read = [ARTICLE, "A stub.", dirty, ARTICLE.replace("River", "Stream")]
    kept = list(clean_articles(map(Document.of, read), counts))
    assert kept == [Document.of(ARTICLE), Document.of(ARTICLE.replace("River", "Stream"))]
    assert counts == {
        "articles read": 4,
        "characters read": sum(map(len, read)),
        "characters kept": sum(len(document.text) for document in kept),
        "articles left out: a copy of another": 1,
        f"articles left out: shorter than {MIN_CHARACTERS} characters": 1,
    }


def write(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_corpus_is_read_cleaned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    long = "\n".join(f"{PROSE} {number}." for number in range(3 * PIECE // len(PROSE)))
    path = write(tmp_path / "a.jsonl", {"text": f"{ARTICLE}\nReferences\na book"}, {"text": "A stub."}, {"text": long})
    with caplog.at_level(logging.INFO):
        found = list(pieces(path, clean="wikipedia"))
    assert "articles read: 3" in caplog.text and "articles left out: shorter" in caplog.text
    assert found[0] == Document.of(ARTICLE) and "".join(piece.text for piece in found[1:]) == long
    assert [piece.continues for piece in found] == [False, False, *[True] * (len(found) - 2)] and len(found) > 2
    tokenizer = tiny_tokenizer()
    clean, as_it_is = (tokenized(find_text(path), tokenizer, tmp_path / "c", how) for how in ("wikipedia", None))
    assert len(clean.starts) == 2 and len(as_it_is.starts) == 3
    assert tokenizer.decode(clean.tokens.tolist()) == ARTICLE + long
    assert tokenizer.decode(as_it_is.tokens.tolist()) == "".join(document.text for document in documents(path))
    assert clean.n_bytes == len((ARTICLE + long).encode())


def test_what_cannot_be_cleaned_says_so(tmp_path: Path) -> None:
    stub = write(tmp_path / "a.jsonl", {"text": "A stub."}, {"text": "Another."})
    with pytest.raises(CorpusError, match=r"cleaning leaves nothing of .*a.jsonl \(2 articles left out: shorter"):
        list(pieces(stub, clean="wikipedia"))
    with pytest.raises(CorpusError, match="cleaning is for articles"):
        list(pieces(write(tmp_path / "b.jsonl", {"prompt": "a", "completion": ARTICLE}), clean="wikipedia"))


@pytest.mark.parametrize("part", [" ", ", ", "(", "(,", "<a ", "[[", '""', "= ", "a ( ", "\n", "(or"])
def test_no_article_takes_long(part: str) -> None:
    before = time.process_time()
    clean_article(f"a{part * (200_000 // len(part))}b")
    assert time.process_time() - before < 5  # it takes a tenth of a second; from every place of a run, minutes
