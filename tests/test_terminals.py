"""Terminals that are not UTF-8 get replaced characters and no traceback; files are UTF-8 everywhere."""

import ast
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from models import tiny_model_directory

from transformer.cli import main
from transformer.console import typed

ROOT = Path(__file__).parents[1]
TEXT = "é 東京 🦞"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model_directory(tmp_path_factory.mktemp("modèle")))


def written(arguments: list[str], encoding: str, monkeypatch: pytest.MonkeyPatch, entered: bytes = b"") -> str:
    """What a command writes to a terminal of this encoding."""
    out, error = io.BytesIO(), io.BytesIO()
    with monkeypatch.context() as patch:
        streams = [io.TextIOWrapper(stream, encoding) for stream in (io.BytesIO(entered), out, error)]
        for name, stream in zip(("stdin", "stdout", "stderr"), streams, strict=True):
            patch.setattr(sys, name, stream)
        assert main(arguments) == 0
        for stream in streams:
            stream.flush()
            stream.detach()
    assert all(line.startswith("sampling: ") for line in error.getvalue().decode(encoding).splitlines())
    return out.getvalue().decode(encoding)


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", "? ?? ?"), ("latin-1", "é ?? ?"), ("utf-8", TEXT)])
def test_what_a_terminal_cannot_show_is_replaced(
    encoding: str, shown: str, model: str, monkeypatch, tmp_path: Path
) -> None:
    options = ["--model", model, "--max-tokens", "20", "--temperature", "2", "--seed", "0"]
    assert written(["predict", TEXT, *options], encoding, monkeypatch).startswith(shown)
    assert written(["predict", TEXT, *options, "--num-outputs", "2"], encoding, monkeypatch).count(shown) == 2
    assert written(["chat", *options], encoding, monkeypatch, b"\xc3\xa9\xff\n\n").count("Model: ") == 1
    (tmp_path / "é.txt").write_text(TEXT, encoding="utf-8")
    arguments = ["evaluate", "--model", model, "--data", str(tmp_path / "é.txt"), "--split", "train"]
    assert "perplexity" in written(arguments, encoding, monkeypatch)
    page = tmp_path / "é.html"
    assert written(["show", "tokens", TEXT, "--model", model, "--output", str(page)], encoding, monkeypatch)
    assert "東" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["-m", "transformer", "predict", TEXT, "--model", "{}", "--max-tokens", "3"], 0),
        (["-m", "transformer", "predict", "x", "--model", "./é"], 1),
        (["train.py", "--data", "./é東.txt"], 2),
    ],
)
def test_an_ascii_process(arguments: list[str], status: int, model: str) -> None:
    done = subprocess.run(
        [sys.executable, *(model if part == "{}" else part for part in arguments)],
        cwd=ROOT,
        env={
            **dict(PYTHONIOENCODING="ascii", LC_ALL="C", HOME=str(Path(model).parent), PYTHONUTF8="0"),
            "XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"],  # with the compiled kernel
        },
        capture_output=True,
    )
    assert b"Traceback" not in done.stderr and done.stderr.isascii() and done.stdout.isascii()
    assert done.returncode == status, done.stderr
    assert done.stdout.startswith(b"? ?? ?") or status
    assert b"PYTHONUTF8=1" in done.stdout + done.stderr or status != 2


def test_an_argument_in_another_locale_is_the_text_that_was_typed() -> None:
    raw = TEXT.encode()
    assert typed(raw.decode("ascii", "surrogateescape")) == TEXT
    assert typed(TEXT) == TEXT and typed("\ud83d") == "\ud83d"
    assert typed("\udcff\udcc3\udca9") == "\ufffdé"


def _without_encoding(file: Path) -> list[int]:
    """Lines of calls that open text without saying in which encoding."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
            continue
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        owner = getattr(getattr(function, "value", None), "id", "")
        binary = any(isinstance(a, ast.Constant) and isinstance(a.value, str) and "b" in a.value for a in node.args)
        if name in ("read_text", "write_text") or (name == "open" and owner not in ("os", "tarfile") and not binary):
            found.append(node.lineno)
    return found


def test_every_file_is_utf8() -> None:
    files = [
        *(ROOT / "transformer").rglob("*.py"),
        *(ROOT / "tools").rglob("*.py"),
        ROOT / "predict.py",
        ROOT / "train.py",
    ]
    assert {str(file): lines for file in files if (lines := _without_encoding(file))} == {}
