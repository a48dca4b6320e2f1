"""Random small data files for the fuzzer of training: every format, under right and wrong names, whole and damaged."""

from __future__ import annotations

import codecs
import gzip
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

_VOCABULARY = """
the river rises in hills and meets sea near old town lobster is blue life turns red on cooking 1889 tower was tallest
naïve café £5 — or €6 東京 🦞 привет مرحبا def f(x): return x * 2 | --- | double-space = Title = <|endoftext|> <unk>
"""
WORDS = _VOCABULARY.split()
# What an upload or a mistake makes of a name. "": without a suffix.
SUFFIXES = (".txt", ".jsonl", ".json", ".parquet", "", ".bin", ".csv", ".md", ".TXT", ".txt.gz", ".jsonl.gz")


@dataclass(frozen=True)
class Data:
    """A file or folder to train on.

    documents: the texts in it, in order, for when it is accepted; None: not known. certain: it has to be accepted.
    empty: it has to be refused.
    """

    path: Path
    documents: list[str] | None
    certain: bool
    kind: str
    empty: bool = False


def text(draw: random.Random, least: int = 1) -> str:
    """A text of some words, sometimes of lines."""
    words = draw.choices(WORDS, k=draw.randint(least, 40))
    return "".join(word + draw.choice((" ", " ", " ", " ", "\n", ". ")) for word in words).strip() or "a"


def make(draw: random.Random, folder: Path) -> Data:
    """A random file or folder in `folder`."""
    kinds: list[tuple[int, Callable[[random.Random, Path], Data]]] = [
        (5, _plain),
        (8, _rows),
        (2, _parquet),
        (2, _wrong_rows),
        (2, _damaged),
        (2, _encoded),
        (2, _folder),
        (2, _nothing),
    ]
    return draw.choices([make for _, make in kinds], [weight for weight, _ in kinds])[0](draw, folder)


def texts(draw: random.Random) -> list[str]:
    """Enough to train and to validate on."""
    return [text(draw, 5) for _ in range(draw.randint(8, 40))]


def good(draw: random.Random, folder: Path) -> Data:
    """A file that has to be accepted."""
    return draw.choice((_plain_certain, _rows_certain))(draw, folder)


def _plain_certain(draw: random.Random, folder: Path) -> Data:
    content = "\n".join(texts(draw)) + draw.choice(("", "\n"))
    (path := folder / "plain.txt").write_text(content, encoding="utf-8", newline="")
    return Data(path, [content], True, "plain")


def _plain(draw: random.Random, folder: Path) -> Data:
    name = "plain" + draw.choice((".txt", ".txt", ".txt.gz", "", ".bin", ".md", ".TXT", ".csv"))
    content = "\n".join(texts(draw)).encode()
    (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return Data(folder / name, [content.decode()], name == "plain.txt", f"text as {name}")


def _row(draw: random.Random, layout: str) -> tuple[dict[str, Any], str]:
    """A row, and the text in it."""
    first, second = text(draw), text(draw)
    if layout == "text":
        return {"text": first}, first
    if layout == "prompt":
        return {"prompt": first, "completion": second}, first + second
    row = [{"role": "user", "content": first}, {"role": "assistant", "content": second}]
    return {"messages": row}, f"User: {first.strip()}\nAssistant: {second.strip()}"


def _table(draw: random.Random) -> tuple[str, list[dict[str, Any]], list[str]]:
    layout = draw.choice(("text", "text", "prompt", "messages"))
    rows, found = zip(*(_row(draw, layout) for _ in range(draw.randint(8, 40))), strict=True)
    return layout, list(rows), list(found)


def _lines(rows: list[Any], ascii: bool = False) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=ascii) + "\n" for row in rows).encode()


def _rows_certain(draw: random.Random, folder: Path) -> Data:
    layout, rows, found = _table(draw)
    (path := folder / "rows.jsonl").write_bytes(_lines(rows, draw.random() < 0.5))
    return Data(path, found, True, f"rows of {layout}")


def _rows(draw: random.Random, folder: Path) -> Data:
    """JSON of lines or of one array, as it is found: indented, with blank lines, unused columns, under another name."""
    layout, rows, found = _table(draw)
    certain = True
    form = draw.choice(("lines", "lines", "array", "indented array", "spaced", "CRLF", "BOM", "one more column"))
    if form == "one more column":
        late = draw.choice((None, 1, "x", {"a": 1}, [1, "b"], {"a": {"b": None}}, 1.5, True))
        for row in rows[draw.randint(0, len(rows) - 1) :]:
            row["unused"] = late
        if draw.random() < 0.5:
            rows[-1]["unused"] = draw.choice((2, "y", {"c": 2}, [], None))
    content = _lines(rows)
    if "array" in form:
        content = json.dumps(rows, indent=2 if "indented" in form else None, ensure_ascii=False).encode()
    elif form == "spaced":
        content = b"\n  " + content.replace(b"\n", b"\n\n") + b"  \n"
    elif form == "CRLF":
        content = content.replace(b"\n", b"\r\n")
    elif form == "BOM":
        content = codecs.BOM_UTF8 + content
    suffix = draw.choice((".jsonl", ".jsonl", ".json", "", ".bin", ".txt", ".jsonl.gz", ".gz", ".parquet"))
    certain = suffix in (".jsonl", ".json", ".jsonl.gz") and form != "spaced"
    if suffix.endswith(".gz") or draw.random() < 0.05:
        content = gzip.compress(content)
        certain = certain and suffix.endswith(".gz")
    (path := folder / f"rows{suffix}").write_bytes(content)
    return Data(path, found, certain, f"{form} of {layout} as {path.name}")


def _parquet(draw: random.Random, folder: Path) -> Data:
    layout, rows, found = _table(draw)
    path = folder / ("rows" + draw.choice((".parquet", ".parquet", "", ".bin", ".jsonl", ".txt")))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return Data(path, found, path.suffix == ".parquet", f"parquet of {layout} as {path.name}")


def _wrong_rows(draw: random.Random, folder: Path) -> Data:
    """Rows of which one or all are not what a layout has."""
    layout, rows, _ = _table(draw)
    odd = draw.choice(
        [
            *({"text": value} for value in (None, 1, 1.5, True, [], ["a"], {"a": 1})),
            *({"prompt": "a", "completion": value} for value in (None, 0, [])),
            *({"messages": value} for value in (None, [], "a", {}, [None], [{}], [[]], [{"role": "user"}])),
            {"messages": [{"role": "tool", "content": "x"}]},
            {"messages": [{"role": "assistant", "content": None}]},
            {"messages": [{"role": "assistant", "content": [{"type": "image", "url": "x"}]}]},
            {"messages": [{"role": 7, "content": 7}]},
            {"body": "x"},
            {},
            [],
            1,
            None,
            "text",
            {"text": {"text": "x"}},
        ]
    )
    place = draw.choice((0, len(rows) - 1, draw.randint(0, len(rows) - 1)))
    rows = [odd] * len(rows) if draw.random() < 0.3 else [*rows[:place], odd, *rows[place + 1 :]]
    (path := folder / "wrong.jsonl").write_bytes(_lines(rows))
    return Data(path, None, False, f"row {place} is {odd!r} among {layout}")


def _damaged(draw: random.Random, folder: Path) -> Data:
    """A file that ends too soon, with bytes changed, or of bytes that were never text."""
    whole = draw.choice((_rows_certain, _parquet))(draw, folder).path
    content = bytearray(whole.read_bytes())
    how = draw.choice(("cut", "flipped", "binary", "gzip cut", "gzip header", "NUL", "surrogate", "deep"))
    suffix = draw.choice((whole.suffix, *SUFFIXES))
    if how == "cut":
        content = content[: draw.randint(1, len(content) - 1)]
    elif how == "flipped":
        for _ in range(draw.randint(1, 8)):
            content[draw.randrange(len(content))] = draw.randrange(256)
    elif how == "binary":
        content = bytearray(draw.randbytes(draw.choice((1, 10, 1000))))
    elif how == "gzip cut":
        content, suffix = bytearray(gzip.compress(content))[: draw.randint(2, 60)], suffix.removesuffix(".gz") + ".gz"
    elif how == "gzip header":
        content, suffix = content, suffix.removesuffix(".gz") + ".gz"
    elif how == "NUL":
        content = bytearray(_lines([{"text": "a\0b " + text(draw)} for _ in range(20)]))
    elif how == "surrogate":
        content = bytearray(_lines([{"text": "a \ud800 b " + text(draw)} for _ in range(20)], ascii=True))
    elif how == "deep":
        content = bytearray(b'{"text": ' + b"[" * 5000 + b"]" * 5000 + b"}\n")
    (path := folder / f"damaged{suffix}").write_bytes(content)
    return Data(path, None, False, f"{how} {whole.name} as {path.name}")


def _encoded(draw: random.Random, folder: Path) -> Data:
    """Text in another encoding, with a byte order mark, with other line ends: never with wrong characters in it."""
    content = "\n".join(texts(draw))
    encoding = draw.choice(("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "cp437", "shift_jis"))
    data = content.encode(encoding, "ignore")
    content = data.decode(encoding)
    path = folder / ("encoded" + draw.choice((".txt", ".txt", "", ".jsonl")))
    if path.suffix == ".jsonl":
        data = json.dumps({"text": content}, ensure_ascii=False).encode(encoding)
    path.write_bytes(data)
    return Data(path, [content], encoding == "utf-8-sig" and path.suffix == ".txt", f"{encoding} as {path.name}")


def _folder(draw: random.Random, folder: Path) -> Data:
    """A folder of files: of one format, of several, of none."""
    (inside := folder / draw.choice(("folder", "folder.jsonl", "a folder"))).mkdir()
    for name in draw.sample(("train", "validation", "test", "a", "b"), draw.randint(0, 3)):
        file = draw.choice((_rows_certain, _rows_certain, _plain_certain, _parquet, _wrong_rows))(draw, folder).path
        file.rename(inside / (name + file.suffix))
    if draw.random() < 0.1:
        (inside / "again").symlink_to(inside)
    if draw.random() < 0.2:
        (inside / "nested").mkdir()
    return Data(inside, None, False, f"folder of {sorted(file.name for file in inside.iterdir())}")


def _nothing(draw: random.Random, folder: Path) -> Data:
    """What has no text."""
    path = folder / ("nothing" + draw.choice((".txt", ".jsonl", ".json", ".parquet", "", ".txt.gz")))
    kind = draw.choice(("missing", "empty", "blank", "one letter", "[]", "{}", "null", "BOM", "link", "device", "id"))
    if kind == "link":
        path.symlink_to(folder / "nowhere")
    elif kind == "device":
        path = Path(draw.choice(("/dev/null", "/dev/zero", "/proc/self/mem")))
    elif kind == "id":
        path = Path(draw.choice(("a/b", "wikitext", "a/b/c", "..", "~", "http://x/y", "https://example.invalid/a.txt")))
    elif kind != "missing":
        blank = {"empty": "", "blank": " \n\n \t", "one letter": "a", "BOM": "\ufeff"}
        content = blank.get(kind, kind).encode()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    is_word = kind == "null" and not path.name.startswith(("nothing.json", "nothing.parquet"))  # of a plain text
    return Data(path, None, False, f"{kind} as {path.name}", not is_word)
