"""The output folder of a run: one run at a time in it, and whatever cannot be written there is one sentence."""

import json
import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from models import SENTENCES

import train as entry
from transformer.errors import ConfigError, TransformerError, WriteError
from transformer.files import atomic_write
from transformer.hub import checkpoint
from transformer.training import run_state
from transformer.training.interrupt import Interrupt, Interrupted
from transformer.training.lock import only_run_in
from transformer.training.run import train
from transformer.training.step import StepMetrics, TrainStep
from transformer.training.train_config import TrainConfig

ROOT = Path(__file__).parents[1]
SMALL = dict(
    vocab_size=300, context_length=16, d_model=16, n_layers=1, n_heads=1, batch_size=4, precision="fp32", max_steps=4
)


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": sentence}) + "\n" for sentence in SENTENCES * 5))
    return str(path)


def options(corpus: str, output: Path, **changed: object) -> list[str]:
    values = {"data": corpus, "output": output, **SMALL, **changed}
    return ["--preflight=off", *(f"--{name.replace('_', '-')}={value}" for name, value in values.items())]


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


# ---- one run at a time ----


def test_a_second_run_leaves_with_a_sentence_and_touches_nothing(
    corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    train(TrainConfig.from_options(corpus, str(out), preflight="off", **SMALL))
    (out / ".model.safetensors.77.partial").write_bytes(b"what the first run is writing")
    (out / "checkpoints" / ".step-00000005.partial").write_bytes(b"too")
    with only_run_in(out):
        before = contents(out)
        for changed in ({}, {"max_steps": 8}, {"restart": True}):
            with pytest.raises(ConfigError, match=f"another run is training in {out}: wait"):
                train(TrainConfig.from_options(corpus, str(out), preflight="off", **{**SMALL, **changed}))
        command = [sys.executable, "train.py", *options(corpus, out)]
        other = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)  # another process
        assert other.returncode == 1 and other.stdout == "" and other.stderr.count("\n") == 1, other.stderr
        assert other.stderr.startswith("train.py: another run is training")
        assert contents(out) == before
    assert entry.main(options(corpus, out, max_steps=8)) == 0  # the first has ended
    assert not list(out.rglob("*.partial"))


def test_the_lock_of_a_process_that_was_killed_locks_nothing(corpus: str, tmp_path: Path) -> None:
    code = "from transformer.training.lock import only_run_in\n"
    code += f"with only_run_in({str(tmp_path)!r}):\n    print(1, flush=True)\n    input()"
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline()
    with pytest.raises(ConfigError, match="another run"), only_run_in(tmp_path):
        pass
    holder.kill()
    holder.wait()
    with only_run_in(tmp_path):
        pass


def test_of_several_processes_the_first_one_holds_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with only_run_in(tmp_path):
        monkeypatch.setenv("RANK", "1")
        with only_run_in(tmp_path):
            pass


# ---- what cannot be written ----


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Within it no file may become larger: as good as a full disk, at each write in turn."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


@pytest.mark.parametrize("size", [100, 700, 3_000, 12_000, 20_000, 40_000])
def test_a_full_disk_is_a_sentence_wherever_it_is_noticed(size: int, corpus: str, tmp_path: Path) -> None:
    train(
        TrainConfig.from_options(corpus, str(tmp_path / "first"), preflight="off", **SMALL)
    )  # its tokens are in the cache now
    config = TrainConfig.from_options(corpus, str(tmp_path / "out"), preflight="off", **SMALL)
    with files_of_at_most(size), pytest.raises(TransformerError, match=r"cannot be written.*[Ff]ile too large"):
        train(config)
    assert not list((tmp_path / "out").rglob("*.partial"))
    assert train(config).step == 4  # and when there is room again


NAMES = [
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"),
    *("metrics.jsonl", "report.html", "training.json", "loss.svg", "README.md", "checkpoints/tokenizer.json", ".lock"),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_where_a_file_should_be_is_a_sentence(name: str, corpus: str, tmp_path: Path) -> None:
    (tmp_path / "out" / name / "x").mkdir(parents=True)
    with pytest.raises(TransformerError, match=r"cannot be written|is not a tokenizer"):
        train(TrainConfig.from_options(corpus, str(tmp_path / "out"), preflight="off", **SMALL))
    assert (tmp_path / "out" / name / "x").is_dir()


def test_an_output_that_is_no_folder_is_a_sentence(corpus: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path / "file" / "out", Path("/proc/out")):
        with pytest.raises(WriteError, match="cannot be written to"):
            train(TrainConfig.from_options(corpus, str(output), preflight="off", **SMALL))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_named_like_a_checkpoint_is_none(corpus: str, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "checkpoints" / f"step-00000009-{'0' * 16}.safetensors"
    folder.mkdir(parents=True)
    for steps in (2, 4):
        assert (
            train(
                TrainConfig.from_options(
                    corpus, str(tmp_path / "out"), preflight="off", **{**SMALL, "max_steps": steps}
                )
            ).step
            == steps
        )
    assert (
        train(TrainConfig.from_options(corpus, str(tmp_path / "out"), preflight="off", restart=True, **SMALL)).step == 4
    )
    assert folder.is_dir()


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), Exception("No space left on device (os error 28)")]
)
def test_a_write_that_fails_leaves_what_was_there(error: Exception, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("before")
    with (
        pytest.raises(WriteError, match=r"a cannot be written: No space left"),
        atomic_write(tmp_path / "a") as partial,
    ):
        partial.write_text("half")
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "before"


def test_lines_of_metrics_that_are_no_metrics_are_passed_over(corpus: str, tmp_path: Path) -> None:
    config = TrainConfig.from_options(corpus, str(tmp_path), preflight="off", **{**SMALL, "max_steps": 2})
    train(config)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('[1]\n{"loss": 3}\n7\n{"step": ')
    assert train(TrainConfig.from_options(corpus, str(tmp_path), preflight="off", **SMALL)).step == 4
    assert all("step" in json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())


# ---- how a run ends ----


def test_a_run_that_has_ended_says_so(corpus: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = TrainConfig.from_options(corpus, str(tmp_path), preflight="off", **SMALL)
    caplog.set_level(logging.INFO, "transformer")
    train(config)
    assert "has ended already" not in caplog.text
    assert train(config).step == 4
    assert f"the run in {tmp_path} has ended already, after step 4" in caplog.text and "--max-steps" in caplog.text


@pytest.fixture
def default_hangup():
    """SIGHUP has its default action, also where the tests themselves run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("default_hangup")
def test_a_closed_terminal_is_sigterm_unless_it_is_ignored(corpus: str, tmp_path: Path, monkeypatch) -> None:
    make = TrainStep.run

    def step(self: TrainStep, number: int) -> StepMetrics:
        os.kill(os.getpid(), signal.SIGHUP)
        return make(self, number)

    monkeypatch.setattr(TrainStep, "run", step)
    config = TrainConfig.from_options(corpus, str(tmp_path), preflight="off", **SMALL)
    with pytest.raises(Interrupted, match="stopped after step 1") as stopped:
        train(config)
    assert stopped.value.signal == signal.SIGHUP
    assert run_state.load(tmp_path / "checkpoints").facts["progress"]["step"] == 1
    assert checkpoint.load_model(tmp_path).config.n_layers == 1  # there is a model, though none was validated
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup has it
    try:
        assert train(config).step == 4
    finally:
        signal.signal(signal.SIGHUP, before)
    with Interrupt():
        assert signal.getsignal(signal.SIGHUP) != before
    assert signal.getsignal(signal.SIGHUP) == before
