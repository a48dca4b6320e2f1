"""Files of text: what is read is what was meant, under any name, or a sentence says why not."""

import codecs
import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from hub_server import Hub
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from models import tiny_model, tiny_tokenizer
from test_hub_server import run

from transformer.cli import main
from transformer.data import row_reader
from transformer.data.batches import Batch
from transformer.data.corpus import Corpus
from transformer.data.document import Document
from transformer.data.file_format import looks_like_json
from transformer.data.shards import tokenized
from transformer.data.streaming import StreamBatches
from transformer.errors import CorpusError
from transformer.evaluation import evaluate
from transformer.hub import checkpoint
from transformer.hub.text_sources import documents, find_text, has_conversations, has_split, pieces
from transformer.training.distributed import Engine
from transformer.training.options import parse
from transformer.training.run_components import build
from transformer.training.train_config import TrainConfig

TEXTS = ["The river rises.", "Naïve café,\nin two lines 🦞.", "The sea."]
ROWS = [{"text": text} for text in TEXTS]
NAMES = ["a.jsonl", "a.json", "a.txt", "a.bin", "a", "a.dat", "a.JSONL", "octet-stream", "a.jsonl.download", "a.md"]
BOM = "\ufeff"


def lines(rows: list, end: str = "\n") -> str:
    return end.join(json.dumps(row, ensure_ascii=False) for row in rows)


CONTAINERS: dict[str, Callable[[list], str]] = {
    "lines": lambda rows: lines(rows) + "\n",
    "lines without a final end": lines,
    "lines of Windows": lambda rows: lines(rows, "\r\n"),
    "lines with blank ones": lambda rows: "\n\n" + lines(rows, "\n \n") + "\n\n",
    "array": json.dumps,
    "indented array": lambda rows: "  \n" + json.dumps(rows, indent=2, ensure_ascii=False),
    "array of lines": lambda rows: "[\n" + lines(rows, ",\n") + "\n]\n",
    "indented objects": lambda rows: "\n".join(json.dumps(row, indent=1) for row in rows),
    "one line": lambda rows: lines(rows, ""),
}


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def refusal(*arguments: str | None, **named: str | None) -> str:
    """The sentence with which a corpus is refused."""
    with pytest.raises(CorpusError) as raised:
        list(documents(*arguments, **named))  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)
    return str(raised.value)


# ---- JSON ----


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("packed", [False, True])
def test_json_is_recognised_by_content_under_any_name(name: str, packed: bool, tmp_path: Path) -> None:
    for mark in ("", BOM):
        for kind, container in CONTAINERS.items():
            content = (mark + container(ROWS)).encode()
            path = write(tmp_path / name, gzip.compress(content) if packed else content)
            assert [d.text for d in documents(path)] == TEXTS, kind


@pytest.mark.parametrize("name", ["a.json", "a.txt"])
@pytest.mark.parametrize(
    "content",
    [
        '{"text": "a"}\n{"text": "b"',
        '{"text": "a"}\n{"text": "b}\n{"text": "c"}\n',
        '{"text": "a"}\nnothing\n{"text": "b"}\n',
        '[{"text": "a"}, {"text": "b"}',
        '[{"text": "a"} {"text": "b"}]',
        '[{"text": "a"}] [{"text": "b"}]',
        '{"text": "a"},\n{"text": "b"}\n',
        "{'text': 'a'}\n{'text': 'b'}\n",
        'ver."}\n{"text": "a"}\n{"text": "b"}\n',
        '"text": "a"}',
        '# rows\n{"text": "a"}\n',
        '{"text": }',
        "[1, 2, 3]",
        "[[1, 2], [3]]",
        "[]",
        "{}",
        "{",
        '"{\\"text\\": \\"a\\"}"\n"{\\"text\\": \\"b\\"}"\n',
        '{"text": "a"}' + "[" * 100_000,
        '{"name": "a", "version": "1.0"}',
        '{"data": [{"text": "a"}]}',
    ],
)
def test_what_looks_like_json_and_is_none_of_ours_is_never_prose(name: str, content: str, tmp_path: Path) -> None:
    assert name in refusal(write(tmp_path / name, content))


@pytest.mark.parametrize(
    "text",
    [
        "[Chorus]\nThe river rises.\n",
        "[1] A. Author, A book.\n[2] B. Author, Another.\n",
        "[1]\n\nThe river rises.",
        "{{Infobox river}}\nThe river is long.\n",
        "{ braces } in prose\n",
        '"Hello," he said.\n"Hello."\n',
        "1\n2\n3\n",
        "1,2,3\n4,5,6\n",
        'config = {"a": 1}\nprint(config["a"])\n',
        'Write it as follows:\n\n{"text": "a"}\n\nand so on, line by line,\n\nto the end.\n',
        'TABLE = {\n    "a": {"b": 1},\n    "c": {"d": 2},\n    "e": {"f": 3},\n}\n',
        "#include <stdio.h>\nint main() { return 0; }\n",
        "a: 1\nb:\n  - c\n",
        "x",
        "-",
        "\ttab\n",
    ],
)
def test_prose_code_and_tables_are_text(text: str, tmp_path: Path) -> None:
    for name in ("a.txt", "a", "a.bin", "a.md", "a.py"):
        assert [d.text for d in documents(write(tmp_path / name, text))] == [text]


def test_a_fault_in_json_is_named_with_its_row_and_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", lines(ROWS) + '\n{"text": oops}\n')
    assert f"row 4 of {path} is not valid JSON" in refusal(path) and "line 4, column 10" in refusal(path)
    assert f"row 2 of {path} is 5" in refusal(write(tmp_path / "a.jsonl", '{"text": "a"}\n5\n'))
    assert '{"text": ...}' in refusal(write(tmp_path / "a.txt", '{"text": '))


def test_an_array_of_strings_is_texts(tmp_path: Path) -> None:
    assert [d.text for d in documents(write(tmp_path / "a", json.dumps(TEXTS)))] == TEXTS


def test_columns_that_nobody_needs_may_hold_anything(tmp_path: Path) -> None:
    odd = [None, 1, 2.5, "a", {"deep": [{"x": 1}, {"x": "y"}]}, [1, "a"], {}, [], True, float("nan"), 10**30]
    rows = [{"text": f"text {i}", "meta": value} for i, value in enumerate(odd)] + [{"new": 1, "text": "late"}]
    content = lines(rows) + '\n{"text": "huge", "meta": ' + "1" * 10_000 + "}\n"
    expected = [*(row["text"] for row in rows), "huge"]
    assert [d.text for d in documents(write(tmp_path / "a.jsonl", content))] == expected


def test_files_of_a_folder_may_have_different_columns_and_layouts(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", lines([{"text": "one", "id": 1}]))
    write(tmp_path / "b.jsonl", lines([{"source": {"x": "y"}, "text": "two", "id": "three"}]))
    write(tmp_path / "c.jsonl", lines([{"prompt": "Q:", "completion": " A"}]))
    write(tmp_path / "d.jsonl", "")
    assert list(documents(str(tmp_path))) == [Document.of("one"), Document.of("two"), Document.of(" A", "Q:")]
    assert not has_conversations(str(tmp_path), None)
    path = write(tmp_path / "e.jsonl", lines([{"messages": [{"role": "user", "content": "a"}]}, {"messages": 3}]))
    assert has_conversations(str(tmp_path), None)
    assert f"row 2 of {path}: expected a list of messages, found 3" in refusal(str(tmp_path))


def test_each_text_file_of_a_folder_is_a_document(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / f"{name}.txt", name)
    assert [d.text for d in documents(str(tmp_path))] == ["one", "two"]


def test_parquet_is_known_by_content_and_other_columns_are_not_read(tmp_path: Path) -> None:
    table = pa.table({"text": TEXTS, "image": [b"\xff"] * 3, "nested": [{"a": [1]}, None, {"a": []}]})
    pyarrow.parquet.write_table(table, buffer := io.BytesIO())
    content = buffer.getvalue()
    for name in ("a.parquet", "a", "a.bin", "a.jsonl"):
        assert [d.text for d in documents(write(tmp_path / name, content))] == TEXTS
    assert [d.text for d in documents(write(tmp_path / "a.parquet.gz", gzip.compress(content)))] == TEXTS
    assert "a.parquet" in refusal(write(tmp_path / "a.parquet", content[:-40]))
    assert "is not a parquet file" in refusal(write(tmp_path / "a.parquet", "text"))
    other = pa.table({"body": TEXTS, "id": [1, 2, 3]})
    pyarrow.parquet.write_table(other, tmp_path / "b.parquet")
    assert "--text-column body" in refusal(str(tmp_path / "b.parquet"))
    assert [d.text for d in documents(str(tmp_path / "b.parquet"), text_column="body")] == TEXTS


# ---- text ----


@pytest.mark.parametrize("packed", [False, True])
def test_line_ends_and_the_byte_order_mark_are_not_in_the_text_but_its_bytes_are_counted(
    packed: bool, tmp_path: Path
) -> None:
    for text in ("one\ntwo\n", "one\r\ntwo\r\n", "one\rtwo\r", "one\r\n\r\ntwo", "\r", "é\r\r\n🦞\n\r"):
        plain = text.replace("\r\n", "\n").replace("\r", "\n")
        for mark in ("", BOM):
            content = (mark + text).encode()
            path = write(tmp_path / ("a.txt.gz" if packed else "a.txt"), gzip.compress(content) if packed else content)
            if not text.strip():
                assert "has no text" in refusal(path)
                continue
            (found,) = documents(path)
            assert found.text == plain and found.n_bytes == len(content)
            assert [found.text for _ in [0]] == [plain]


def test_line_ends_are_alike_in_every_container(tmp_path: Path) -> None:
    text = BOM + "one\r\ntwo\rthree"
    pyarrow.parquet.write_table(pa.table({"text": [text]}), tmp_path / "a.parquet")
    found = [
        *documents(write(tmp_path / "a.txt", text)),
        *documents(write(tmp_path / "a.jsonl", json.dumps({"text": text}))),
        *documents(str(tmp_path / "a.parquet")),
    ]
    assert [(d.text, d.n_bytes) for d in found] == [("one\ntwo\nthree", len(text.encode()))] * 3
    turn = [{"role": "user", "content": "a\r\nb"}, {"role": "assistant", "content": "c\rd"}]
    (talk,) = documents(write(tmp_path / "a.jsonl", json.dumps({"messages": turn})))
    assert talk.text == "User: a\nb\nAssistant: c\nd"


def test_articles_of_wikitext_are_found_whatever_the_line_ends(tmp_path: Path) -> None:
    text = " = One = \n \n First . \n = Two = \n \n Second . \n"
    for end in ("\n", "\r\n", "\r"):
        found = list(documents(write(tmp_path / "a.txt", text.replace("\n", end))))
        assert [d.text for d in found] == [" = One = \n \n First . \n", " = Two = \n \n Second . \n"]
        assert sum(d.n_bytes for d in found) == len(text.replace("\n", end))


def test_half_a_utf16_pair_is_replaced(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "a\\ud83d b \\ud83e\\udd9e"}')
    (found,) = documents(path)
    assert found.text == "a\ufffd b 🦞"
    assert len(tokenized(find_text(path), tiny_tokenizer(), tmp_path / "cache").tokens) > 3


@pytest.mark.parametrize(
    ("text", "encoding", "named"),
    [
        ("Le café de la gare, à côté du château.\n" * 5, "latin-1", "ISO-8859-1"),
        ("Le café.", "latin-1", "ISO-8859-1"),
        ("He said “no” — it’s fine…\n" * 5, "cp1252", "Windows-1252"),
        ("Привет, как дела? Это простой текст о городе и реке. " * 3, "cp1251", "CP1251"),
        ("これは川と町についての簡単なテキストです。いくつかの文があります。" * 3, "shift_jis", "SHIFT-JIS"),
        ("The river.\n", "utf-16", "UTF-16"),
        ("The river.\n", "utf-16-le", "UTF-16LE"),
        ("The river.\n", "utf-16-be", "UTF-16BE"),
        ("The river.\n", "utf-32", "UTF-32"),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a", "a.txt.gz"])
def test_another_encoding_is_named(text: str, encoding: str, named: str, name: str, tmp_path: Path) -> None:
    content = text.encode(encoding)
    sentence = refusal(write(tmp_path / name, gzip.compress(content) if name.endswith("gz") else content))
    assert named in sentence and name in sentence and "iconv" in sentence


def test_a_byte_that_is_not_utf8_is_found_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_reader, "CHUNK", 1000)
    content = b"The river rises.\n" * 10_000 + "Le café.\n".encode("latin-1") + b"The river.\n" * 1000
    assert "in line 10,001: it is probably ISO-8859-1" in refusal(write(tmp_path / "a.txt", content))
    rows = b'{"text": "The river."}\n' * 10_000 + '{"text": "Le café."}\n'.encode("latin-1")
    assert "in line 10,001: it is probably ISO-8859-1" in refusal(write(tmp_path / "a.jsonl", rows))


def archive(kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("a.txt", "text")
    else:
        with tarfile.open(fileobj=buffer, mode="w") as file:
            file.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (archive("zip"), "zip"),
        (archive("tar"), "tar"),
        (gzip.compress(archive("tar")), "tar"),
        (gzip.compress(gzip.compress(b"text")), "twice"),
        (gzip.compress(b"text " * 1000)[:-20], "damaged"),
        (b"\x1f\x8bnothing", "damaged"),
        (b"BZh91AY&SY\x00", "bzip2"),
        (b"\x28\xb5\x2f\xfd\x00", "zstd"),
        (b"%PDF-1.7\n", "PDF"),
        (b"PAR1 nothing", "cannot be read"),
        (bytes(range(256)), "null bytes"),
        (bytes(range(128, 256)) * 10, "nor another encoding"),
    ],
    ids=lambda value: value if isinstance(value, str) else "content",
)
def test_what_is_no_text_is_named(content: bytes, word: str, tmp_path: Path) -> None:
    for name in ("a", "a.txt", "a.jsonl"):
        sentence = refusal(write(tmp_path / name, content))
        assert word in sentence and str(tmp_path / name) in sentence


def test_tables_are_refused_with_the_line_that_makes_rows_of_them(tmp_path: Path) -> None:
    assert "pandas.read_csv('a.csv').to_json('a.jsonl'" in refusal(write(tmp_path / "a.csv", "id,text\n1,a\n"))


# ---- names and splits ----


def test_messages_name_the_file_and_the_split_that_would_work(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", lines(ROWS))
    assert refusal(path, None, "validation") == f"{path} has no split 'validation': --split train reads it."
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("test.txt", "validation.txt"):
        write(folder / name, "text")
    assert "it has validation, test, for --split" in refusal(str(folder))
    with pytest.raises(CorpusError, match="has no split 'train'"):
        find_text(str(folder)).fingerprint()
    assert has_split(str(folder), None, "test") and not has_split(str(folder), None, "train")
    for nothing in ("", "  "):
        assert refusal(nothing).startswith("no data is named")
    assert "cannot be opened" in refusal("x" * 5000)  # longer than a name may be
    for missing in ("missing.jsonl", "folder/missing.txt", "missing.json.gz", "./missing", "/missing"):
        assert refusal(missing) == f"there is no file or folder {missing}."
    odd = tmp_path / "a[1]"
    odd.mkdir()
    write(odd / "train.jsonl", lines(ROWS))
    assert "rename it" in refusal(str(odd))
    assert [d.text for d in documents(str(odd / "train.jsonl"))] == TEXTS


def test_a_split_that_has_an_odd_column_is_there(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", lines(ROWS))
    write(tmp_path / "validation.jsonl", lines([{"text": "a", "x": 1}, {"text": "b", "x": {"y": []}}]))
    assert has_split(str(tmp_path), None, "validation")
    assert [d.text for d in documents(str(tmp_path), split="validation")] == ["a", "b"]


# ---- layouts ----

ASKED = {"role": "user", "content": "Colour?"}
BLUE = {"role": "assistant", "content": "Blue."}
TALK = (("User: Colour?\nAssistant:", False), (" Blue.", True))


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"messages": [ASKED, BLUE]}, TALK),
        ({"conversations": [ASKED, BLUE]}, TALK),
        ({"conversations": [{"from": "human", "value": "Colour?"}, {"from": "gpt", "value": "Blue."}]}, TALK),
        (
            {
                "messages": [
                    {**ASKED, "content": [{"type": "text", "text": "Col"}, {"type": "text", "text": "our?"}]},
                    BLUE,
                ]
            },
            TALK,
        ),
        ({"messages": [{**ASKED, "tool_calls": None, "name": None}, {**BLUE, "tool_calls": []}]}, TALK),
        (
            {"messages": [{"role": "developer", "content": "Be short."}, ASKED, BLUE]},
            (("System: Be short.\n" + TALK[0][0], False), TALK[1]),
        ),
        ({"instruction": "Colour?", "input": "", "output": "Blue."}, TALK),
        ({"instruction": "Colour?", "input": None, "output": "Blue."}, TALK),
        ({"instruction": "Colour?", "output": "Blue."}, TALK),
        (
            {"instruction": "Colour of it?", "input": "A lobster.", "output": "Blue."},
            (("User: Colour of it?\n\nA lobster.\nAssistant:", False), TALK[1]),
        ),
        ({"prompt": "Colour?", "completion": " Blue.", "text": None}, (("Colour?", False), (" Blue.", True))),
        ({"text": "Blue.", "messages": None}, (("Blue.", True),)),
    ],
)
def test_formats_that_people_have(row: dict, parts: tuple, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", lines([row, row]))
    assert [d.parts for d in documents(path)] == [parts, parts]
    assert has_conversations(path, None) == (parts[0][0].startswith(("User:", "System:")))


@pytest.mark.parametrize(
    ("row", "word"),
    [
        (
            {"messages": [ASKED, {"role": "assistant", "content": None, "tool_calls": [{"id": "0"}]}]},
            "calls a tool.*Leave",
        ),
        ({"messages": [ASKED, {"role": "tool", "content": "x"}]}, "role.*'tool'.*Leave"),
        ({"conversations": [{"from": "function_call", "value": "x"}]}, "role.*'function_call'.*Leave"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "'image_url'.*Leave"),
        ({"messages": [{"role": "user", "content": [3]}]}, "part.*Leave"),
        ({"messages": [{"role": "user", "content": []}]}, "content.*Leave"),
        ({"messages": {"role": "user"}}, "list of messages"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "role"),
        ({"instruction": "a", "input": "", "output": ""}, "output.*Leave"),
        ({"instruction": 3, "input": "", "output": "b"}, "expected strings"),
        ({"instruction": " ", "output": "b"}, "instruction.*Leave"),
        ({"prompt": [ASKED], "completion": [BLUE]}, "expected strings.*'prompt'"),
    ],
)
def test_a_row_that_cannot_be_learned_says_what_to_do(row: dict, word: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", lines([row]))
    with pytest.raises(CorpusError, match=f"row 1 of .*a.jsonl: .*{word}"):
        list(documents(path))


def test_a_text_column_of_any_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", lines([{"id": "a", "content": text, "text": "other"} for text in TEXTS]))
    assert [d.text for d in documents(path, text_column="content")] == TEXTS
    assert [d.text for d in documents(path)] == ["other"] * 3
    assert "it has content, id, text" in refusal(path, text_column="body")
    assert "row 1" in refusal(write(tmp_path / "b.jsonl", '{"content": 3}\n'), text_column="content")
    assert "--text-column" in refusal(write(tmp_path / "a.txt", "text"), text_column="content")
    no_text = write(tmp_path / "c.jsonl", lines([{"id": "a", "content": text} for text in TEXTS]))
    assert "--text-column content" in refusal(no_text)
    tokenizer = tiny_tokenizer()
    streams = [tokenized(find_text(path), tokenizer, tmp_path / "cache", text_column=c) for c in ("content", None)]
    assert [tokenizer.decode(s.tokens.tolist()) for s in streams] == ["".join(TEXTS), "other" * 3]
    batches = StreamBatches(find_text(path), tokenizer, 64, 4, 0, text_column="content")
    batch: Batch = batches.next()
    assert tokenizer.decode(batch.inputs[0][batch.targets[0] >= 0].tolist()) == "".join(TEXTS)


def test_a_run_reads_the_column_that_it_is_told(tmp_path: Path) -> None:
    rows = [{"content": f"{text} {number}"} for number in range(40) for text in TEXTS]
    path = write(tmp_path / "a.jsonl", lines(rows))
    sizes = dict(vocab_size=300, context_length=16, d_model=16, n_layers=1, n_heads=2, max_steps=1)
    named = dict(data=path, text_column="content", output=str(tmp_path / "run"), token_cache=str(tmp_path / "cache"))
    engine = Engine("cpu")
    parts = build(parse([f"--{name.replace('_', '-')}={value}" for name, value in (named | sizes).items()]), engine)
    assert parts.training is not None
    assert parts.tokenizer.decode(parts.training.stream.tokens.tolist()) == "".join(row["content"] for row in rows)
    with pytest.raises(CorpusError, match="--text-column content"):
        build(TrainConfig.from_options(**(named | sizes | {"text_column": None})), engine)  # type: ignore[arg-type]


# ---- positions ----


@pytest.mark.parametrize("kind", [*CONTAINERS, "text", "parquet", "folder"])
def test_a_position_is_returned_to(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_reader, "CHUNK", 13)  # so that characters, rows and line ends are cut
    texts = [f"{text} {number}" for number in range(7) for text in TEXTS]
    rows = [{"text": text, "id": number} for number, text in enumerate(texts)]
    source = str(tmp_path / "a.bin")
    if kind == "parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), source, row_group_size=4)
    elif kind == "folder":
        source = str(tmp_path)
        for number in range(3):
            write(tmp_path / f"{number}.jsonl", lines(rows[7 * number : 7 * number + 7]))
    elif kind == "text":
        write(Path(source), BOM + "\r\n".join(f"é{number}" for number in range(30)) + "\r")
    else:
        write(Path(source), BOM + CONTAINERS[kind](rows))
    whole, corpus, positions, found = list(pieces(source)), Corpus(find_text(source)), [], []
    while read := list(corpus.read(1)):
        found.append(read)
        positions.append(json.loads(json.dumps(corpus.position())))
    assert "".join(d.text for read in found for d in read) == "".join(d.text for d in whole)
    assert kind == "text" or [d.text for d in whole] == texts
    for number, position in enumerate(positions):
        again = Corpus(find_text(source))
        again.go_to(position)
        assert again.position() == position
        rest = [list(again.read(1)) for _ in found[number + 1 :]]
        assert rest == found[number + 1 :] and list(again.read(1)) == []
    if kind == "lines":
        with pytest.raises(CorpusError, match="position"):
            Corpus(find_text(source)).go_to({"row": 3, "reader": {}})


# ---- any bytes ----

text_of_rows = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=BOM), min_size=1, max_size=30)
names = st.sampled_from(NAMES)
fuzzed = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def plain(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


@fuzzed
@given(
    texts=st.lists(text_of_rows, min_size=1, max_size=6),
    container=st.sampled_from(list(CONTAINERS)),
    name=names,
    mark=st.sampled_from(["", BOM]),
    packed=st.booleans(),
    chunk=st.integers(1, 50),
)
def test_rows_come_back_from_any_json(
    texts: list[str], container: str, name: str, mark: str, packed: bool, chunk: int, tmp_path: Path
) -> None:
    content = (mark + CONTAINERS[container]([{"text": text} for text in texts])).encode()
    path = write(tmp_path / name, gzip.compress(content) if packed else content)
    expected = [plain(text) for text in texts if text.strip()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_reader, "CHUNK", chunk)
        if expected and not any(text.startswith(" = ") for text in texts):
            assert [d.text for d in documents(path)] == expected


@fuzzed
@given(
    text=st.lists(st.sampled_from([*"aé🦞{[\"':,}] \t1", "\r\n", "\n", "\r", "word ", "\u2028", "\x0b"]), min_size=1),
    name=names.filter(lambda name: not name.lower().endswith((".jsonl", ".json"))),
    mark=st.sampled_from(["", BOM]),
    packed=st.booleans(),
    chunk=st.integers(1, 50),
)
def test_a_text_comes_back_from_any_name(
    text: list[str], name: str, mark: str, packed: bool, chunk: int, tmp_path: Path
) -> None:
    joined = "".join(text)
    assume(joined.strip() and not looks_like_json(joined))
    content = (mark + joined).encode()
    path = write(tmp_path / name, gzip.compress(content) if packed else content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_reader, "CHUNK", chunk)
        (found,) = documents(path)
    assert found.text == plain(joined) and found.n_bytes == len(content)


TOKENS = [b'{"text": "a"}', b'{"text"', b'"messages": [', b'{"role": "user", "content": "', b"[", b"]", b"{", b"}"]
TOKENS += [b"\n", b"\r", b" ", b",", b":", b'"', b"\\", b"\\u12", b"null", b"-1e5", b"word ", b"\0", b"\xc3", b"\xa9"]
TOKENS += [codecs.BOM_UTF8, codecs.BOM_UTF16_LE, b"PAR1", b"\x1f\x8b", b"PK\x03\x04", b" = T = \n", b"id,text\n1,a\n"]


@fuzzed
@given(
    content=st.lists(st.sampled_from(TOKENS) | st.binary(max_size=4), max_size=12).map(b"".join),
    name=names | st.sampled_from(["a.parquet", "a.csv", "a.gz", "a.txt.gz"]),
    packed=st.booleans(),
)
def test_any_bytes_are_documents_or_a_sentence(content: bytes, name: str, packed: bool, tmp_path: Path) -> None:
    path = write(tmp_path / name, gzip.compress(content) if packed else content)
    try:
        found = list(documents(path))
    except CorpusError as error:
        assert str(error).count("\n") == 0 and str(path) in str(error)
    else:
        assert found and all(d.text for d in found)
        assert not any(d.text.lstrip(BOM + " \r\n").startswith(('{"text":', '[{"text":')) for d in found)


@fuzzed
@given(
    container=st.sampled_from([name for name in CONTAINERS if name != "one line"]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), st.binary(max_size=3)), min_size=1, max_size=3),
    name=names,
)
def test_damaged_json_is_never_prose(
    container: str, changes: list[tuple[float, int, bytes]], name: str, tmp_path: Path
) -> None:
    content = CONTAINERS[container]([{"text": f"The river rises {number}."} for number in range(12)]).encode()
    for place, length, other in changes:
        start = int(place * len(content))
        content = content[:start] + other + content[start + length :]
    path = write(tmp_path / name, content)
    try:
        assert not any('"text"' in d.text for d in documents(path))
    except CorpusError as error:
        assert str(path) in str(error)


# ---- evaluation ----


def test_words_stand_between_white_space_and_bytes_are_those_of_the_file(tmp_path: Path, capsys) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(vocab_size=tokenizer.vocab_size)
    found = evaluate(model, tokenizer, [" the river \n", "rises", " \n"])
    assert (found.words, found.harness_words, found.n_bytes) == (3, 7, 19)
    assert evaluate(model, tokenizer, [" "]).word_perplexity == float("inf")
    path = write(tmp_path / "a.txt", BOM + "the river\r\nrises \r\n")
    checkpoint.save(model, tokenizer, tmp_path / "model")
    command = ["evaluate", "--model", str(tmp_path / "model"), "--split", "train", "--json", "--data"]
    assert main([*command, path]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["words"], printed["n_bytes"]) == (3, Path(path).stat().st_size)
    path = write(tmp_path / "a.jsonl", lines([{"content": text} for text in TEXTS]))
    assert main([*command, path, "--text-column", "content"]) == 0
    assert json.loads(capsys.readouterr().out)["documents"] == 3


# ---- the Hub ----


def test_json_lines_of_the_hub_are_read_row_by_row_too(tmp_path: Path) -> None:
    rows = lines([{"text": "one", "meta": None}, {"text": "two", "meta": {"a": 1}}, {"new": 1, "text": "three"}])
    with Hub() as hub:
        hub.add("datasets", "user/rows", {"train.jsonl": rows.encode(), "test.jsonl": b'{"text": "x", "meta": 1}\n'})
        found = run(
            hub,
            tmp_path,
            """
            from transformer.errors import CorpusError
            from transformer.data.corpus import Corpus
            from transformer.hub.text_sources import documents, find_text, has_split
            corpus = Corpus(find_text("user/rows"))
            next(corpus.read(1))
            again = Corpus(find_text("user/rows"))
            again.go_to(corpus.position())
            try:
                list(documents("user/rows", split="validation"))
            except CorpusError as error:
                said = str(error)
            result = {
                "train": [d.text for d in documents("user/rows")],
                "rest": [d.text for d in again.read()],
                "splits": [has_split("user/rows", None, split) for split in ("test", "validation")],
                "fingerprint": len(find_text("user/rows").fingerprint()),
                "said": said,
            }
            """,
            PYTHONPATH=str(Path(__file__).parent.parent),
        )
    assert found.pop("fingerprint") >= 2
    assert found == {
        "train": ["one", "two", "three"],
        "rest": ["two", "three"],
        "splits": [True, False],
        "said": "user/rows has no split 'validation': it has train, test, for --split.",
    }
