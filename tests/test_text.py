"""Tokenizer and corpus."""

import gzip
import json
from pathlib import Path

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from models import SENTENCES, tiny_tokenizer
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, normalizers
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

from transformer.data.conversation import conversation
from transformer.data.document import PIECE, Document, articles
from transformer.data.tokenizer import Tokenizer
from transformer.errors import CheckpointError, ConfigError, CorpusError
from transformer.hub.text_sources import documents, has_split, pieces

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
    other = Tokenizer.train(SENTENCES, 300, end_of_text="<end>")
    assert other.end_of_text_id == 0 and other.pad_id is None


def test_whole_tokens_are_one_token_each_and_stay_in_the_text() -> None:
    tokenizer = Tokenizer.train(["the <unk> sea", *SENTENCES], 300, whole=["<unk>"])
    assert tokenizer.vocab_size == 300 and tokenizer.backend.token_to_id("<unk>") == 1
    ids = tokenizer.encode_documents(["a <unk>, b<unk>"])[0]
    assert ids.count(1) == 2 and tokenizer.decode(ids) == "a <unk>, b<unk>"
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
    with pytest.raises(ConfigError, match="257"):
        Tokenizer.train(SENTENCES, 100)


def test_gpt2s_own_tokenizer(shared: Path) -> None:
    gpt2 = Tokenizer.load(shared / "tokenizers" / "gpt2")
    assert gpt2.encode_documents(["Hello world"]) == [[15496, 995]]
    assert gpt2.encode_prompt("Hello world") == [15496, 995]
    assert (gpt2.end_of_text_id, gpt2.vocab_size) == (50256, 50257)


@pytest.mark.parametrize("size", [1, 7, 100])
def test_a_vocabulary_is_the_same_however_the_texts_are_cut_at_line_ends(size: int) -> None:
    lines = [line for sentence in SENTENCES for line in (sentence + "\n", "\n", "  in two lines\n")]
    chunks = ["".join(lines[start : start + size]) for start in range(0, len(lines), size)]
    assert Tokenizer.train(chunks, 300).backend.to_str() == Tokenizer.train(lines, 300).backend.to_str()


def test_more_text_than_is_needed_is_thinned_out_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformer.data.tokenizer_training.TRAINING_CHARACTERS", 4000)
    texts = [f"{word}\n" for word in ["early"] * 4000 + ["later"] * 4000]
    vocabulary = Tokenizer.train(texts, 300).backend.get_vocab()
    assert {"early", "later"} <= set(vocabulary)


@pytest.mark.slow  # twelve million characters
def test_wikitext_2_has_the_tokens_that_the_library_itself_gives(shared: Path) -> None:
    texts = [(shared / "data/wikitext-2" / f"{name}.txt").read_text() for name in ("train", "validation")]
    tokenizer = Tokenizer.train(texts[:1], 8192, whole=["<unk>"])
    counts = [sum(map(len, tokenizer.encode_documents(text.splitlines(keepends=True)))) for text in texts]
    assert counts == [2_634_033, 271_439]
    assert tokenizer.vocab_size == 8192


@pytest.fixture(scope="module", params=["vocab.txt", "tokenizer.json"])
def bert(request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """BERT's tokenizer from its word list, and from the file that `transformers` writes."""
    vocabulary = shared / "tokenizers" / "bert-base-uncased" / "vocab.txt"
    if request.param == "vocab.txt":
        return Tokenizer.load(vocabulary.parent)
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("bert")
    transformers.BertTokenizerFast(vocab=str(vocabulary)).save_pretrained(folder)
    return Tokenizer.load(folder)


def test_berts_tokenizer_puts_nothing_around_a_text(bert: Tokenizer) -> None:
    assert bert.encode_prompt("Hello World") == bert.encode_documents(["hello world"])[0] == [7592, 2088]
    assert (bert.end_of_text, bert.end_of_text_id, bert.pad, bert.pad_id) == ("[SEP]", 102, "[PAD]", 0)
    assert bert.vocab_size == 30522
    assert 102 not in bert.encode_documents(["a [SEP] b"])[0]


def test_berts_pieces_are_joined_to_words(bert: Tokenizer) -> None:
    ids = bert.encode_prompt("Transformers, unaffable: a naïve tower.")
    assert len(ids) > 8  # words and marks: some words are pieces
    assert bert.decode([*ids, 102]) == "transformers, unaffable : a naive tower."
    stream = bert.stream()
    assert "".join(map(stream.add, ids)) == bert.decode(ids)


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(999, 30521), max_size=20))
def test_berts_streamed_pieces_are_the_text(bert: Tokenizer, ids: list[int]) -> None:
    stream = bert.stream()
    assert "".join(map(stream.add, ids)) == bert.decode(ids)


def test_a_text_file_that_is_no_vocabulary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(CheckpointError, match=r"vocab\.txt"):
        Tokenizer.load(tmp_path)


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
    assert list(articles([])) == list(articles(["\n"] * (3 * PIECE))) == []


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_a_long_document_comes_in_pieces_that_have_its_tokens(kind: str, tmp_path: Path) -> None:
    text = "".join(f"{sentence}\n" + "\n " * (i % 3) for i in range(1500) for sentence in SENTENCES) + "end\n"
    path = tmp_path / f"long.{kind}"
    path.write_text(text if kind == "txt" else "".join(json.dumps({"text": t}) + "\n" for t in (text, "short")))
    found = list(pieces(str(path)))
    of_the_first = found if kind == "txt" else found[:-1]
    assert len(of_the_first) > 1 and all(len(piece.text) <= 2 * PIECE for piece in found)
    assert [piece.continues for piece in of_the_first] == [False] + [True] * (len(of_the_first) - 1)
    ids = [token for piece in of_the_first for token in encode(piece.text)]
    assert ids == encode(text)
    assert next(documents(str(path))) == Document.of(text)


@pytest.mark.parametrize("text", ["x" * (5 * PIECE), "東京" * (3 * PIECE), " \n" * (3 * PIECE) + "end\n"])
def test_a_long_text_without_words_is_cut_too(text: str) -> None:
    found = list(articles([text]))
    assert "".join(piece.text for piece in found).strip() == text.strip()
    assert not found[0].continues and all(piece.continues for piece in found[1:])
    assert all(0 < len(piece.text) <= 2 * PIECE for piece in found)


def test_a_folder_has_the_splits_of_its_file_names(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": "to learn"}) + "\n")
    (tmp_path / "validation.jsonl").write_text(json.dumps({"text": "to check"}) + "\n")
    assert [d.text for d in documents(str(tmp_path))] == ["to learn"]
    assert [d.text for d in documents(str(tmp_path), split="validation")] == ["to check"]
    assert has_split(str(tmp_path), None, "validation")


def write_rows(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_prompts_and_completions(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "pairs.jsonl", {"prompt": "Q: colour?", "completion": " blue"})
    assert list(documents(path)) == [Document.of(" blue", prompt="Q: colour?")]


SYSTEM = {"role": "system", "content": "Be short."}
QUESTION = {"role": "user", "content": "What colour is it?\n"}
ANSWER = {"role": "assistant", "content": "Blue."}
MORE = {"role": "user", "content": "And cooked?"}
RED = {"role": "assistant", "content": "Red."}


def test_of_a_conversation_the_answers_are_learned(tmp_path: Path) -> None:
    rows = [{"messages": [SYSTEM, QUESTION, ANSWER, MORE, RED]}, {"messages": [QUESTION, ANSWER]}, {"messages": [MORE]}]
    first, second, third = documents(write_rows(tmp_path / "chat.jsonl", *rows))
    assert (
        first.text
        == "System: Be short.\nUser: What colour is it?\nAssistant: Blue.\nUser: And cooked?\nAssistant: Red."
    )
    assert [text for text, learned in first.parts if learned] == [" Blue.", " Red."]
    assert second.parts == (("User: What colour is it?\nAssistant:", False), (" Blue.", True))
    assert third.parts == (("User: And cooked?", False),)


def test_a_prompt_for_an_answer_is_what_stood_before_the_learned_one() -> None:
    messages = [SYSTEM, QUESTION, ANSWER, MORE]
    *before, (answer, learned) = conversation([*messages, RED])
    prompt = "".join(text for text, _ in conversation(messages)) + "\nAssistant:"
    assert prompt == "".join(text for text, _ in before)
    assert (answer, learned) == (" Red.", True)


@pytest.mark.parametrize(
    ("messages", "word"),
    [
        ([{"role": "tool", "content": "x"}], "role.*'tool'.*assistant"),
        ([{"role": "", "content": "x"}], "role"),
        ([QUESTION, {"role": "assistant", "content": " "}], "content.*assistant"),
        ([{"role": "user"}], "content.*user"),
        ([], "list of messages"),
        ("User: hi", "list of messages"),
        (["hi"], "role"),
    ],
)
def test_a_conversation_that_cannot_be_used_says_which_row(messages: object, word: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "chat.jsonl", {"messages": [QUESTION, ANSWER]}, {"messages": messages})
    with pytest.raises(CorpusError, match=f"row 2 .*{word}" if isinstance(messages, list) else "chat.jsonl"):
        list(documents(path))
    with pytest.raises(CorpusError, match=word):
        conversation(messages)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("a.jsonl", '{"body": "x"}\n', "column 'text'"),
        ("a.jsonl", '{"text": " "}\n', "no text"),
        ("a.jsonl", '{"text": \n', "a.jsonl"),
        ("a.jsonl", '{"text": 5}\n', "expected strings"),
        ("a.jsonl", '{"text": "a"}\n{"text": null}\n', "row 2 .*expected strings"),
        ("a.jsonl", '{"prompt": "a", "completion": " "}\n', "nothing .* learned"),
        ("a.jsonl", '{"messages": [{"role": "user", "content": "a"}]}\n', "nothing .* learned"),
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


# ---- tokenizers of others ----


def llama2(path: Path, metaspace: bool = False) -> Path:
    """A tokenizer of the shape that Llama 2 has: SentencePiece's BPE with bytes to fall back on, <s> in front."""
    backend = Backend(BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False, limit_alphabet=60)
    backend.train_from_iterator([word for sentence in SENTENCES * 5 for word in sentence.split(" ")], trainer)
    if metaspace:  # as newer files say it
        backend.normalizer = None
        backend.pre_tokenizer = Metaspace(replacement="▁", prepend_scheme="first", split=False)
    rules = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(rules)
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fields = json.loads(backend.to_str())
    fields["added_tokens"] = [token for token in fields["added_tokens"] if not token["content"].startswith("<0x")]
    (path / "tokenizer.json").write_text(json.dumps(fields))
    settings = {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, "legacy": False}
    settings |= {"bos_token": "<s>", "eos_token": {"content": "</s>", "__type": "AddedToken"}, "unk_token": "<unk>"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


@pytest.mark.parametrize("metaspace", [False, True])
@pytest.mark.parametrize("prompt", ["", "The river", "café 東京 🦞"])
def test_streamed_pieces_after_a_prompt_are_what_transformers_decodes(
    metaspace: bool, prompt: str, tmp_path: Path
) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(llama2(tmp_path, metaspace))
    tokenizer = Tokenizer.load(tmp_path)
    ids = tokenizer.encode_prompt(prompt)
    assert ids == theirs(prompt)["input_ids"] and ids.count(1) == 1
    new = tokenizer.encode_prompt("rises — near the 東京 hills 🦞 , in €6.")[1:]
    stream = tokenizer.stream(ids)
    pieces = [stream.add(token) for token in new]
    whole = theirs.decode(ids + new, skip_special_tokens=True)
    assert theirs.decode(ids, skip_special_tokens=True) + "".join(pieces) == whole
    assert "".join(pieces).startswith(" " if prompt else "rises") and "\ufffd" not in "".join(pieces)


def test_the_token_in_front_is_there_once_and_what_is_said_of_tokens_survives(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(llama2(tmp_path))
    assert tokenizer.encode_prompt("<s>The river").count(1) == 1
    assert (tokenizer.bos, tokenizer.bos_id, tokenizer.end_of_text_id) == ("<s>", 1, 2)
    (tmp_path / "again").mkdir()
    tokenizer.save(tmp_path / "again")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert (theirs.bos_token, theirs.eos_token, theirs.unk_token) == ("<s>", "</s>", "<unk>")
    assert theirs("The river")["input_ids"] == tokenizer.encode_prompt("The river")


def test_a_file_that_cuts_or_fills_texts_does_not_do_so_here(tmp_path: Path) -> None:
    backend = Backend.from_str(TOKENIZER.backend.to_str())
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path).encode_prompt(SENTENCES[0]) == TOKENIZER.encode_prompt(SENTENCES[0])
