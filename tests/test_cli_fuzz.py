"""Random command lines end in success or one sentence: `python -m tools.fuzz_cli` for many of them."""

import random
from pathlib import Path

import pytest

from tools.fuzz_cli import case, prepare, run

CASES = 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    prepare(folder)
    return folder


def test_no_command_line_ends_with_a_traceback(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ended = set()
    for number in range(CASES):
        one = case(random.Random(f"test-{number}"), folder)
        outcome = run(one)
        ended.add((one.arguments[0], outcome.status))
        assert outcome.fault is None, f"{outcome.fault}: {one}\n{outcome.error}"
    assert ended >= {(command, status) for command in ("predict", "chat", "evaluate", "show") for status in (0, 1, 2)}
