"""`train.py` in a process forked from one that has imported the libraries: importing takes longer than the training."""

import multiprocessing
import os
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["train", "transformer.training.run", "torch._dynamo"])


def start_training(
    arguments: Sequence[str], errors: str | Path = os.devnull, environment: dict[str, str] | None = None
) -> BaseProcess:
    """The running process.

    Args:
        arguments: those of the command line.
        errors: file for what the process writes on standard error.
        environment: further variables.
    """
    process = _CONTEXT.Process(target=_train, args=(list(arguments), str(errors), environment or {}), daemon=True)
    process.start()
    return process


def _train(arguments: list[str], errors: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    with open(errors, "wb") as file:
        os.dup2(file.fileno(), 2)
    import pytest
    import torch
    from blank_charts import leave_charts_blank

    import train

    torch.set_num_threads(1)
    leave_charts_blank(pytest.MonkeyPatch())
    status = train.main(arguments)
    if "RANK" in environment:  # as at the end of train.py
        os._exit(status)
    raise SystemExit(status)
