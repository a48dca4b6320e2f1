"""The commands of README.md and docs/*.md do what they say, run as they are written.

Three things are not as written: the server has a free port, HF_ENDPOINT is a local Hub (with HF_TOKEN in place of
`hf auth login`), and a training ends after --max-steps 3, which is added to its options. `cog predict` and `cog train`,
which take Docker, are requests with the same inputs to the server that runs in the container. Replicate's client talks
to a local server that answers as Replicate's API does.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import test_original
import torch
from hub_server import Hub
from models import SENTENCES, tiny_model_directory, tiny_tokenizer
from readme_commands import Command, commands, copy_checkout, run
from replicate_api import replicate_api

from transformer.hub import checkpoint
from transformer.inference.native.compiled_kernel import file_name
from transformer.inference.native.instruction_sets import sets_of_machine

TEXT = "\n".join(SENTENCES * 40) + "\n"
# How each command is tried, by the first expression that it matches from its beginning. What is not run says why.
RULES = {
    r"make predict ARGS=\"--model mine\"": "after training",
    r"make predict ARGS=\"--model you/your-model": "after publishing",
    r"make predict|\.venv/bin/python -m transformer predict": "predict",
    r"make chat": "chat",
    r"\.venv/bin/python -m transformer (show|evaluate|preflight --help)": "look",
    r"\.venv/bin/python -m experiments.walkthrough": "look",
    r"\.venv/bin/python -m transformer import-original": "import",
    r"\.venv/bin/python -m transformer push": "publish",
    r"make kernel": "kernel",
    r"make train ARGS=--help": "look",
    r"make train ARGS=\"--init-from weights": "fine-tune",
    r"make train ": "train",
    r"make serve": "serve",
    r"curl ": "request",
    r"cog (predict|train) -i": "cog",
    r"\.venv/bin/ct2-transformers-converter": "convert",
    r"from transformers import": "python",
    r"from transformer\.": "library",
    r"import time\nimport httpx": "client",
    r"import replicate": "replicate",
}
NOT_RUN = {
    r"make test": "it is this suite",
    r"\.venv/bin/python train\.py --config (default|experiments/)": "trains for hours; its parts have own tests",
    r"\.venv/bin/python -m transformer conversations": "reads Wikipedia; the command has tests of its own",
    r"cog push": "needs Docker and an account on Replicate",
    r"\.venv/bin/hf auth login": "asks for a token; HF_TOKEN stands in its place",
    r"python convert_hf_to_gguf.py": "is a script of llama.cpp's, which is not here",
    r"(CMAKE_ARGS=\S.*)?\.venv/bin/pip install": "installs packages",
    r"(NATIVE_INSTRUCTIONS=\w+ )?\.venv/bin/python -m benchmarks\.": "compares libraries, and needs a quiet machine",
    r"location = /predictions": "is nginx's configuration, and says that it was not run",
    r"class Qwen2": "is an adapter of the package, held equal to it by test_docs.py",
    r"find /tmp/coglet": "cleans the folder of whatever server runs on this machine",
    r"\.venv/bin/python benchmarks/cold_start.py": "measures for a minute, and needs a quiet machine",
}
COMMANDS = commands()


def rule(command: Command) -> str | None:
    """How a command is tried; None: nobody has said."""
    found = (
        how for pattern, how in (RULES | dict.fromkeys(NOT_RUN, "not run")).items() if re.match(pattern, command.text)
    )
    return next(found, None)


def each(how: str) -> pytest.MarkDecorator:
    """The test's `command` is each of those that are tried this way, once."""
    texts = list(dict.fromkeys(command.text for command in COMMANDS if rule(command) == how))
    assert texts, f"there is no command for the rule {how!r}: take it out"
    return pytest.mark.parametrize("command", texts)


def test_every_command_is_run_or_says_why_not() -> None:
    unknown = [str(command) for command in COMMANDS if rule(command) is None]
    assert not unknown, f"add a rule to RULES, or a reason to NOT_RUN, for {unknown}"
    stale = [p for p in RULES | NOT_RUN if not any(re.match(p, command.text) for command in COMMANDS)]
    assert not stale, f"no command matches {stale}"


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    """The Hub, with what the README takes from it; the user is "you"."""
    with Hub(user="you") as hub:
        fields = json.loads(tiny_tokenizer(300).backend.to_str())
        vocabulary = fields["model"]["vocab"]
        vocabulary |= {f"<filler {id}>": id for id in range(len(vocabulary), 50257)}  # as many as GPT-2 has
        files = {"tokenizer.json": json.dumps(fields).encode(), "tokenizer_config.json": b'{"model_max_length": 1024}'}
        hub.add("models", "openai-community/gpt2", files)
        yield hub


@pytest.fixture(scope="module")
def environment(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables of a user who is logged in to the Hub, with caches of his own."""
    home = tmp_path_factory.mktemp("home")
    variables = hub.environment(home / "hub", token=True, HOME=str(home), OMP_NUM_THREADS="1")
    kept = {name: value for name, value in variables.items() if not name.startswith(("COG_", "MAKE", "MFLAGS"))}
    return {**kept, "XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"]}


def prepare(folder: Path) -> Path:
    """A checkout with the files that the README's commands name."""
    copy_checkout(folder)
    (folder / "my.txt").write_text(TEXT, encoding="utf-8")
    rows = [{"prompt": text[:20], "completion": text[20:]} for text in SENTENCES * 10]
    (folder / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name in ("DATA", "WIKITEXT"):
        (folder / name).mkdir()
        for split in ("train", "validation"):
            (folder / name / f"{split}.txt").write_text(f" = {split} = \n\n {SENTENCES[0]} \n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout of all commands that do not train; its model `mine` has random weights."""
    folder = prepare(tmp_path_factory.mktemp("checkout"))
    tiny_model_directory(folder / "mine")
    (folder / "mine" / "README.md").write_text("# A model\n", encoding="utf-8")  # as training writes it
    with mock.patch.object(test_original, "VOCABULARY", 50257):
        torch.save({"model_state_dict": test_original.original_state()}, folder / "transformer_1.pt")
    return folder


@pytest.fixture
def shell(checkout: Path, environment: dict[str, str]) -> Callable[..., str]:
    return lambda command, typed="": run(command, checkout, environment, typed)


# ---- predict, chat, look, import, convert ----


@each("predict")
def test_predict(command: str, shell: Callable[..., str]) -> None:
    said = shell(command)
    if "--help" in command:
        assert "--temperature" in said and "--max-tokens" in said
    else:
        prompt = re.search(r'PROMPT="([^"]*)"', command)
        begin = prompt[1] if prompt else "The history of the city"
        assert said.startswith(begin) and len(said.split()) > len(begin.split())


@each("chat")
def test_chat_continues_what_is_typed(command: str, shell: Callable[..., str]) -> None:
    said = shell(command, "The river\nThe tower\n\n")
    assert said.count("Model: ") == 2
    assert all(re.match(r"\s*\S", answer) for answer in said.split("Model: ")[1:])


@each("look")
def test_what_a_command_prints_or_the_page_that_it_writes(
    command: str, shell: Callable[..., str], checkout: Path
) -> None:
    said = shell(command)
    if " show " in command:
        page = (checkout / said.strip()).read_text(encoding="utf-8")
        letters = re.sub(r"<[^>]*>|\W", "", page)  # whatever stands between the tokens
        assert "lobsterisblue" in letters and page.rstrip().endswith("</html>")
    else:
        options = "train" in command or "preflight" in command
        expected = "--max-minutes" if options else "likeliest next" if "walkthrough" in command else "bits per byte"
        assert expected in said


@each("import")
def test_a_checkpoint_of_the_original_is_imported(command: str, shell: Callable[..., str], checkout: Path) -> None:
    shell(command)
    model, tokenizer = checkpoint.load(checkout / "imported")
    assert model.config.vocab_size == tokenizer.vocab_size == 50257 and model.config.heads == "average"


@pytest.mark.slow  # of every set of instructions, with all optimizations
@each("kernel")
def test_the_kernel_is_compiled_ahead(command: str, shell: Callable[..., str], checkout: Path) -> None:
    names = {Path(line).name for line in shell(command).splitlines() if line.endswith(".so")}
    assert names == {file_name(each) for each in sets_of_machine()}
    assert names == {path.name for path in (checkout / "transformer/inference/native/built").iterdir()}


@pytest.mark.slow  # imports Transformers and CTranslate2
@each("convert")
def test_the_default_model_is_converted(command: str, shell: Callable[..., str], checkout: Path) -> None:
    pytest.importorskip("ctranslate2", reason="needs CTranslate2, of requirements-dev.txt")
    shell(command)
    assert (checkout / "weights-ct2" / "model.bin").stat().st_size > 10**7


@pytest.mark.slow  # imports Transformers
@each("python")
def test_python_runs(command: str, shell: Callable[..., str]) -> None:
    program = command + '\nprint(tokenizer.decode(model.generate(**tokenizer("The river", return_tensors="pt"))[0]))\n'
    assert "The river" in shell(f".venv/bin/python -c {shlex.quote(program)}")


@each("library")
def test_the_library_continues_a_text(command: str, shell: Callable[..., str]) -> None:
    assert len(shell(f".venv/bin/python -c {shlex.quote(command)}").split()) > 10


# ---- publish ----


@each("publish")
def test_a_model_is_published(command: str, shell: Callable[..., str], hub: Hub) -> None:
    assert "you/your-model" in shell(command)
    assert hub.repos["you/your-model"].private
    assert "model.safetensors" in hub.repos["you/your-model"].files()


@each("after publishing")
def test_what_was_published_is_run(command: str, shell: Callable[..., str], hub: Hub) -> None:
    if "you/your-model" not in hub.repos:
        test_a_model_is_published(next(c.text for c in COMMANDS if rule(c) == "publish"), shell, hub)
    assert shell(command).startswith("The history of the city")


# ---- serve ----


def status_of(url: str) -> str:
    """The status in the server's health check; "" where nothing listens yet."""
    try:
        with urllib.request.urlopen(f"{url}/health-check") as reply:
            return json.load(reply)["status"]
    except urllib.error.URLError:
        return ""


def wait_until_ready(url: str) -> None:
    """Until the slot of a prediction is free, a moment after its answer."""
    deadline = time.monotonic() + 120
    while (status := status_of(url)) != "READY":
        assert time.monotonic() < deadline, f"{url} stays {status}"
        time.sleep(0.1)


@contextmanager
def serving(command: str, checkout: Path, environment: dict[str, str]) -> Iterator[str]:
    """The server that `make serve` starts, ready for requests; its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = re.sub(r"PORT=\d+", f"PORT={port}", command)
    temporary = checkout / "tmp"
    temporary.mkdir(exist_ok=True)
    variables = {**environment, "PATH": "/usr/local/bin:/usr/bin:/bin", "TMPDIR": str(temporary)}
    with open(checkout / "server.log", "w+b") as log:
        server = subprocess.Popen(
            ["bash", "-c", command], cwd=checkout, env=variables, stdout=log, stderr=log, start_new_session=True
        )
        try:
            url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 300
            while status_of(url) != "READY":
                assert server.poll() is None and time.monotonic() < deadline, Path(log.name).read_text()
                time.sleep(0.1)
            yield url
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


def serve_command(mode: str) -> str:
    """The README's command that starts the server for "predict" or "train"."""
    found = (c.text for c in COMMANDS if rule(c) == "serve")
    return next(text for text in found if ("MODE=train" in text) == (mode == "train"))


def cog_inputs(command: str, folder: Path) -> dict[str, Any]:
    """The inputs of `cog predict` or `cog train`; a file, @name, as the `cog` command sends it."""
    inputs: dict[str, Any] = {}
    words = shlex.split(command)
    for name, value in (word.split("=", 1) for before, word in itertools.pairwise(words) if before == "-i"):
        if value.startswith("@"):
            content = base64.b64encode((folder / value[1:]).read_bytes()).decode()
            inputs[name] = f"data:application/octet-stream;base64,{content}"
        else:
            inputs[name] = float(value) if re.fullmatch(r"-?\d+(\.\d+)?", value) else value
    return inputs


def post(url: str, path: str, inputs: dict[str, Any]) -> dict[str, Any]:
    body = json.dumps({"input": inputs}).encode()
    request = urllib.request.Request(url + path, body, {"Content-Type": "application/json"})
    for _ in range(100):
        try:
            with urllib.request.urlopen(request) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            if error.code != 409:  # the slot of the prediction before is not free yet
                raise
            time.sleep(0.1)
    raise AssertionError(f"{url}{path} stays busy")


def test_predictions_over_http(checkout: Path, environment: dict[str, str]) -> None:
    requests = dict.fromkeys(command.text for command in COMMANDS if rule(command) == "request")
    predicts = dict.fromkeys(command.text for command in COMMANDS if re.match("cog predict -i", command.text))
    assert len(requests) >= 2 and predicts
    with serving(serve_command("predict"), checkout, environment) as url:
        for command in requests:
            fails = "" if " -sf" in command else " --fail-with-body"  # which excludes -f
            said = run(re.sub(r"(http://)?localhost:\d+", url, command) + fails, checkout, environment)
            if "/dev/null" in command:  # its exit status is all that it tells
                assert said == ""
            elif "event-stream" in command:
                assert "event: output" in said and "event: completed" in said
            else:
                answer = json.loads(said)
                assert answer["status"] == "succeeded" and len("".join(answer["output"]).split()) > 5
            wait_until_ready(url)
        for command in (command.text for command in COMMANDS if rule(command) == "client"):
            names: dict[str, Any] = {}
            exec(command, names)
            with names["httpx"].Client(base_url=url) as client:
                assert names["predict"](client, prompt="The river", max_tokens=8)["status"] == "succeeded"
            wait_until_ready(url)
        predict = partial(post, url, "/predictions")
        with replicate_api(lambda inputs: predict(inputs)["output"], "you/your-model") as api:
            account = {**environment, "REPLICATE_BASE_URL": api, "REPLICATE_API_TOKEN": "r8_test"}
            for command in dict.fromkeys(c.text for c in COMMANDS if rule(c) == "replicate"):
                said = run(f".venv/bin/python -c {shlex.quote(command)}", checkout, account)
                assert len(said.split()) > 5
        for command in predicts:
            assert post(url, "/predictions", cog_inputs(command, checkout))["status"] == "succeeded"


# ---- train ----


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout to train in."""
    return prepare(tmp_path_factory.mktemp("workshop"))


def shortened(command: str) -> str:
    """A training that ends after three steps."""
    shorter = re.sub(r'"$', ' --max-steps 3"', command)
    assert shorter != command
    return shorter


@pytest.mark.slow  # a training of the default size, with its preflight
@each("train")
def test_train_your_own_and_predict(command: str, workshop: Path, environment: dict[str, str]) -> None:
    run(shortened(command), workshop, environment)
    model, _ = checkpoint.load(workshop / "mine")
    assert model.config.d_model == 256 and model.config.n_layers == 6
    for after in {c.text for c in COMMANDS if rule(c) == "after training"}:
        assert run(after, workshop, environment).startswith("The history of the city")


@pytest.mark.slow  # a training of the default model, with its preflight
@each("fine-tune")
def test_fine_tune_the_default_model(command: str, workshop: Path, environment: dict[str, str]) -> None:
    run(shortened(command), workshop, environment)
    model, tokenizer = checkpoint.load(workshop / "tuned")
    before, tokenizer_before = checkpoint.load(workshop / "weights")
    assert model.config == before.config and tokenizer.backend.to_str() == tokenizer_before.backend.to_str()
    assert not torch.equal(model.head.weight, before.head.weight)


@pytest.mark.slow  # three epochs of the default model, with its preflight
def test_training_over_http(workshop: Path, environment: dict[str, str]) -> None:
    (command,) = {command.text for command in COMMANDS if re.match("cog train -i", command.text)}
    with serving(serve_command("train"), workshop, environment) as url:
        answer = post(url, "/trainings", cog_inputs(command, workshop))
    assert answer["status"] == "succeeded", answer.get("error")
    _, _, content = answer["output"]["weights"].partition("base64,")
    (archive := workshop / "trained.tar").write_bytes(base64.b64decode(content))
    said = run(f"make predict ARGS='--model {archive.name} --max-tokens 20'", workshop, environment)
    assert said.startswith("The history of the city")
