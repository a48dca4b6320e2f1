"""A tar from a URL: a download that breaks off goes on where it was."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_faults import FaultyServer, Refusal, Reply, Request, serve

from transformer.errors import CheckpointError
from transformer.hub import download as downloads
from transformer.hub import retry
from transformer.hub.download import download

CONTENT = bytes(range(256)) * 40


class Store(FaultyServer):
    """A server of one file that knows ranges, and If-Range, if it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.content, self.etag, self.knows_ranges, self.checks_version = CONTENT, "one", True, True

    def answer(self, request: Request) -> Reply:
        if request.path != "/w.tar":
            raise Refusal(404, None, "no such file")
        version = request.headers.get("if-range")
        if not self.knows_ranges or (self.checks_version and version not in (None, f'"{self.etag}"')):
            request.headers.pop("range", None)
        return serve(request, self.content, self.etag, {})

    def asked(self) -> list[str | None]:
        return [request.headers.get("range") for request in self.requests]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(retry, "WAITS", [0.0, 0.0])
    with Store() as store:
        yield store


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "downloads" / "tar"


def test_a_cut_download_goes_on_where_it_was(store: Store, target: Path) -> None:
    store.fault("GET /w.tar", "cut", after=1000)
    store.fault("GET /w.tar", "cut", after=2000)
    download(f"{store.url}/w.tar", target)
    assert target.read_bytes() == CONTENT
    assert store.asked() == [None, "bytes=1000-", "bytes=3000-"]
    assert store.requests[1].headers["if-range"] == '"one"'
    assert sorted(target.parent.iterdir()) == [target, target.with_suffix(".version")]


def test_a_later_process_goes_on_where_an_earlier_one_gave_up(store: Store, target: Path) -> None:
    store.fault("GET /w.tar", "cut", after=1000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retry, "WAITS", [])
        with pytest.raises(CheckpointError, match=r"cannot be downloaded: it broke off at 1,000 of 10,240 bytes"):
            download(f"{store.url}/w.tar", target)
    assert not target.exists()
    download(f"{store.url}/w.tar", target)
    assert target.read_bytes() == CONTENT and store.asked() == [None, "bytes=1000-"]


def test_without_ranges_it_begins_again(store: Store, target: Path) -> None:
    store.knows_ranges = False
    store.fault("GET /w.tar", "cut")
    download(f"{store.url}/w.tar", target)
    assert target.read_bytes() == CONTENT and len(store.requests) == 2


@pytest.mark.parametrize("checks_version", [True, False])
def test_a_file_that_changed_meanwhile_is_not_mixed_with_the_old_one(
    store: Store, target: Path, checks_version: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "WAITS", [])
    store.fault("GET /w.tar", "cut")
    with pytest.raises(CheckpointError):
        download(f"{store.url}/w.tar", target)
    store.content, store.etag, store.checks_version = CONTENT[::-1] + b"more", "two", checks_version
    monkeypatch.setattr(retry, "WAITS", [0.0])
    download(f"{store.url}/w.tar", target)
    assert target.read_bytes() == store.content


def test_a_file_that_became_shorter_is_brought_anew(store: Store, target: Path, monkeypatch) -> None:
    monkeypatch.setattr(retry, "WAITS", [])
    store.fault("GET /w.tar", "cut")
    with pytest.raises(CheckpointError):
        download(f"{store.url}/w.tar", target)
    store.content, store.checks_version = CONTENT[:100], False
    monkeypatch.setattr(retry, "WAITS", [0.0])
    download(f"{store.url}/w.tar", target)
    assert target.read_bytes() == CONTENT[:100]


@pytest.mark.parametrize(("kind", "after"), [(429, 0), (503, None), (500, None)])
def test_a_trouble_that_passes_is_waited_for(store: Store, target: Path, kind: int, after: int | None) -> None:
    store.fault("GET /w.tar", kind, retry_after=after)
    download(f"{store.url}/w.tar", target)
    assert target.read_bytes() == CONTENT


def test_a_server_that_stalls_is_asked_again(store: Store, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "TIMEOUT", 0.5)
    store.fault("GET /w.tar", "stall", seconds=60)
    download(f"{store.url}/w.tar", target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(("kind", "requests"), [(404, 1), (403, 1), (503, 3)])
def test_a_refusal_is_one_sentence_and_leaves_nothing(store: Store, target: Path, kind: int, requests: int) -> None:
    store.fault("GET /w.tar", kind, times=None)
    with pytest.raises(CheckpointError, match=str(kind)) as refusal:
        download(f"{store.url}/w.tar", target)
    assert "\n" not in str(refusal.value) and len(store.requests) == requests
    assert not list(target.parent.iterdir())


def test_more_than_a_model_may_have_is_refused_before_it_comes(store: Store, target: Path, monkeypatch) -> None:
    monkeypatch.setattr(downloads, "MAX_BYTES", 5000)
    with pytest.raises(CheckpointError, match="10,240 bytes, more than a model may have"):
        download(f"{store.url}/w.tar", target)
    assert not target.exists()
