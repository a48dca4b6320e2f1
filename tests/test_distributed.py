"""Two processes on gloo compute what one does, and each takes over the other's checkpoint."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import start_training
from models import SENTENCES

import train as entry
from transformer.hub import checkpoint
from transformer.training import run_state

ROOT = Path(__file__).parents[1]
SMALL = [
    *("--vocab-size=300", "--context-length=16", "--d-model=32", "--n-layers=2", "--dropout=0", "--precision=fp32"),
    *(
        "--batch-size=5",
        "--gradient-accumulation-steps=2",
        "--validate-every=3",
        "--optimizer=muon",
        "--schedule=wsd",
        "--seed=1",
    ),
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text with prompts, so that rows, and processes, have unequal numbers of targets."""
    path = tmp_path_factory.mktemp("text") / "corpus.jsonl"
    rows = [{"prompt": text[: 11 * i], "completion": text[11 * i :]} for text in SENTENCES for i in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows * 2))
    return path


def run(
    corpus: Path, output: Path, steps: int, processes: int = 1, *options: str, torchrun: bool = False
) -> list[dict]:
    """Train with the real command, one process within this one; the numbers it recorded.

    torchrun: start the processes as users do, which imports PyTorch in three processes.
    """
    arguments = ["--data", str(corpus), "--output", str(output), "--device=cpu", *SMALL, *options]
    arguments.append(f"--max-steps={steps}")
    if processes == 1:
        assert entry.main(arguments) == 0
    elif not torchrun:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        errors = [output.parent / f"{output.name}-errors-{rank}" for rank in range(processes)]
        ranks = [
            start_training(arguments, errors[rank], {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(processes)
        ]
        for rank, process in enumerate(ranks):
            process.join(200)
            assert process.exitcode == 0, errors[rank].read_text()[-3000:]
    else:
        launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
        command = [sys.executable, *launcher, "train.py", *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def assert_close(left: list[dict], right: list[dict]) -> None:
    assert [line["step"] for line in left] == [line["step"] for line in right]
    for one, other in zip(left, right, strict=True):
        for key in one.keys() & {"loss", "gradient_norm", "validation_loss", "bits_per_byte", "tokens"}:
            assert one[key] == pytest.approx(other[key], rel=2e-3), (key, one, other)


@pytest.fixture(scope="module")
def alone(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    """A run of one process."""
    out = tmp_path_factory.mktemp("alone")
    return out, run(corpus, out, 6)


@pytest.mark.parametrize(
    ("parallel", "torchrun"),
    [("ddp", False), ("fsdp", False), pytest.param("ddp", True, marks=pytest.mark.slow)],
)
def test_two_processes_train_as_one(
    parallel: str, torchrun: bool, corpus: Path, alone: tuple[Path, list[dict]], tmp_path: Path
) -> None:
    one_out, one = alone
    two = run(corpus, tmp_path, 6, 2, f"--parallel={parallel}", torchrun=torchrun)
    assert_close(one, two)
    weights, expected = (checkpoint.load_model(folder).state_dict() for folder in (tmp_path, one_out))
    for name in expected:
        torch.testing.assert_close(weights[name], expected[name], atol=2e-3, rtol=2e-2)


@pytest.fixture(scope="module")
def alone_in_two_parts(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The numbers of a run of one process that is stopped after three steps and goes on to six."""
    out = tmp_path_factory.mktemp("parts")
    run(corpus, out, 3)
    return run(corpus, out, 6)


@pytest.mark.parametrize(("first", "second"), [((1,), (2, "--parallel=fsdp")), ((2, "--parallel=fsdp"), (1,))])
def test_a_checkpoint_goes_on_with_another_number_of_processes(
    first: tuple, second: tuple, corpus: Path, alone_in_two_parts: list[dict], tmp_path: Path
) -> None:
    run(corpus, tmp_path, 3, *first)
    assert run_state.load(tmp_path / "checkpoints").facts["progress"]["step"] == 3
    numbers = run(corpus, tmp_path, 6, *second)
    # The schedule fits the budget, so the first three steps of a run of three are compared with a run like it.
    assert_close(numbers, alone_in_two_parts)
