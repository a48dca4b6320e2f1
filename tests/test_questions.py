"""Conversations made of articles: what is asked is what the answer says."""

import json
import re

import pytest

from transformer.cli import main
from transformer.data.article_questions import conversations, facts_of, sentences
from transformer.hub.text_sources import documents

VERNE = (
    "Jules Gabriel Verne (8 February 1828 – 24 March 1905) was a French novelist, poet, and playwright. He is best "
    "known for his adventure novels. Verne is considered an important author in France.\n"
    "Early life.\n"
    "Verne was born on 8 February 1828 in Nantes, France, on a small artificial island in the river. "
    "His mother was Sophie."
)
BRIDGE = (
    "In engineering, a bridge is a structure built to span a valley or a road (see U.S. Route 1). There are many "
    "designs. Designs vary with the nature of the terrain."
)
NANTES = "Nantes (Breton: Naoned) is a city in western France, on the Loire River. It has 300,000 inhabitants."


def test_a_person():
    facts = facts_of("Jules Verne", VERNE)
    assert facts.person and facts.name == "Jules Verne"
    assert facts.answer.startswith("Jules Verne was a French novelist, poet, and playwright. He is best known")
    assert (facts.born, facts.died, facts.birthplace) == ("8 February 1828", "24 March 1905", "Nantes, France")


def test_a_thing_keeps_its_article_and_loses_its_field():
    facts = facts_of("Bridge", BRIDGE)
    assert not facts.person and not facts.place
    assert facts.answer.startswith("A bridge is a structure built to span a valley or a road. There are many designs.")


def test_a_place_is_asked_for():
    asked = [question for seed in range(20) for talk in conversations("Nantes", NANTES, seed) for question, _ in talk]
    assert any(question.startswith("Where") for question in asked)


@pytest.mark.parametrize(
    ("title", "text"),
    [
        ("List of rivers", "This is a list of rivers that are long."),
        ("1957", "1957 was a common year that started on a Tuesday."),
        ("Odd", "Something else entirely is a thing that has another name."),
        ("Bridge", "A bridge of many kinds can be built"),
        ("Bridge", "A bridge is () a broken sentence with brackets (and more."),
        ("Bridge", ""),
        ("", BRIDGE),
    ],
)
def test_an_opening_that_defines_nothing_gives_no_question(title, text):
    assert list(conversations(title, text)) == []


def test_the_same_seed_asks_the_same():
    assert list(conversations("Jules Verne", VERNE, 5)) == list(conversations("Jules Verne", VERNE, 5))
    asked = {json.dumps(list(conversations("Jules Verne", VERNE, seed))) for seed in range(20)}
    assert len(asked) > 10


@pytest.mark.parametrize("title, text", [("Jules Verne", VERNE), ("Bridge", BRIDGE), ("Nantes", NANTES)])
def test_answers_are_one_to_four_whole_sentences_and_begin_with_the_subject(title, text):
    for seed in range(40):
        for talk in conversations(title, text, seed):
            for number, (question, answer) in enumerate(talk):
                assert question.strip() and re.search(r"[.!?]\"?$", answer), answer
                assert 1 <= len(sentences(answer)) <= 4
                assert not re.search(r"[()\[\]]", answer)
                if number == 0:
                    assert title.split()[-1].lower() in answer[:40].lower()


def test_sentences_do_not_end_after_initials_and_abbreviations():
    text = (
        'J. R. R. Tolkien lived in St. Albans, U.S. territory aside. He said "No. Never." Then c. 1900 he left '
        "(it was Dr. Who. Really). End."
    )
    found = sentences(text)
    assert found[0] == "J. R. R. Tolkien lived in St. Albans, U.S. territory aside."
    assert found[-1] == "End."
    assert " ".join(found) == text


def test_a_data_set_of_conversations_is_one_that_training_reads(tmp_path, capsys):
    articles = [("Jules Verne", VERNE), ("Bridge", BRIDGE), ("Nantes", NANTES)]
    padding = " ".join(["It is a long and well known article about many things."] * 10)
    rows = [{"id": n, "title": title, "text": f"{text} {padding}"} for n, (title, text) in enumerate(articles)]
    rows.insert(1, {"id": 9, "title": "Blank", "text": ""})  # which must not shift the titles after it
    source, output = tmp_path / "articles.jsonl", tmp_path / "talks.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = ["conversations", "--data", str(source), "--output", str(output), "--text-share", "1"]
    assert main(command) == 0 and "3 articles" in capsys.readouterr().out
    first = output.read_bytes()
    assert main(command) == 0 and output.read_bytes() == first
    read = list(documents(str(output)))
    plain = [document for document in read if len(document.parts) == 1]
    assert len(plain) == 3 and all(document.parts == ((document.text, True),) for document in plain)
    talks = [document.text for document in read if len(document.parts) > 1]
    assert any("User: Hello!\nAssistant: " in talk for talk in talks)
    assert any("Jules Verne was a French novelist" in talk for talk in talks)
    assert any("Nantes is a city" in talk for talk in talks)
    assert main([*command, "--max-documents", "2"]) == 0 and "1 articles" in capsys.readouterr().out  # one is blank
    assert "Nantes is a city" not in output.read_text(encoding="utf-8")
    assert main([*command, "--max-documents", "0"]) == 1 and "at least 1, not 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "share", "sentence"),
    [
        ("a.jsonl", '{"text": "A bridge."}', "0.1", "no text in a column 'title'"),
        ("a.txt", "A bridge is a structure.", "0.1", "no text in a column 'title'"),
        ("a.jsonl", '{"title": "Bridge", "text": "A bridge."}', "5", "text_share must be in"),
    ],
)
def test_data_that_has_no_titles_is_refused(name, content, share, sentence, tmp_path, capsys):
    (tmp_path / name).write_text(content, encoding="utf-8")
    command = ["conversations", "--data", str(tmp_path / name), "--output", str(tmp_path / "b.jsonl")]
    assert main([*command, "--text-share", share]) == 1
    assert sentence in capsys.readouterr().err and not (tmp_path / "b.jsonl").exists()
