"""Publishing and fetching through the real client, against the small Hub of the tests and its moods."""

import inspect
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import cog
import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
import torch
import transformers
from hub_server import Account, Hub
from models import SENTENCES, tiny_model_directory

import train as entry
from transformer import cli
from transformer.errors import CheckpointError, PublishError
from transformer.hub import retry
from transformer.hub.checkpoint import load
from transformer.hub.publish import create_repository, push
from transformer.hub.resolve import MODEL_FILES, fetch

ROOT = Path(__file__).parents[1]
PUBLISHED = {"README.md", "config.json", "generation_config.json", "model.safetensors"}
PUBLISHED |= {"tokenizer.json", "tokenizer_config.json"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that the client of this process knows, and is logged in to."""
    with Hub() as hub:
        hub.serve_this_process(monkeypatch, tmp_path / "hub-cache")
        monkeypatch.setattr(retry, "WAITS", [0.0, 0.0])
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield hub


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tiny_model_directory(tmp_path / "model")
    (directory / "README.md").write_text("---\nlicense: mit\n---\nA model\n")
    (directory / "metrics.jsonl").write_text("{}\n")  # of the training: not for the world
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_one_private_commit_with_the_model_and_nothing_else(hub: Hub, model: Path) -> None:
    before = contents(model)
    url = push(model, "user/lm")
    repo = hub.repos["user/lm"]
    assert url.endswith(repo.at().sha) and repo.private
    published = repo.files()
    assert published.keys() - {".gitattributes"} == PUBLISHED
    assert all(before[name] == published[name] for name in PUBLISHED)
    assert len(repo.commits) == 2, "the Hub's own first commit, and ours"
    assert contents(model) == before


def test_public_where_asked(hub: Hub, model: Path) -> None:
    push(model, "user/lm", public=True)
    assert not hub.repos["user/lm"].private


def test_what_did_not_change_makes_no_commit(hub: Hub, model: Path) -> None:
    push(model, "user/lm")
    push(model, "user/lm")
    assert len(hub.repos["user/lm"].commits) == 2


def test_weights_of_an_earlier_model_are_removed_in_the_same_commit(hub: Hub, model: Path) -> None:
    old = {"model-00001-of-00001.safetensors": b"old", "model.safetensors.index.json": b"{}", "notes.txt": b"kept"}
    hub.add("models", "user/lm", old)
    push(model, "user/lm")
    assert hub.repos["user/lm"].files().keys() - {".gitattributes"} == PUBLISHED | {"notes.txt"}


@pytest.mark.parametrize(
    ("match", "kind"),
    [
        ("POST /api/repos/create", 500),
        ("POST /api/repos/create", 429),
        ("/preupload/", 500),
        ("/preupload/", "cut"),
        ("info/lfs", 500),
        ("/commit/", 429),
        ("/commit/", 500),
        ("/commit/", "cut"),
    ],
)
def test_a_trouble_that_passes_is_waited_for(hub: Hub, model: Path, match: str, kind: int | str) -> None:
    hub.fault(match, kind, retry_after=0 if kind == 429 else None)
    push(model, "user/lm")
    files = hub.repos["user/lm"].files()
    assert files["model.safetensors"] == (model / "model.safetensors").read_bytes()
    assert len(hub.repos["user/lm"].commits) == 2


@pytest.mark.parametrize(("match", "kind"), [("/commit/", 500), ("/commit/", 403), ("info/lfs", 403)])
def test_a_trouble_that_stays_is_one_sentence_and_the_model_is_kept(
    hub: Hub, model: Path, match: str, kind: int
) -> None:
    before = contents(model)
    hub.fault(match, kind, times=100)
    with pytest.raises(PublishError, match=rf"push {model} user/lm` goes on, but") as refusal:
        push(model, "user/lm")
    assert "\n" not in str(refusal.value) and "hf_test" not in str(refusal.value)
    assert contents(model) == before
    assert "model.safetensors" not in hub.repos["user/lm"].files(), "half a model was published"


def test_a_push_that_failed_goes_on(hub: Hub, model: Path) -> None:
    hub.fault("/commit/", 403)
    with pytest.raises(PublishError):
        push(model, "user/lm")
    uploads = [request for request in hub.requests if request.method == "PUT"]
    push(model, "user/lm")
    assert uploads and [request for request in hub.requests if request.method == "PUT"] == uploads


@pytest.mark.parametrize(
    ("token", "repository", "sentence"),
    [
        ("hf_wrong", "user/lm", "hf auth login"),
        ("hf_read", "user/lm", "hf auth login"),
        ("hf_test", "other/lm", "hf auth login"),
        ("hf_test", "user/not a name", "cannot be written to"),
    ],
)
def test_who_may_not_write_hears_it_at_once(hub: Hub, token: str, repository: str, sentence: str) -> None:
    hub.tokens["hf_read"] = Account("user", "read")
    with pytest.raises(PublishError, match=sentence) as refusal:
        create_repository(repository, token=token)
    assert token not in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_directory_that_is_no_model_is_not_published(hub: Hub, model: Path) -> None:
    (model / "README.md").unlink()
    with pytest.raises(CheckpointError, match="card"):
        push(model, "user/lm")
    (model / "model.safetensors").unlink()
    with pytest.raises(CheckpointError):
        push(model, "user/lm")
    assert not hub.repos and not hub.requests


def test_what_was_pushed_is_fetched(hub: Hub, model: Path) -> None:
    push(model, "user/lm")
    first = hub.repos["user/lm"].at().sha
    hub.repos["user/lm"].commit({"model.safetensors": b"another", "pytorch_model.bin": b"a pickle", "run.py": b"code"})
    folder = fetch(f"user/lm@{first}")
    ours, theirs = load(model)[0].state_dict(), load(folder)[0].state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert {path.name for path in fetch("user/lm").iterdir()} == PUBLISHED, "only what a model needs"


@pytest.mark.parametrize("kind", ["corrupt", "cut", 500, 429])
def test_a_download_is_verified_and_tried_again(hub: Hub, model: Path, kind: int | str) -> None:
    push(model, "user/lm")
    hub.fault("resolve/.*model.safetensors", kind, retry_after=0 if kind == 429 else None)
    assert (fetch("user/lm") / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


def test_a_download_that_stays_damaged_is_refused_and_not_kept(hub: Hub, model: Path) -> None:
    push(model, "user/lm")
    hub.fault("resolve/.*model.safetensors", "corrupt", times=3)
    with pytest.raises(CheckpointError, match=r"model\.safetensors has not the checksum"):
        fetch("user/lm")
    assert (fetch("user/lm") / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


def test_a_large_download_goes_on_where_it_broke_off(hub: Hub, model: Path) -> None:
    """The client writes what it has in pieces of 10 MB, so that the file must be larger for something to be kept."""
    weights = (model / "model.safetensors").read_bytes()
    hub.add("models", "user/lm", {"config.json": b"{}", "model.safetensors": weights + bytes(12 * 2**20)})
    hub.fault("^GET /cdn/.*model.safetensors", "cut", after=11_000_000)
    assert (fetch("user/lm") / "model.safetensors").read_bytes() == weights + bytes(12 * 2**20)
    asked = [request for request in hub.requests if request.method == "GET" and "/cdn/" in request.path]
    assert [request.headers.get("range") for request in asked] == [None, f"bytes={10 * 2**20}-"]


def test_a_hub_that_stalls_is_asked_again(hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push(model, "user/lm")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_ETAG_TIMEOUT", 1)
    stall = hub.fault("GET .*resolve/.*model.safetensors", "stall", seconds=60)
    assert load(fetch("user/lm")) and stall.hits == 1


@pytest.mark.parametrize(("status", "word"), [(401, "hf auth login"), (403, "hf auth login"), (404, "404")])
def test_a_hub_that_says_no_is_one_sentence(hub: Hub, model: Path, status: int, word: str) -> None:
    push(model, "user/lm")
    hub.fault("(GET|HEAD) .*", status, times=None)
    with pytest.raises(CheckpointError, match=word) as refusal:
        fetch("user/lm")
    assert "\n" not in str(refusal.value) and "hf_test" not in str(refusal.value)
    assert not list(Path(huggingface_hub.constants.HF_HUB_CACHE).rglob("*.safetensors"))


def test_weights_in_several_files_are_published_and_come_back(hub: Hub, tmp_path: Path) -> None:
    directory = tiny_model_directory(tmp_path / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory)
    (directory / "model.safetensors").unlink()
    theirs.save_pretrained(directory, max_shard_size="40KB")
    (directory / "README.md").write_text("A model\n")
    shards = {path.name for path in directory.glob("model-*.safetensors")}
    push(directory, "user/lm")
    published = hub.repos["user/lm"].files().keys()
    assert len(shards) > 1 and shards | {"model.safetensors.index.json"} <= published
    theirs, ours = (load(path)[0].state_dict() for path in (directory, fetch("user/lm")))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_chat_template_is_published_and_comes_back(hub: Hub, model: Path) -> None:
    (model / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    push(model, "user/lm")
    assert load(fetch("user/lm"))[1].chat_template == "{{ messages[0].content }}!"


@pytest.mark.parametrize(
    ("source", "sentence"), [("user/none", "user/none cannot"), ("user/lm@v9", "user/lm@v9 cannot")]
)
def test_what_is_not_there_is_one_sentence(hub: Hub, model: Path, source: str, sentence: str) -> None:
    push(model, "user/lm")
    with pytest.raises(CheckpointError, match=sentence) as refusal:
        fetch(source)
    assert "\n" not in str(refusal.value)


def test_without_a_network(hub: Hub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push(model, "user/lm")
    online = fetch("user/lm")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    before = len(hub.requests)
    assert fetch("user/lm") == online and load(online)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "another"))
    with pytest.raises(CheckpointError, match=r"user/lm cannot be fetched.*not in the Hub's cache"):
        fetch("user/lm")
    assert len(hub.requests) == before


def in_a_shell(hub: Hub, home: Path, *command: str, token: str | bool = True) -> subprocess.CompletedProcess[str]:
    home.mkdir(exist_ok=True)
    environment = hub.environment(home, token=token, PYTHONPATH=str(ROOT))
    return subprocess.run(
        [sys.executable, *command], env=environment, cwd=home, capture_output=True, text=True, timeout=600
    )


def test_pushed_repositories_open_in_transformers_by_name(
    hub: Hub, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model of the tests with the text that it continues, and the embedded one with its logits."""
    assert cli.main(["push", str(model), "user/lm"]) == 0
    assert capsys.readouterr().out.strip().endswith(hub.repos["user/lm"].at().sha)
    push(ROOT / "weights", "user/embedded")
    code = """
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = AutoModelForCausalLM.from_pretrained("user/lm"), AutoTokenizer.from_pretrained("user/lm")
ids = tokenizer("The river", return_tensors="pt").input_ids
print(model.generate(ids, do_sample=False, repetition_penalty=1.0, max_new_tokens=16)[0, ids.shape[1]:].tolist())
model, tokenizer = (which.from_pretrained("user/embedded") for which in (AutoModelForCausalLM, AutoTokenizer))
with torch.no_grad():
    print(model(tokenizer("The history of the city", return_tensors="pt").input_ids).logits[0, -1, :50].tolist())
"""
    theirs = in_a_shell(hub, tmp_path / "other", "-c", code)
    assert theirs.returncode == 0, theirs.stderr
    written, scores = map(json.loads, theirs.stdout.splitlines()[-2:])
    ours, tokenizer = load(model)
    ids = tokenizer.encode_prompt("The river")
    n = len(ids)
    with torch.no_grad():
        for _ in range(16):
            ids.append(int(ours(torch.tensor([ids]))[0, -1].argmax()))
        assert written == ids[n:]
        embedded, tokenizer = load(ROOT / "weights")
        logits = embedded(torch.tensor([tokenizer.encode_prompt("The history of the city")]))[0, -1, :50]
    torch.testing.assert_close(torch.tensor(scores), logits, atol=1e-4, rtol=0)


def test_a_training_does_not_begin_where_its_model_cannot_be_published(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("\n".join(SENTENCES))
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    arguments = f"--data {tmp_path / 'text.txt'} --output {tmp_path / 'run'} --push-to user/lm --max-steps 2".split()
    assert entry.main(arguments) == 1 and "user/lm cannot be written to" in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("*.safetensors")), "it was trained before it was known to be in vain"


def test_a_training_reads_a_data_set_publishes_its_model_and_writes_the_token_nowhere(hub: Hub, tmp_path: Path) -> None:
    name = add_wikitext(hub)
    sizes = "--vocab-size 300 --context-length 16 --d-model 16 --n-layers 1 --n-heads 2 --batch-size 2 --max-steps 2"
    data = f"--dataset Salesforce/wikitext --dataset-config {name}"
    training = f"{data} --output {tmp_path / 'run'} {sizes} --push-to user/lm".split()
    scoring = f"evaluate --model {tmp_path / 'run'} {data} --json".split()
    code = f"import sys, train, transformer.cli; sys.exit(train.main({training}) or transformer.cli.main({scoring}))"
    done = in_a_shell(hub, tmp_path / "home", "-c", code)  # both in one process: the libraries are imported once
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout[done.stdout.index("{") :])["documents"] == 1
    published = hub.repos["user/lm"].files()
    assert published.keys() - {".gitattributes"} == PUBLISHED | {"loss.svg"}
    card = published["README.md"].decode()
    assert f"--data Salesforce/wikitext --data-config {name}" in card
    assert "![Loss in nats per token, by step](loss.svg)" in card
    drawn = {
        group.get("id") for group in ElementTree.fromstring(published["loss.svg"]).iter() if group.tag.endswith("}g")
    }
    assert {"loss-training", "loss-validation"} <= drawn
    results = huggingface_hub.ModelCard(card).data.eval_results
    assert {result.metric_type for result in results} == {"perplexity", "word_perplexity", "bits_per_byte"}
    assert all(result.metric_value > 1 and result.dataset_args["context"] == 16 for result in results)
    assert "hf_test" not in done.stdout + done.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file() and b"hf_test" in path.read_bytes()]
    assert not written and not any(b"hf_test" in content for content in published.values())


def add_wikitext(hub: Hub) -> str:
    """A data set like WikiText, of one article; the name of its configuration."""

    def parquet(lines: list[str]) -> bytes:
        pyarrow.parquet.write_table(pyarrow.table({"text": lines}), buffer := io.BytesIO())
        return buffer.getvalue()

    name, lines = "wikitext-2-raw-v1", ["", " = Title = \n", *(f" {sentence} \n" for sentence in SENTENCES * 20)]
    splits = ("train", "validation", "test")
    card = f"- config_name: {name}\n  data_files:\n"
    card += "".join(f"  - split: {split}\n    path: {name}/{split}-*\n" for split in splits)
    files = {f"{name}/{split}-00000-of-00001.parquet": parquet(lines) for split in splits}
    files["README.md"] = f"---\nconfigs:\n{card}---\n".encode()
    hub.add("datasets", "Salesforce/wikitext", files)
    return name


def test_a_training_in_cog_publishes_with_the_secret(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("\n".join(SENTENCES * 40))
    monkeypatch.delenv("HF_TOKEN")
    hub.tokens["hf_secret"] = Account("user", "write")
    given = {name: input.default.default for name, input in inspect.signature(entry.train).parameters.items()}
    given |= dict(from_scratch=True, max_steps=2, context_length=32, d_model=32, n_layers=1, n_heads=2, vocab_size=300)
    given |= dict(train_data=tmp_path / "text.txt", hub_model_id="user/lm", hub_token=cog.Secret("hf_secret"))
    archive = Path(entry.train(**given).weights)
    assert hub.repos["user/lm"].private and hub.repos["user/lm"].files().keys() >= PUBLISHED
    assert "hf_secret" not in "".join(capfd.readouterr())
    assert b"hf_secret" not in archive.read_bytes()
    with tarfile.open(archive) as tar:
        assert set(tar.getnames()) <= PUBLISHED | set(MODEL_FILES)
    archive.unlink()
