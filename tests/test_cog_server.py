"""predict.py within the real Cog HTTP server, which is all of a container but the container."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cog_server import CONFIG, ROOT, CogServer, Webhooks, assert_only_fault, cog_server
from models import tiny_model_directory

from tools import cog_schema
from transformer.data.conversation import CHAT_TEMPLATE
from transformer.hub.checkpoint import load
from transformer.inference import Generator, SamplingOptions, answer, messages_of

# A prediction that goes on until it is canceled: thousands of passes of the model, of which a test waits for a few.
ENDLESS = dict(prompt="The river", max_tokens=4096, min_tokens=4096)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tiny_model_directory(tmp_path_factory.mktemp("model"))
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return directory


@pytest.fixture(scope="module")
def running(model: Path) -> Iterator[CogServer]:
    # That it starts shows that COG_WEIGHTS comes before HF_MODEL_ID: there is no such model.
    with cog_server({"COG_WEIGHTS": str(model), "HF_MODEL_ID": "nobody/nothing"}) as server:
        server.wait_for("READY")
        yield server


@pytest.fixture
def server(running: CogServer) -> CogServer:
    """The one server of most tests, ready for a prediction whatever the test before did."""
    running.wait_for("READY")
    return running


def letters(text: str) -> list[str]:
    """The letters of a text, each at its first place."""
    return [letter for letter in dict.fromkeys(text) if letter.isalpha()]


# ---- a prediction ----


def test_prediction(server: CogServer) -> None:
    answer = server.predict(prompt="The river", max_tokens=20, min_tokens=20, seed=1)
    assert answer["status"] == "succeeded"
    assert answer["output"] and all(isinstance(piece, str) for piece in answer["output"])
    metrics = answer["metrics"]
    assert metrics["prompt_tokens"] > 0
    assert metrics["completion_tokens"] == 20
    assert metrics["stop_reason"] == "length"
    assert metrics["tokens_per_second"] > 0 and metrics["time_to_first_token_seconds"] > 0


def test_every_input_reaches_the_library(server: CogServer, model: Path) -> None:
    inputs = dict(
        max_tokens=60, temperature=1.5, top_p=0.9, top_k=40, min_p=0.01, repetition_penalty=1.3, min_tokens=40
    )
    library = Generator(*load(model), "auto")

    def text(stop: tuple[str, ...] = (), **changed: Any) -> str:
        return "".join(library.generate("The river", SamplingOptions(**{**inputs, "seed": 5, **changed}, stop=stop)))

    assert server.text(prompt="The river", **inputs, seed=5) == text()
    whole = text()
    changes = dict(temperature=1.0, top_p=1.0, top_k=0, min_p=0.9, repetition_penalty=1.0, max_tokens=40, min_tokens=0)
    for name, value in changes.items():
        changed = server.text(prompt="The river", **{**inputs, name: value}, seed=5)
        assert changed == text(**{name: value}), name
        assert changed != whole or name == "min_tokens", name
    stops = letters(whole)[5:7]
    assert (
        server.text(prompt="The river", **inputs, seed=5, stop_sequences=",".join(stops)) == text(tuple(stops)) != whole
    )


def test_defaults(server: CogServer, model: Path) -> None:
    options = SamplingOptions(repetition_penalty=1.1, seed=3)
    assert server.text(prompt="The river", seed=3) == "".join(
        Generator(*load(model), "auto").generate("The river", options)
    )


def test_the_sampling_settings_are_logged(server: CogServer) -> None:
    """Those of the model's generation_config.json, unless the request says otherwise."""
    logs = server.predict(prompt="The river", max_tokens=1, top_k=7)["logs"]
    assert "sampling: temperature 0.8 (model), top_k 7 (user)," in logs and "repetition_penalty 1.1 (model)" in logs


def test_setup_says_once_that_the_model_has_a_chat_template(server: CogServer) -> None:
    logs = server.log.read_text()  # which has that of setup(), whose last lines /health-check may lack
    assert logs.count("This model has a chat template") == 1 and "the input chat or system_prompt" in logs


def test_template_options_of_a_chat(server: CogServer, model: Path) -> None:
    inputs = dict(prompt="The river", max_tokens=20, temperature=0, chat=True)
    given = {"bos_token": "<|pad|>"}
    options = SamplingOptions(max_tokens=20, temperature=0, repetition_penalty=1.1)
    expected = answer(Generator(*load(model), "auto"), messages_of("The river"), options, given)
    assert server.text(**inputs, template_options=json.dumps(given)) == "".join(expected)
    for wrong, sentence in (("[1]", "must be a JSON object"), ('{"a": 1}', "does not read a")):
        assert sentence in server.predict(**inputs, template_options=wrong)["error"]
    assert "set chat too" in server.predict(prompt="The river", template_options=json.dumps(given))["error"]


def test_seed(server: CogServer) -> None:
    def text(**seed: int) -> str:
        return server.text(prompt="The river", max_tokens=40, min_tokens=40, temperature=1, **seed)

    assert text(seed=7) == text(seed=7)
    assert text(seed=7) != text(seed=8)
    assert text(seed=0) == text(seed=0)  # 0 is a seed like any other
    assert text() != text()


def test_stop_sequence(server: CogServer) -> None:
    inputs = dict(prompt="The river", max_tokens=40, min_tokens=40, seed=2)
    whole = server.text(**inputs)
    stop = letters(whole)[5]
    answer = server.predict(**inputs, stop_sequences=f"does not occur,,{stop}")
    assert "".join(answer["output"]) == whole[: whole.index(stop)]
    assert answer["metrics"]["stop_reason"] == "stop_sequence"


def test_a_chat(server: CogServer, model: Path) -> None:
    generator, options = Generator(*load(model)), SamplingOptions(max_tokens=40, temperature=0, repetition_penalty=1)
    inputs = dict(prompt="The river", max_tokens=40, temperature=0, repetition_penalty=1)
    for chat in ({"chat": True}, {"system_prompt": "Be brief."}):
        expected = "".join(answer(generator, messages_of("The river", chat.get("system_prompt", "")), options))
        assert server.text(**inputs, **chat) == expected


# ---- what a prompt may be ----


@pytest.mark.parametrize(
    "prompt",
    ["", " ", "\n", "🦞 東京 naïve", "👩‍👩‍👧", "null \0 byte", "<|endoftext|>", "� \u2028 \ufeff"],
)
def test_prompts(server: CogServer, prompt: str) -> None:
    assert server.predict(prompt=prompt, max_tokens=3, min_tokens=3)["metrics"]["completion_tokens"] == 3


def test_a_prompt_of_a_megabyte(server: CogServer) -> None:
    answer = server.predict(prompt="The river rises. " * 60_000, max_tokens=3, min_tokens=3)
    assert answer["status"] == "succeeded" and answer["metrics"]["prompt_tokens"] > 100_000


def test_surrogates(server: CogServer) -> None:
    def post(escaped: str) -> Any:
        body = '{"input": {"prompt": "PROMPT", "max_tokens": 3, "seed": 0}}'.replace("PROMPT", escaped)
        return server.http.post("/predictions", content=body, headers={"Content-Type": "application/json"})

    assert post(r"\ud83e\udd9e").json()["output"] == server.predict(prompt="🦞", max_tokens=3, seed=0)["output"]
    for broken in (r"\ud83e", r"\udd9e", r"\ud83e \udd9e", r"\udd9e\ud83e"):
        reply = post(broken)
        assert reply.status_code == 400 and "JSON" in reply.text, broken
    assert server.predict(prompt="still there", max_tokens=3)["status"] == "succeeded"


# ---- what is refused ----

BOUNDS = {
    "max_tokens": (1, 4096),
    "temperature": (0, 5),
    "top_p": (0, 1),
    "top_k": (0, None),
    "min_p": (0, 1),
    "repetition_penalty": (0.5, 2),
    "min_tokens": (0, 4096),
    "seed": (0, 2**63 - 1),
}
WHOLE = ("max_tokens", "top_k", "min_tokens", "seed")


def wrong_inputs() -> Iterator[Any]:
    def wrong(name: str, value: Any) -> Any:
        return pytest.param(name, value, id=f"{name}={json.dumps(value)}")

    for name, (low, high) in BOUNDS.items():
        yield wrong(name, low - 1)
        yield wrong(name, low - 0.001)
        if high is not None:
            yield wrong(name, high + 1)
        for value in ("1", "", True, None, [1], {}, *([1.5] if name in WHOLE else [])):
            yield wrong(name, value)
    for name in ("prompt", "stop_sequences"):
        for value in (1, True, None, ["a"], {}):
            yield wrong(name, value)


@pytest.mark.parametrize(("name", "value"), wrong_inputs())
def test_a_wrong_input_is_named(running: CogServer, name: str, value: Any) -> None:
    reply = running.http.post("/predictions", json={"input": {"prompt": "a", name: value}})
    assert_only_fault(reply, name)


@pytest.mark.parametrize("body", [None, {}, {"input": {}}, {"input": None}, {"input": {"max_tokens": 3}}])
def test_a_missing_prompt(running: CogServer, body: Any) -> None:
    reply = running.http.post("/predictions", **({} if body is None else {"json": body}))
    assert reply.status_code == 422
    assert reply.json()["detail"][0]["loc"] == ["body", "input", "prompt"]


@pytest.mark.parametrize("name", BOUNDS)
def test_a_bound_is_allowed(server: CogServer, name: str) -> None:
    low, high = BOUNDS[name]
    for value in (low, high):
        if value is not None:
            answer = server.predict(**{"prompt": "a", "max_tokens": 8, "stop_sequences": "a,e,\ufffd", name: value})
            # The only bounds that do not go together: more tokens at least than at most.
            assert answer["status"] == ("failed" if name == "min_tokens" and value else "succeeded"), value


def test_whole_numbers_written_with_a_point(server: CogServer) -> None:
    body = '{"input": {"prompt": "The river", "max_tokens": 9.0, "min_tokens": 9e0, "top_k": 40.0, "seed": 3.0}}'
    reply = server.http.post("/predictions", content=body, headers={"Content-Type": "application/json"})
    inputs = dict(prompt="The river", max_tokens=9, min_tokens=9, top_k=40, seed=3)
    assert "".join(reply.json()["output"]) == server.text(**inputs)
    # And the other way round.
    assert server.text(**inputs, temperature=1, top_p=1) == server.text(**inputs, temperature=1.0, top_p=1.0)


def test_options_that_contradict_each_other(server: CogServer) -> None:
    answer = server.predict(prompt="a", max_tokens=3, min_tokens=5)
    assert answer["status"] == "failed" and "output" not in answer
    assert answer["error"].endswith("min_tokens 5 is more than max_tokens 3.")


# ---- a text that is written ----


def test_stream(server: CogServer) -> None:
    inputs = dict(prompt="The river", max_tokens=60, min_tokens=60, seed=4)
    with server.stream("a-stream", **inputs) as arriving:
        events = list(arriving)
    assert [event.name for event in events if event.name in ("start", "completed")] == ["start", "completed"]
    assert events[0].name == "start" and events[-1].name == "completed"
    pieces = [event for event in events if event.name == "output"]
    assert len(pieces) > 10
    assert [piece.data["index"] for piece in pieces] == list(range(len(pieces)))
    completed = events[-1].data
    assert completed["status"] == "succeeded" and completed["output"] == [piece.data["chunk"] for piece in pieces]
    assert completed["metrics"]["completion_tokens"] == 60
    server.wait_for("READY")
    assert server.predict(**inputs)["output"] == completed["output"]


def test_pieces_arrive_while_the_text_is_written_and_it_can_be_canceled(server: CogServer) -> None:
    with server.stream("endless", **ENDLESS) as arriving:
        first = next(event for event in arriving if event.name == "output")
        assert first.data["index"] == 0
        # The server has one slot and it is taken: what has arrived is the beginning of a text without an end yet.
        assert server.health()["status"] == "BUSY"
        assert server.http.post("/predictions", json={"input": {"prompt": "a"}}).status_code == 409
        assert server.http.post("/predictions/endless/cancel").status_code == 200
        last = list(arriving)[-1]
    assert last.name == "completed" and last.data["status"] == "canceled"
    assert 0 < last.data["metrics"]["completion_tokens"] < ENDLESS["max_tokens"]
    assert server.predict(prompt="The next", max_tokens=3)["status"] == "succeeded"
    assert server.http.post("/predictions/endless/cancel").status_code == 404


def test_a_prediction_put_twice_is_made_once(server: CogServer) -> None:
    with Webhooks() as webhooks:
        request = {"input": ENDLESS, "webhook": webhooks.url, "webhook_events_filter": ["start", "completed"]}
        for _ in range(2):
            reply = server.http.put("/predictions/once", json=request, headers={"Prefer": "respond-async"})
            assert reply.status_code == 202 and reply.json()["id"] == "once"
        assert server.http.put("/predictions/once", json={**request, "id": "other"}).status_code == 422
        server.http.post("/predictions/once/cancel")
        webhooks.until("canceled")
        server.wait_for("READY")
        assert [posted["status"] for posted in webhooks.received[1:]] == ["canceled"]


def test_a_lost_stream_is_taken_up_from_the_beginning(server: CogServer) -> None:
    with server.stream("lost", **ENDLESS) as arriving:
        # More pieces than the server keeps by default: see cog.yaml.
        seen = [next(event for event in arriving if event.name == "output") for _ in range(1100)]
        with server.stream("lost", **ENDLESS) as again:
            replayed = [next(event for event in again if event.name == "output") for _ in range(1100)]
            assert replayed == seen
            server.http.post("/predictions/lost/cancel")


def test_a_stream_that_cannot_begin(server: CogServer) -> None:
    with server.stream("contradiction", prompt="a", max_tokens=3, min_tokens=5) as arriving:
        completed = list(arriving)[-1].data
    assert completed["status"] == "failed"
    assert completed["error"].endswith("min_tokens 5 is more than max_tokens 3.")


def test_webhooks(server: CogServer) -> None:
    inputs = dict(prompt="The river", max_tokens=60, min_tokens=60, seed=4)
    with Webhooks() as webhooks:
        request = {"input": inputs, "webhook": webhooks.url}
        reply = server.http.post("/predictions", json=request, headers={"Prefer": "respond-async"})
        assert reply.status_code == 202 and reply.json()["status"] == "starting"
        last = webhooks.until("succeeded", "failed", "canceled")
    assert last["status"] == "succeeded" and last["id"] == reply.json()["id"]
    assert last["metrics"]["completion_tokens"] == 60
    assert webhooks.received[0]["status"] in ("starting", "processing")
    assert len(webhooks.received) > 2  # the text as it grew, too
    assert "".join(last["output"]) == server.text(**inputs)


# ---- around predictions ----


def test_the_server_shows_the_schema(running: CogServer) -> None:
    shown = running.http.get("/openapi.json").json()
    assert shown == cog_schema.openapi_schema(ROOT, CONFIG["predict"], CONFIG["train"])


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"COG_WEIGHTS": "/no/such/model"}, "there is no model at /no/such/model"),
        (
            {"HF_MODEL_ID": "nobody/nothing@v1"},
            "nobody/nothing@v1 cannot be fetched from the Hub: it is not in the Hub's cache here",
        ),
    ],
)
def test_a_model_that_is_not_there(environment: dict[str, str], sentence: str) -> None:
    with cog_server(environment) as server:
        health = server.wait_for("READY", "SETUP_FAILED")
        assert health["status"] == "SETUP_FAILED"
        assert sentence in health["setup"]["logs"] and "Traceback" not in health["setup"]["logs"]
        assert server.http.post("/predictions", json={"input": {"prompt": "a"}}).status_code == 503
