"""No token or password stands in an error, a log or a traceback, whatever a client library says."""

import logging
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
from hub_faults import FaultyServer, Refusal, Reply, Request, serve
from hub_server import Hub

from transformer import credentials
from transformer.credentials import clean_token, guard_output, redact, scrub
from transformer.errors import CheckpointError, CorpusError, PublishError, TransformerError
from transformer.hub import retry
from transformer.hub.client import ask
from transformer.hub.publish import create_repository
from transformer.hub.resolve import fetch, fetch_tokenizer
from transformer.hub.text_sources import has_split
from transformer.reporting.model_card import command_line

ROOT = Path(__file__).parents[1]
LONG = "hf_" + "aB3" * 11  # in the form of a real token


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(credentials, "known_secrets", set())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as hub:
        hub.serve_this_process(monkeypatch, tmp_path / "hub-cache")
        yield hub


def shown(error: BaseException) -> str:
    """The messages that a traceback, or a tool that walks the chain, would show."""
    parts = []
    seen, link = [], error
    while link is not None and link not in seen:
        seen.append(link)
        parts += [*traceback.format_exception_only(link), str(link), repr(link)]
        link = link.__cause__ or link.__context__
    return "\n".join(parts)


# ---- the token ----


@pytest.mark.parametrize("around", ["{}\n", " {} ", "\t{}\r\n", "\n\n{}"])
def test_spaces_and_line_ends_around_a_token_are_not_sent(hub: Hub, around: str, monkeypatch) -> None:
    create_repository("user/lm", token=around.format("hf_test"))
    monkeypatch.setenv("HF_TOKEN", around.format("hf_test"))
    create_repository("user/lm")
    sent = [request.headers["authorization"] for request in hub.requests if request.path == "/api/repos/create"]
    assert sent == ["Bearer hf_test"] * 2


ODD = [
    "hf_sécret-abc",
    "hf_secret abcdef",
    "hf_secret\tabcdef",
    "hf_secret\x01abcdef",
    '"hf_secretabcdef"',
    "hf_🦞abcdef",
]


@pytest.mark.parametrize("token", [*ODD, "hf_secretabc\ndefghi"])
def test_another_odd_character_is_a_sentence_at_once(hub: Hub, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(seconds: float) -> None:
        raise AssertionError("it is tried again")

    monkeypatch.setattr(retry, "time", SimpleNamespace(sleep=never))
    calls = [lambda: create_repository("user/lm", token=token)]
    monkeypatch.setenv("HF_TOKEN", token)
    calls += [lambda: create_repository("user/lm"), lambda: fetch("user/lm"), lambda: fetch_tokenizer("user/lm")]
    for call in calls:
        with pytest.raises(
            (PublishError, CheckpointError), match=r"character U\+[0-9A-F]{4,} at position \d+"
        ) as error:
            call()
        said = shown(error.value)
        assert token not in said and "abc" not in said and "\n" not in str(error.value)
    assert not has_split("user/data", None, "train")
    assert not hub.requests


def test_an_empty_token_is_none_and_a_whole_one_stays() -> None:
    assert clean_token(None) is None and clean_token(" \n") is None
    assert clean_token(LONG) == LONG and clean_token("eyJh.bGci-Oi_J/+~=") == "eyJh.bGci-Oi_J/+~="


def test_what_the_client_says_of_a_header_is_not_repeated_nor_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the client library says: here what it says of a token that was not checked."""
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    for secret in ("hf_short1", LONG, "hf_ab\ncdefgh"):
        credentials.keep_secret(secret)
        calls = []

        def request(secret: str = secret, calls: list = calls) -> None:
            calls.append(1)
            try:
                raise ValueError(f"inner {secret}")
            except ValueError as error:
                raise httpx2.LocalProtocolError(f"Illegal header value {f'Bearer {secret}'.encode()!r}") from error

        with pytest.raises(PublishError) as refusal:
            ask(request, f"the push to https://user:{secret}@hub failed", PublishError)
        said = shown(refusal.value)
        assert len(calls) == 1 and "Illegal header value" in said and "***" in said
        assert secret not in said and repr(secret)[1:-1] not in said and "cdefgh" not in said


def test_a_server_that_repeats_the_token_does_not_reach_the_message(hub: Hub, monkeypatch) -> None:
    def answer(request: Request) -> Reply:
        raise Refusal(403, None, f"no: {request.headers['authorization']} of {request.headers['authorization'][7:]}")

    monkeypatch.setattr(hub, "answer", answer)
    with pytest.raises(PublishError) as refusal:
        create_repository("user/lm", token="hf_explicit")
    assert "hf_explicit" not in shown(refusal.value)
    monkeypatch.setenv("HF_TOKEN", "hf_environment")
    for call in (
        lambda: create_repository("user/lm"),
        lambda: fetch("user/lm"),
        lambda: fetch_tokenizer("user/lm"),
    ):
        with pytest.raises(TransformerError) as refusal:
            call()
        assert "hf_environment" not in shown(refusal.value)


# ---- messages ----


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"the token {LONG}.", "the token ***."),
        ("Bearer abcdefghijk'", "Bearer ***'"),
        ("headers {'authorization': 'Basic dXNlcjpw', 'a': 1}", "headers {'authorization': '***', 'a': 1}"),
        ("see https://me:pa@ss@host:80/w.tar, please", "see https://host:80/w.tar, please"),
        ("(https://host/w?id=7&X-Amz-Signature=abc)", "(https://host/w?id=***&X-Amz-Signature=***)"),
        ("https://host/w#access_token=abc: 404", "https://host/w#access_token=***: 404"),
        ("https://host/w?abcdef 404", "https://host/w?*** 404"),
        ("s3://key:secret@bucket/w", "s3://bucket/w"),
    ],
)
def test_what_is_masked(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "hf_hub_download() of huggingface_hub, hf_transfer and HF_TOKEN; a bearer of news",
        "user/name@v1 and https://huggingface.co/user/name/resolve/main/model.safetensors: 404",
        "Set HF_TOKEN or run `hf auth login`, with a token that may do this.",
        "is 3 < 4? a@b.c",
    ],
)
def test_what_is_not(text: str) -> None:
    assert redact(text) == text


def test_secrets_of_the_environment_are_masked_in_every_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "k/é\n&12345")
    for form in ("k/é\n&12345", r"k/é\n&12345", r"k/\xe9\n&12345", r"k/\xc3\xa9\n&12345", "k%2F%C3%A9%0A%2612345"):
        assert redact(f"<{form}>") == "<***>", form
    monkeypatch.setenv("SOME_API_KEY", "true")
    assert redact("true") == "true"


@pytest.mark.parametrize("kind", [TransformerError, CheckpointError, CorpusError, PublishError])
def test_every_sentence_of_the_package_passes_through_it(kind: type[TransformerError]) -> None:
    assert str(kind(f"{LONG} at https://a:b@host/")) == "*** at https://host/"


def test_errors_whose_message_cannot_be_changed_are_replaced() -> None:
    error = scrub(OSError(2, f"no {LONG}", "file"))
    assert LONG not in shown(error) and "no ***" in str(error)
    clean = ValueError("nothing")
    assert scrub(clean) is clean


def test_logs_and_uncaught_errors_are_redacted(tmp_path: Path) -> None:
    code = f"""
import logging
from transformer.credentials import guard_output
guard_output()
guard_output()
logging.basicConfig(level=logging.DEBUG)
logging.getLogger("any").info("sent %s to %s", {LONG!r}, "https://a:secret@host/")
logging.getLogger("any").info("%d words", 3)
try:
    raise KeyError({LONG!r})
except KeyError:
    logging.getLogger("other").exception("it failed")
raise RuntimeError("uncaught") from ValueError({LONG!r})
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and not done.stdout
    assert LONG not in done.stderr.replace(code, "") and "secret" not in done.stderr
    for part in (
        "sent *** to https://host/",
        "3 words",
        "KeyError: '***'",
        "ValueError: ***",
        "RuntimeError: uncaught",
    ):
        assert part in done.stderr, part


def test_a_record_is_left_as_it_is_where_nothing_is_secret(caplog: pytest.LogCaptureFixture) -> None:
    before, hook = logging.getLogRecordFactory(), sys.excepthook
    try:
        guard_output()
        with caplog.at_level(logging.INFO):
            logging.getLogger("any").info("%s of %s", 3, LONG)
            logging.getLogger("any").info("%s of %s", 3, 4)
        assert [record.args for record in caplog.records] == [(), (3, 4)]
    finally:
        logging.setLogRecordFactory(before)
        sys.excepthook = hook


# ---- URLs ----


class Guarded(FaultyServer):
    """A server that wants a user and password, and repeats what it was sent when it refuses."""

    def answer(self, request: Request) -> Reply:
        sent = request.headers.get("authorization", "")
        if sent != "Basic bWU6cGFzczp3b3JkIQ==":
            raise Refusal(403, None, f"not {sent}")
        if request.path == "/moved":
            return Reply(302, b"", {"Location": f"{self.url.replace('127.0.0.1', 'localhost')}/elsewhere"})
        return serve(request, b"no tar", "one", {})


def test_the_password_in_a_url_is_sent_to_its_host_and_shown_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(retry, "WAITS", [])
    with Guarded() as server, caplog.at_level(logging.INFO):
        address = server.url.removeprefix("http://")
        for path, word in (("w.tar?sig=s3cr3t", "not a tar"), ("moved", "403")):
            with pytest.raises(CheckpointError, match=word) as refusal:
                fetch(f"http://me:pass%3Aword!@{address}/{path}")
            said = shown(refusal.value) + caplog.text
            assert f"http://{address}/{path.split('?')[0]}" in str(refusal.value)
            for secret in ("word!", "me:pass", "s3cr3t", "bWU6"):
                assert secret not in said, secret
        assert server.requests[-1].path == "/elsewhere" and "authorization" not in server.requests[-1].headers


@pytest.mark.parametrize("url", ["http://me:secret12@host:a b/", "http://[me:secret12@x/", "http://host:secret12/w"])
def test_what_is_no_url_is_a_sentence(url: str) -> None:
    with pytest.raises(CheckpointError, match="cannot be downloaded") as refusal:
        fetch(url)
    assert "\n" not in str(refusal.value)


def test_the_command_in_a_model_card_has_no_credentials() -> None:
    command = command_line({"init_from": "https://me:pw@host/w.tar?sig=abc", "data": f"https://host/{LONG}"})
    assert command == "python train.py --init-from 'https://host/w.tar?sig=***' --data 'https://host/***'"
