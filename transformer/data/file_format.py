"""Detection of the format of a file by its content, since names and media types get lost in uploads.

A file is parquet, JSON (JSON lines, one array, or consecutive objects) or plain text, in UTF-8, optionally compressed
with gzip. A file that looks like JSON is JSON, whatever its name: it is never read as plain text.
"""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from pathlib import Path
from typing import BinaryIO, Literal

from transformer.data.text_source import Opener
from transformer.errors import CorpusError

Format = Literal["text", "json", "parquet"]
HEAD = 2**16  # bytes of a file from which its format is detected
BOM = "\ufeff"  # the byte order mark
_JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
_OTHER_FORMATS = {  # by the first bytes of a file
    b"PK\x03\x04": "a zip archive (or an office document)",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ\x00": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"%PDF-": "a PDF",
    b"ARROW1": "an Arrow file",
    b"SQLite format 3": "an SQLite database",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
}
_OTHER_SUFFIXES = (".pdf", ".doc", ".docx", ".odt", ".rtf", ".xls", ".xlsx", ".epub", ".arrow", ".zip", ".tar")
_TABLES = (".csv", ".tsv")
_MARKS = {  # byte order marks, longer ones first
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_ENCODINGS = ["cp1250", "cp1251", "cp1252", "cp1253", "cp1254", "cp1255", "cp1256", "koi8_r"]
_ENCODINGS += ["gb18030", "big5", "shift_jis", "euc_jp", "euc_kr"]
_WESTERN = set("àâäáãåæçèéêëìíîïñòóôöõøœùúûüýÿßÀÂÄÁÃÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÖÕØŒÙÚÛÜÝ«»“”„‘’‚–—…•€£°§¡¿·©®²³½\xa0")

_STRING = r'"(?:[^"\\]|\\.)*"'
# The start of rows: an object with a key in quotes of JSON or Python, also in an array or escaped in a string.
_ROWS = re.compile(rf"""(?:\s|{BOM}|\x1e)*"?(?:\[\s*)*\{{\s*(?:{_STRING}|'[^'\n]*'|\\"[^"]*")\s*:""")
_CUT_ROW = re.compile(
    rf"""(?:\s|{BOM})*{_STRING}\s*:\s*(?:["\[{{]|-?\d|true|false|null)"""
)  # a row without its first "{"
_OBJECT = re.compile(rf"\{{\s*{_STRING}\s*:")
_ASSIGNMENT = re.compile(r"^[ \t]*(?:\w+ )?[\w.]+(?:\[[^\]\n]*\])?[ \t]*(?::[^=\n]*)?=[ \t]*[\[{(]", re.MULTILINE)
_NEXT_ROW = re.compile(r"""\S\s*\}\s*,?\s*\{\s*"[^"\n]{1,80}"\s*:""")  # the end of an object and the start of another
_STRINGS = re.compile(rf"(?:\s|{BOM})*\[\s*{_STRING}\s*(?:,\s*[\"\[{{\]\d]|\]\s*$)")
# JSON tokens only; the last one may be cut off. A JSON string has no line ends.
_TOKENS = re.compile(
    rf"""(?:[\s\x1e{BOM}]|[\[\]{{}},:]|"(?:[^"\\\n]|\\.)*"|-?\d[\d.eE+-]*|true|false|null)*+"""
    r"""(?P<cut>"(?:[^"\\\n]|\\.)*\\?|[a-z]{1,4}|-)?\Z"""
)


def is_json_name(path: str) -> bool:
    """Whether a file name has a suffix of JSON."""
    return suffix(path) in _JSON_SUFFIXES


def is_data_name(path: str) -> bool:
    """Whether a name is that of a file, and not of a data set on the Hub."""
    return suffix(path) in (*_JSON_SUFFIXES, *_TABLES, *_OTHER_SUFFIXES, ".parquet", ".txt", ".md", ".bin")


def suffix(path: str) -> str:
    """The suffix in lower case, without .gz: ".jsonl" for a.JSONL.gz."""
    found = Path(path)
    return (found.with_suffix("").suffix if found.suffix.lower() == ".gz" else found.suffix).lower()


def open_unpacked(path: str, open_file: Opener) -> tuple[BinaryIO, Format]:
    """Open a file, decompressed, and detect its format.

    Args:
        path: passed to `open_file`.

    Raises:
        CorpusError: if it cannot be opened, or has an unsupported format.
    """
    try:
        file = open_file(path)  # the reader of its rows keeps it
        if file.read(2) == _GZIP:
            file.seek(0)
            file = gzip.GzipFile(fileobj=file)  # type: ignore[assignment]
        file.seek(0)
        head = file.read(HEAD)
        file.seek(0)
    except Exception as error:  # of the disk, of gzip, or of any file system on a network
        raise unreadable(path, error) from error
    return file, detect_format(head, path, whole=len(head) < HEAD)


def unreadable(path: str, error: Exception) -> CorpusError:
    """The error for an exception that was raised when a file was opened or read."""
    packed = isinstance(error, EOFError | zlib.error | gzip.BadGzipFile)
    reason = getattr(error, "strerror", None) or error
    return CorpusError(
        f"{path} cannot be read to its end: it is gzip and damaged or cut off ({error}). Copy or download it again."
        if packed
        else f"{path} cannot be read: {reason}."
    )


def detect_format(head: bytes, path: str, whole: bool) -> Format:
    """The format of a file.

    Args:
        head: its first bytes, decompressed. path: its name. whole: whether `head` is the full content.

    Raises:
        CorpusError: if the format is not supported.
    """
    if head.startswith(_PARQUET):
        return "parquet"
    for begin, what in {_GZIP: "compressed with gzip twice", **_OTHER_FORMATS}.items():
        if head.startswith(begin):
            raise _refused(path, f"it is {what}")
    if suffix(path) == ".parquet":
        raise CorpusError(f"{path} is not a parquet file, although its name ends with .parquet.")
    if head[257:262] == b"ustar":
        raise _refused(path, "it is a tar archive")
    text = _decoded(head, path, whole)
    if is_json_name(path) or looks_like_json(text, whole):
        return "json"
    if suffix(path) in _TABLES:
        name = Path(path).name
        raise _refused(
            path,
            "it is a table. Write its rows as JSON lines, with "
            f"pandas.read_csv({name!r}).to_json({Path(name).stem + '.jsonl'!r}, orient='records', lines=True)",
        )
    if suffix(path) in _OTHER_SUFFIXES:
        raise _refused(path, f"its name ends with {suffix(path)}")
    return "text"


def looks_like_json(text: str, whole: bool = True) -> bool:
    """Whether a text is JSON, valid or not, rather than prose.

    It is JSON if it starts with an object with a key, or with an array of strings; if it is an array or object of JSON
    tokens only; if half of its lines have objects; or if it has an object outside of an assignment, as in code, and
    three quarters of its lines consist of JSON tokens only.

    Args:
        text: the start of a file. whole: whether it is the full content.
    """
    if _ROWS.match(text) or _CUT_ROW.match(text) or _STRINGS.match(text):
        return True
    text = text.lstrip(f" \t\r\n\x1e{BOM}")
    if text.startswith(("[", "{")) and _is_tokens(text, whole):
        return True
    lines = [line.strip() for line in text.split("\n")[: None if whole else -1] if line.strip()]
    rows = sum(_is_object(line) or bool(_NEXT_ROW.search(line)) for line in lines)
    if rows and 2 * rows >= len(lines):
        return True
    if not _OBJECT.search(text) or _ASSIGNMENT.search(text):
        return False
    return 4 * sum(map(_is_tokens, lines)) >= 3 * len(lines)


def _is_tokens(text: str, whole: bool = True) -> bool:
    found = _TOKENS.match(text)
    return found is not None and not (whole and found["cut"])


def _is_object(line: str) -> bool:
    if not line.startswith("{") or not line.rstrip(",").endswith("}"):
        return False
    try:
        return isinstance(json.loads(line.rstrip(",")), dict)
    except (ValueError, RecursionError):
        return False


def not_utf8(path: str, sample: bytes, place: str) -> CorpusError:
    """The error for a file that is not UTF-8, with its probable encoding.

    Args:
        sample: bytes of the file. place: of the invalid bytes, such as " in line 3".
    """
    encoding = probable_encoding(sample)
    if encoding is None:
        return CorpusError(f"{path} is not a text file that can be read: it is not UTF-8{place}, nor another encoding.")
    name = Path(path).name
    return CorpusError(
        f"{path} is not UTF-8{place}: it is probably {encoding}. Convert it, with "
        f"iconv -f {encoding.split(' ')[0]} -t UTF-8 {name} > utf8-{name}"
    )


def probable_encoding(sample: bytes) -> str | None:
    """The probable encoding of bytes that are not UTF-8; None: they are not text."""
    text = sample.decode("cp1252", "replace")
    other = [character for character in text if not character.isascii()]
    if set(other) <= _WESTERN and 2 * len(other) <= sum(character.isascii() for character in text):
        return "Windows-1252" if any(0x80 <= byte < 0xA0 for byte in sample) else "ISO-8859-1 (latin-1)"
    from charset_normalizer import from_bytes  # imported late, since it is rarely needed

    best = from_bytes(sample[:HEAD], cp_isolation=_ENCODINGS).best()
    return None if best is None else best.encoding.upper().replace("_", "-")


def _decoded(head: bytes, path: str, whole: bool) -> str:
    """The text of the first bytes, without a byte order mark.

    Raises:
        CorpusError: if they are not UTF-8.
    """
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            raise _other_encoding(path, encoding)
    if b"\0" in head:
        even, odd = head[::2].count(0), head[1::2].count(0)
        if max(even, odd) > len(head) / 8 and min(even, odd) * 8 < max(even, odd):
            raise _other_encoding(path, "UTF-16LE" if odd > even else "UTF-16BE")
        raise _refused(path, "it has null bytes, which no text has")
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        return decoder.decode(head, final=whole).removeprefix(BOM)
    except UnicodeDecodeError as error:
        line = head[: error.start].count(b"\n") + 1
        raise not_utf8(path, head, f" in line {line}") from error


def _other_encoding(path: str, encoding: str) -> CorpusError:
    """The error for a file in a known encoding other than UTF-8."""
    name = Path(path).name
    return CorpusError(
        f"{path} is {encoding}, not UTF-8. Convert it, with iconv -f {encoding} -t UTF-8 {name} > utf8-{name}"
    )


def _refused(path: str, why: str) -> CorpusError:
    return CorpusError(
        f"{path} is not a text file that can be read: {why}. "
        "Expected plain text, JSON lines or parquet, which may be compressed with gzip."
    )
