"""What all tests share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from blank_charts import draw_charts, leave_charts_blank
from hypothesis import settings
from long_files import LONG

from transformer.files import cache_folder
from transformer.inference.native import compiled_kernel, kernel
from transformer.inference.native.instruction_sets import VARIABLE, InstructionSet, missing, sets_of_machine
from transformer.reporting import card_samples
from transformer.training import flops

# Tests run beside each other and are small: threads would only wait for one another.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # or each process that compiles starts others
# The same examples every time, and no verdict about time: a test that fails must fail again.
settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.load_profile("deterministic")


FAST = 20  # with --fast, one in so many tests of the long files


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help=f"of the files that take long, one test in {FAST}")


@pytest.hookimpl(trylast=True)  # when those that -m and -k leave out are gone
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the longest files; for several workers it takes --no-loadscope-reorder."""
    place = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))
    if config.getoption("fast"):
        by_file = {name: [item for item in items if item.path.name == name] for name in LONG}
        left_out = {item for found in by_file.values() for item in set(found) - set(found[::FAST])}
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing that a test fetches or tokenises stays in the user's cache."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    base = tmp_path_factory.getbasetemp()
    kernels = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "kernels"
    kernels.mkdir(exist_ok=True)
    cache_folder().mkdir()
    (cache_folder() / "native").symlink_to(kernels)  # one worker compiles what the others load


@pytest.fixture(scope="session", autouse=True)
def short_trainings() -> Iterator[None]:
    """Short samples on model cards, small timed matrices, blank charts: each takes longer than the steps of a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(card_samples, "MAX_TOKENS", 8)
        patch.setattr(flops, "MATRIX_SIZE", 256)
        leave_charts_blank(patch)
        yield


@pytest.fixture
def drawn_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings and reports with their real charts."""
    draw_charts(monkeypatch)


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


@pytest.fixture(scope="session")
def quick_compiler(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A C compiler that takes a quarter of the time, for a kernel that computes little: it leaves out optimizations."""
    script = tmp_path_factory.mktemp("compiler") / "cc"
    script.write_text('#!/bin/sh\nexec gcc "$@" -O0\n')
    script.chmod(0o755)
    return str(script)


@pytest.fixture
def no_kernel(monkeypatch: pytest.MonkeyPatch, quick_compiler: str, tmp_path: Path) -> Iterator[Path]:
    """A machine where the kernel in C was not compiled yet; the folder of the user's cache, which is missing."""
    monkeypatch.setenv("CC", quick_compiler)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(compiled_kernel.FOLDER_VARIABLE, raising=False)
    monkeypatch.setattr(compiled_kernel, "AHEAD", tmp_path / "built")
    kernel.first_that_loads.cache_clear()
    yield tmp_path / "cache"
    kernel.first_that_loads.cache_clear()
