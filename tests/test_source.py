"""Where models come from: folders, archives, URLs."""

import io
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from models import tiny_model_directory

from transformer.errors import CheckpointError
from transformer.hub import checkpoint
from transformer.hub.resolve import fetch, fetch_tokenizer, pack


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """An HTTP server over `tmp_path`/www."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    (tmp_path / "www").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "www")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def same_model(a: Path, b: Path) -> bool:
    states = [checkpoint.load_model(path).state_dict() for path in (a, b)]
    return all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_folder_is_itself_and_a_packed_one_comes_back(tmp_path: Path, served: str) -> None:
    model = tiny_model_directory(tmp_path / "model")
    assert fetch(model) == fetch(str(model)) == model
    archive = pack(model, tmp_path / "www" / "weights.tar")
    assert same_model(fetch(archive), model)
    url = f"{served}/weights.tar"
    assert same_model(fetch(url), model)
    archive.unlink()
    assert same_model(fetch(url), model)  # from the cache


def test_a_compressed_archive_with_a_folder_in_it_is_read(tmp_path: Path) -> None:
    model = tiny_model_directory(tmp_path / "model")
    with tarfile.open(tmp_path / "w.tgz", "w:gz") as tar:
        tar.add(model, arcname="output/model")
    assert same_model(fetch(tmp_path / "w.tgz"), model)


def test_nothing_but_the_files_of_a_model_is_unpacked(tmp_path: Path) -> None:
    model = tiny_model_directory(tmp_path / "model")
    path = tmp_path / "w.tar"
    pack(model, path)
    with tarfile.open(path, "a") as tar:
        for name in ("../../escape.txt", "/tmp/escape.txt", "modeling.py", "pytorch_model.bin"):
            member = tarfile.TarInfo(name)
            member.size = 4
            tar.addfile(member, io.BytesIO(b"evil"))
        link = tarfile.TarInfo("README.md")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    files = {file.name for file in fetch(path).iterdir()}
    assert files == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("./nowhere", "no model at"),
        ("/nowhere/at/all", "no model at"),
        ("http://127.0.0.1:9/w.tar", "cannot be downloaded"),
    ],
)
def test_what_is_not_there_says_so(source: str, word: str) -> None:
    with pytest.raises(CheckpointError, match=word):
        fetch(source)


def test_a_hub_model_that_cannot_be_had_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for get in (fetch, fetch_tokenizer):
        with pytest.raises(CheckpointError, match="nobody/nothing"):
            get("nobody/nothing@v1")


def test_archives_that_are_none_say_so_and_a_missing_page_leaves_nothing(tmp_path: Path, served: str) -> None:
    (tmp_path / "text.tar").write_text("hello")
    with pytest.raises(CheckpointError, match="not a tar"):
        fetch(tmp_path / "text.tar")
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        fetch(tmp_path / "empty.tar")
    with pytest.raises(CheckpointError, match="404"):
        fetch(f"{served}/none.tar")
    assert not list((tmp_path / "cache").rglob("*.partial")) and not any((tmp_path / "cache").rglob("downloads/*"))
