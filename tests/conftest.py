"""What all tests share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from transformer.inference.native import compiled_kernel, kernel
from transformer.inference.native.instruction_sets import VARIABLE, InstructionSet, missing, sets_of_machine
from transformer.reporting import card_samples
from transformer.training import flops

# Tests run beside each other and are small: threads would only wait for one another.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The same examples every time, and no verdict about time: a test that fails must fail again.
settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.load_profile("deterministic")


# The files that take longest, the longest first. By itself xdist begins with those that have most tests, and ends with
# one worker in a long file while the others wait.
LONGEST = (
    *("test_preflight.py", "test_readme.py", "test_training.py", "test_resume.py", "test_training_server.py"),
    *("test_distributed.py", "test_publish.py", "test_fuzz_training.py", "test_formats.py", "test_compile.py"),
    *("test_hub_server.py", "test_cog_server.py", "test_preflight_gallery.py", "test_original.py", "test_backends.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files; for several workers it takes --no-loadscope-reorder."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing that a test fetches or tokenises stays in the user's cache."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def short_trainings() -> Iterator[None]:
    """Short samples on model cards and small timed matrices: both take longer than the steps of a tiny training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(card_samples, "MAX_TOKENS", 8)
        patch.setattr(flops, "MATRIX_SIZE", 256)
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real texts and tokenizers beside a checkout; tests that need it are skipped without it."""
    folder = Path(os.environ.get("SHARED_DATA", Path(__file__).parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip("needs the shared data folder beside the checkout")
    return folder


@pytest.fixture(params=sets_of_machine(), ids=lambda instructions: instructions.name)
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> InstructionSet:
    """Each set of instructions that the kernel in C is compiled for, in use during a test."""
    if lacking := missing(request.param):
        pytest.skip(f"this processor lacks {', '.join(sorted(lacking))}")
    monkeypatch.setenv(VARIABLE, request.param.name)
    return request.param


@pytest.fixture
def no_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A machine where the kernel in C was not compiled yet; the folder of the user's cache, which is missing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(compiled_kernel.FOLDER_VARIABLE, raising=False)
    monkeypatch.setattr(compiled_kernel, "AHEAD", tmp_path / "built")
    kernel.first_that_loads.cache_clear()
    yield tmp_path / "cache"
    kernel.first_that_loads.cache_clear()
