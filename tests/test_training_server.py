"""The training server: what it trains on and returns, what it may read, what it leaves behind, and how it ends."""

import base64
import contextlib
import functools
import json
import os
import signal
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import cog_server as server_module
import pytest
from cog_server import CogServer, assert_only_fault, cog_server
from models import SENTENCES
from ordinary_texts import ORDINARY_TEXTS

from transformer.errors import CorpusError
from transformer.training import cog_training as training_server

SMALL = dict(
    from_scratch=True, train_batch_size=2, context_length=16, d_model=16, n_layers=1, n_heads=1, vocab_size=300
)
OURS = ("training-*", "trained-*", "model-*", "weights*.tar", "tmp*file*")
DEFAULTS = ("prompts", "prose", "code")  # of all twenty: tests/twenty_trainings.py


def data_url(text: str, kind: str = "text/plain") -> str:
    return f"data:{kind};base64,{base64.b64encode(text.encode()).decode()}"


@pytest.fixture(scope="module")
def trainer() -> Iterator[CogServer]:
    with cog_server({}, mode="train") as server:
        server.wait_for("READY")
        yield server


def train(server: CogServer, train_data: str, **inputs: Any) -> dict[str, Any]:
    server.wait_for("READY")
    reply = server.http.post("/trainings", json={"input": {"train_data": train_data, **inputs}}, timeout=300)
    assert reply.status_code == 200, reply.text
    return reply.json()


def left(server: CogServer) -> list[str]:
    """What is left of trainings in the server's temporary folder."""
    folder = server.log.parent
    return sorted(path.name for pattern in OURS for path in folder.glob(pattern))


def left_in_the_end(server: CogServer) -> list[str]:
    """What is left a moment after an answer: the server says that it is ready only when it has sent it."""
    deadline = time.monotonic() + 120
    while left(server) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left(server)


# ---- a training, and predictions with what came of it ----


def test_training_and_predicting_with_it(trainer: CogServer, tmp_path: Path) -> None:
    answer = train(trainer, data_url("\n".join(SENTENCES * 10)), **SMALL, max_steps=2.0)
    assert answer["status"] == "succeeded", answer
    kind, content = answer["output"]["weights"].split(",", 1)
    assert kind.startswith("data:") and kind.endswith(";base64")
    (tmp_path / "weights.tar").write_bytes(base64.b64decode(content))

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    files = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path))
    threading.Thread(target=files.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{files.server_port}/weights.tar"
        with cog_server({"COG_WEIGHTS": url}) as server:
            assert server.predict(prompt="The river", max_tokens=5, min_tokens=5)["metrics"]["completion_tokens"] == 5
    finally:
        files.shutdown()
        files.server_close()


@pytest.mark.parametrize("kind", ["application/jsonl", "application/octet-stream"])  # clients send the second
def test_training_on_json_lines(trainer: CogServer, kind: str) -> None:
    rows = "\n".join(json.dumps({"prompt": sentence[:9], "completion": sentence[9:]}) for sentence in SENTENCES * 10)
    answer = train(trainer, data_url(rows, kind), **SMALL, max_steps=2, preflight="off")
    assert answer["status"] == "succeeded", answer


def test_training_on_nothing(trainer: CogServer) -> None:
    answer = train(trainer, data_url(" \n"), **SMALL, max_steps=2)
    assert answer["status"] == "failed"
    assert answer["error"].endswith("has no text.")


@pytest.mark.parametrize(
    ("name", "value"), [("max_steps", 0), ("preset", "unknown"), ("learning_rate", "fast"), ("train_data", 3)]
)
def test_a_wrong_training_input_is_named(trainer: CogServer, name: str, value: Any) -> None:
    reply = trainer.http.post("/trainings", json={"input": {"train_data": data_url("a"), name: value}})
    assert_only_fault(reply, name)


def test_a_failing_preflight_stops_the_training_with_its_sentence(trainer: CogServer) -> None:
    lines = [f"{sentence} {number} [SEP]" for number in range(50) for sentence in SENTENCES]
    answer = train(trainer, data_url("\n".join(lines)), **SMALL, max_steps=2)
    assert answer["status"] == "failed"
    assert "ends with '[SEP]'" in answer["error"] and "take it out" in answer["error"], answer["error"]


# ---- what a training may read, and what it leaves ----


@pytest.mark.slow  # fine-tunes the default model in batches of 4,096 tokens
@pytest.mark.parametrize("name", DEFAULTS)
def test_a_training_with_defaults_succeeds(trainer: CogServer, name: str) -> None:
    answer = train(trainer, data_url(ORDINARY_TEXTS[name]), max_steps=2)
    assert answer["status"] == "succeeded", answer.get("error")
    archive = base64.b64decode(answer["output"]["weights"].split(",", 1)[1])
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(tar.getnames())
    assert left_in_the_end(trainer) == []


@pytest.mark.parametrize(
    "named", ["/etc/passwd", "../../etc/passwd", "README.md", "transformer/model", "file:///etc/passwd", " x", ".", ""]
)
def test_files_of_the_server_are_not_trained_on(trainer: CogServer, named: str) -> None:
    answer = train(trainer, named, **SMALL, max_steps=1)
    assert answer["status"] == "failed"
    assert "Files of the server are not read" in answer["error"] or "Input validation" in answer["error"]


def test_a_hub_id_is_taken_as_one(trainer: CogServer) -> None:
    answer = train(trainer, "nobody/nothing", **SMALL, max_steps=1)
    assert answer["status"] == "failed" and "nobody/nothing cannot be opened as a data set" in answer["error"]
    assert left_in_the_end(trainer) == []


def test_a_path_from_elsewhere_is_refused_within_the_server_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert training_server.data_source(Path("/etc/passwd")) == "/etc/passwd"  # called from Python: the caller's own
    monkeypatch.setattr(training_server, "in_server", lambda: True)
    with pytest.raises(CorpusError, match="Files of the server are not read"):
        training_server.data_source(Path("/etc/passwd"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    (tmp_path / "inside").write_text("x")
    assert training_server.data_source(tmp_path / "inside") == str(tmp_path / "inside")
    (tmp_path / "link").symlink_to("/etc/passwd")
    for outside in (tmp_path / "link", tmp_path / ".." / "x"):
        with pytest.raises(CorpusError):
            training_server.data_source(outside)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"d_model": 256, "preset": "modern"}, "preset, d_model: no effect without from_scratch"),
        ({"vocab_size": 8192}, "vocab_size: no effect without from_scratch"),
        ({"hub_token": "hf_x"}, "hub_token has no effect without hub_model_id"),
        ({"context_length": 2048}, "context_length 2,048 is more than the 1,024 tokens"),
    ],
)
def test_inputs_without_effect_are_named(trainer: CogServer, inputs: dict[str, Any], said: str) -> None:
    answer = train(trainer, data_url("\n".join(SENTENCES)), **inputs)
    assert answer["status"] == "failed" and said in answer["error"]
    assert left_in_the_end(trainer) == []


def test_a_seed_beyond_its_range_is_named(trainer: CogServer) -> None:
    for seed in (-1, 2**63):
        reply = trainer.http.post("/trainings", json={"input": {"train_data": data_url("a"), "seed": seed}})
        assert reply.status_code == 422 and reply.json()["detail"][0]["loc"][-1] == "seed"


def test_nothing_is_left_after_a_cancelation(trainer: CogServer) -> None:
    trainer.wait_for("READY")
    request = {"input": {"train_data": data_url("\n".join(SENTENCES * 10)), **SMALL, "num_train_epochs": 1000}}
    trainer.http.put("/trainings/long", json=request, headers={"Prefer": "respond-async"})
    wait_for_steps(trainer)
    assert trainer.http.post("/trainings/long/cancel").status_code == 200
    trainer.wait_for("READY")
    assert left_in_the_end(trainer) == []


def wait_for_steps(server: CogServer) -> None:
    """Until the training has made its first step."""
    deadline = time.monotonic() + 300
    while not any(path.stat().st_size for path in server.log.parent.glob("training-*/output/metrics.jsonl")):
        assert time.monotonic() < deadline, server.log.read_text()[-2000:]
        time.sleep(0.1)


@contextlib.contextmanager
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[CogServer, subprocess.Popen[bytes]]]:
    """A training server and its process."""
    processes: list[subprocess.Popen[bytes]] = []

    class Popen(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            processes.append(self)

    monkeypatch.setattr(server_module.subprocess, "Popen", Popen)
    with cog_server({}, mode="train") as server:
        server.wait_for("READY")
        yield server, processes[0]


@pytest.mark.parametrize("waits", [True, False], ids=["client-waits", "respond-async"])
def test_a_training_ends_with_its_server(waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with started(monkeypatch) as (server, process):
        text = data_url("\n".join(SENTENCES * 10))
        request = {"input": {"train_data": text, **SMALL, "num_train_epochs": 1000, "preflight": "off"}}
        answers: list[Any] = []
        headers = {} if waits else {"Prefer": "respond-async"}

        def post() -> None:
            answers.append(server.http.post("/trainings", json=request, headers=headers, timeout=400).json())

        client = threading.Thread(target=post)
        client.start()
        wait_for_steps(server)
        workers = children(process.pid)
        process.send_signal(signal.SIGTERM)
        process.wait(120)
        client.join(120)
        if waits:  # the work until then is not lost
            assert answers[0]["output"]["weights"].startswith("data:")
            assert "the server is shut down" in answers[0]["logs"]
        deadline = time.monotonic() + 120
        while any(map(is_running, workers)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert left(server) == []


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False
