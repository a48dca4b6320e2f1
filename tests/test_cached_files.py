"""What is kept of a download is known to be whole and current, or is fetched again."""

import io
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from hub_faults import FaultyServer, Refusal, Reply, Request
from hub_server import Hub
from models import tiny_model_directory

from transformer.checksum import checksum, is_intact
from transformer.data.tokenizer import Tokenizer
from transformer.errors import CheckpointError
from transformer.hub import checkpoint, retry
from transformer.hub.resolve import fetch, fetch_tokenizer, pack

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(retry, "WAITS", [0.0, 0.0])


@pytest.fixture
def tar(tmp_path: Path) -> bytes:
    return pack(tiny_model_directory(tmp_path / "model"), tmp_path / "model.tar").read_bytes()


# ---- a tar at a URL ----


class Store(FaultyServer):
    """A server of one file: with marks of its version or without, and with its length or without."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.content, self.marks, self.says_length = content, {"ETag": '"one"'}, True
        self.instead: list[bytes] = []  # what comes the first times

    def answer(self, request: Request) -> Reply:
        if request.path == "/gone":
            raise Refusal(404, None, "no such file")
        asked = request.headers.get("if-none-match", request.headers.get("if-modified-since"))
        if asked and asked in self.marks.values():
            return Reply(304)
        body = self.instead.pop(0) if self.instead else self.content
        if not self.says_length:  # as HTTP/1.0: the connection ends where the file does
            return Reply(200, body, {**self.marks, "Content-Length": "unknown", "Connection": "close"}, len(body))
        return Reply(200, body, self.marks)

    def statuses(self) -> list[int | None]:
        return [request.status for request in self.requests]


@pytest.fixture
def store(tar: bytes) -> Iterator[Store]:
    with Store(tar) as store:
        yield store


def opens(url: str) -> bool:
    return checkpoint.load(fetch(url)) is not None


def ends_of_members(tar: bytes) -> list[int]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as file:
        return [member.offset for member in file.getmembers()][1:]


@pytest.mark.parametrize("where", ["in a member", "between members", "after the last", "at nothing"])
def test_a_cut_without_a_length_is_found_and_the_file_fetched_again(store: Store, tar: bytes, where: str) -> None:
    with tarfile.open(fileobj=io.BytesIO(tar)) as file:
        last = file.getmembers()[-1]
    end = last.offset_data + -(-last.size // 512) * 512
    places = {"in a member": end - 700, "between members": last.offset, "after the last": end, "at nothing": 0}
    store.says_length, store.instead = False, [tar[: places[where]]]
    assert opens(f"{store.url}/w.tar") and store.statuses() == [200, 200]


def test_a_page_instead_of_the_file_is_not_kept(store: Store) -> None:
    url = f"{store.url}/w.tar"
    store.instead = [b"<html>log in</html>"]
    assert opens(url) and store.statuses() == [200, 200]
    store.content, store.marks = b"<html>maintenance</html>", {"ETag": '"page"'}
    with pytest.raises(CheckpointError, match=rf"^{url} is not a tar that can be read"):
        fetch(url)
    assert store.statuses()[2:] == [200] * 3  # one question, and the same page twice
    store.content = tar_without_config(store)
    with pytest.raises(CheckpointError, match=rf"^{url} holds no model"):
        fetch(url)


def tar_without_config(store: Store) -> bytes:
    with tarfile.open(fileobj=(buffer := io.BytesIO()), mode="w") as tar:
        tar.addfile(tarfile.TarInfo("notes.txt"))
    return buffer.getvalue()


def test_what_an_earlier_process_kept_cut_is_fetched_again(store: Store, tar: bytes, tmp_path: Path) -> None:
    assert opens(f"{store.url}/w.tar")
    kept = next((tmp_path / "cache").rglob("downloads/*[!n]"))
    kept.with_suffix(".version").unlink()  # of a release that kept no such file
    kept.write_bytes(tar[:-5000])
    assert opens(f"{store.url}/w.tar") and kept.read_bytes() == tar


def test_a_damaged_copy_is_found_by_its_checksum(store: Store, tar: bytes, tmp_path: Path) -> None:
    url = f"{store.url}/w.tar"
    assert opens(url) and opens(url) and store.statuses() == [200, 304]
    kept = next((tmp_path / "cache").rglob("downloads/*[!n]"))
    flip(kept, -3000)
    assert opens(url) and kept.read_bytes() == tar and store.statuses() == [200, 304, 200]


@pytest.mark.parametrize("marks", [{"ETag": '"%s"'}, {"ETag": 'W/"%s"'}, {"Last-Modified": "%s"}])
def test_what_changed_at_its_url_is_fetched_again(store: Store, tmp_path: Path, marks: dict[str, str]) -> None:
    url = f"{store.url}/w.tar"

    def now_is(version: str, width: int) -> None:
        model = tiny_model_directory(tmp_path / version, d_model=width)
        store.content = pack(model, tmp_path / f"{version}.tar").read_bytes()
        store.marks = {name: mark % version for name, mark in marks.items()}

    now_is("Wed, 01 Jan 2025 10:00:00 GMT", 32)
    assert [checkpoint.load_model(fetch(url)).config.d_model for _ in range(2)] == [32, 32]
    assert store.statuses() == [200, 304]
    now_is("Thu, 02 Jan 2025 10:00:00 GMT", 64)
    assert [checkpoint.load_model(fetch(url)).config.d_model for _ in range(2)] == [64, 64]
    assert store.statuses()[-1] == 304


def test_without_marks_another_length_is_another_file(store: Store, tar: bytes, tmp_path: Path) -> None:
    url, store.marks = f"{store.url}/w.tar", {}
    assert opens(url)
    store.content = pack(tiny_model_directory(tmp_path / "wide", d_model=64), tmp_path / "wide.tar").read_bytes()
    assert checkpoint.load_model(fetch(url)).config.d_model == 64


def test_a_copy_serves_while_its_url_does_not(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    url = f"{store.url}/w.tar"
    assert opens(url)
    for status in (403, 404, 503):
        store.fault("GET", status)
        assert opens(url)
    store.__exit__()
    assert opens(url) and "whether it has changed is not known" in caplog.text
    with pytest.raises(CheckpointError, match="cannot be downloaded"):
        fetch(f"{store.url}/other.tar")


def test_a_damaged_gzip_is_found(tar: bytes, tmp_path: Path) -> None:
    import gzip

    packed = bytearray(gzip.compress(tar))
    packed[-6] ^= 1  # in its checksum
    (tmp_path / "w.tgz").write_bytes(packed)
    with pytest.raises(CheckpointError, match="not a tar that can be read: CRC check failed"):
        fetch(tmp_path / "w.tgz")


def test_a_full_disk_is_not_the_fault_of_the_tar(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "extract", full)
    with pytest.raises(CheckpointError, match=r"cannot be unpacked: No space left on device"):
        fetch(f"{store.url}/w.tar")
    assert store.statuses() == [200]


# ---- temporary folders ----


def unpacked(folder: Path) -> list[Path]:
    return list(folder.glob("decoder-only-transformer-model-*"))


def test_unpacked_folders_do_not_pile_up(tar: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.tar").write_bytes(tar)
    code = f"""
import os, sys, time
from transformer.hub.resolve import fetch
print(fetch({str(tmp_path / "w.tar")!r}), flush=True)
time.sleep(float(sys.argv[1]))
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": str(ROOT)}

    def start(seconds: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, str(seconds)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    living, killed = start(600), start(600)
    try:
        folders = [Path(process.stdout.readline().strip()) for process in (living, killed)]  # type: ignore[union-attr]
        assert sorted(unpacked(tmp_path / "tmp")) == sorted(folders)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert folders[1].exists()
        with start(0) as ended:  # removes that of the killed one, and at its end its own
            assert ended.wait() == 0
        assert unpacked(tmp_path / "tmp") == [folders[0]] and (folders[0] / "config.json").exists()
    finally:
        for process in (living, killed):
            process.kill()
            process.communicate()


def test_what_is_refused_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "w.tar").write_bytes(b"no tar")
    (tmp_path / "tmp" / "model-of-mine").mkdir()
    with pytest.raises(CheckpointError, match="not a tar"):
        fetch(tmp_path / "w.tar")
    assert [path.name for path in (tmp_path / "tmp").iterdir()] == ["model-of-mine"]


# ---- the Hub's cache ----


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as hub:
        hub.serve_this_process(monkeypatch, tmp_path / "hub-cache")
        directory = tiny_model_directory(tmp_path / "published")
        hub.add("models", "user/lm", {path.name: path.read_bytes() for path in directory.iterdir()})
        yield hub


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "a flipped bit": lambda file: flip(file, -1),
    "the same time and size": lambda file: (
        times := file.stat(),
        flip(file, -1),
        os.utime(file, ns=(1, times.st_mtime_ns)),
    ),
    "a truncated file": lambda file: os.truncate(file, file.stat().st_size // 2),
    "an empty file": lambda file: os.truncate(file, 0),
    "no file": lambda file: file.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_damaged_file_of_the_cache_is_fetched_again_alone(hub: Hub, name: str, damage: str) -> None:
    expected = hub.repos["user/lm"].files()
    folder = fetch("user/lm")
    assert fetch("user/lm") == folder  # verified, and known to be
    DAMAGES[damage]((folder / name).resolve())
    before = len(hub.requests)
    assert fetch("user/lm") == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected
    fetched = {r.path.split("/")[-1] for r in hub.requests[before:] if r.method == "GET" and "/resolve/" in r.path}
    assert fetched == {name}


@pytest.mark.parametrize("how", ["HF_HUB_OFFLINE", "nobody answers"])
def test_offline_a_damaged_file_is_a_sentence_and_stays_until_it_can_be_replaced(
    hub: Hub, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetch("user/lm")
    weights = folder / "model.safetensors"
    expected = weights.read_bytes()
    flip(weights.resolve(), -1)
    with monkeypatch.context() as patch:
        if how == "HF_HUB_OFFLINE":
            patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        else:
            patch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
            patch.setattr(
                huggingface_hub.constants,
                "HUGGINGFACE_CO_URL_TEMPLATE",
                "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}",
            )
        for _ in range(2):
            with pytest.raises(CheckpointError) as refusal:
                fetch("user/lm")
            assert str(refusal.value) == (
                "user/lm cannot be fetched from the Hub: model.safetensors in the Hub's cache is damaged, and cannot "
                "be fetched again: the Hub cannot be reached."
            )
    assert (fetch("user/lm") / "model.safetensors").read_bytes() == expected


def test_a_damaged_file_that_cannot_be_fetched_says_why(hub: Hub) -> None:
    folder = fetch("user/lm")
    flip((folder / "model.safetensors").resolve(), -1)
    hub.fault("(GET|HEAD) .*resolve/.*model.safetensors", 403, times=None)
    with pytest.raises(CheckpointError, match=r"model\.safetensors in the Hub's cache is damaged.*403"):
        fetch("user/lm")


def test_files_that_nobody_asked_for_are_not_read(hub: Hub) -> None:
    hub.repos["user/lm"].commit({"pytorch_model.bin": b"a pickle"})
    folder = Path(huggingface_hub.snapshot_download("user/lm"))
    flip((folder / "pytorch_model.bin").resolve(), 0)
    before = len(hub.requests)
    assert fetch("user/lm") == folder
    assert not [request for request in hub.requests[before:] if "pytorch_model" in request.path]


def test_files_in_a_store_that_repositories_share_are_known_by_their_own_checksum(hub: Hub, tmp_path: Path) -> None:
    """As the client keeps what came by Xet: the blob is a link to a file that is named by another hash."""
    folder = fetch("user/lm")
    blob = folder / os.readlink(folder / "model.safetensors")
    store = tmp_path / "hub-cache" / "blobs" / "ab" / ("ab" * 32)
    store.parent.mkdir(parents=True)
    blob.rename(store)
    blob.symlink_to(store)
    before = len(hub.requests)
    assert fetch("user/lm") == folder and store.exists()
    assert not [request for request in hub.requests[before:] if "/resolve/" in request.path]
    expected = store.read_bytes()
    flip(store, -1)
    assert (fetch("user/lm") / "model.safetensors").read_bytes() == expected


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_tokenizer_is_fetched_again(hub: Hub, damage: str) -> None:
    ids = Tokenizer.load(fetch_tokenizer("user/lm")).encode_prompt("The river")
    folder = next(Path(huggingface_hub.constants.HF_HUB_CACHE).rglob("snapshots/*"))
    DAMAGES[damage]((folder / "tokenizer.json").resolve())
    assert Tokenizer.load(fetch_tokenizer("user/lm")).encode_prompt("The river") == ids


# ---- checksums ----


def test_a_file_is_read_again_only_after_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, reads = tmp_path / "file", []
    file.write_bytes(b"content")
    expected = checksum(file)

    def counted(path: Path, git: bool = False) -> str:
        reads.append(path)
        return checksum(path, git)

    monkeypatch.setattr("transformer.checksum.checksum", counted)
    assert is_intact(file, expected) and is_intact(file, expected) and len(reads) == 1
    file.write_bytes(b"another")
    assert not is_intact(file, expected) and not is_intact(file, expected) and len(reads) == 3
    file.write_bytes(b"content")
    assert is_intact(file, expected) and is_intact(file, expected) and len(reads) == 4
    assert not is_intact(tmp_path / "none", expected)


def test_without_a_cache_folder_files_are_verified_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "no-folder").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no-folder"))
    file = tmp_path / "file"
    file.write_bytes(b"content")
    assert is_intact(file, checksum(file)) and not is_intact(file, "0" * 64)
    # `git hash-object`
    assert is_intact(file, "6b584e8ece562ebffc15d38808cd6b98fc3d97ea")
