"""What all tests share."""

import os
from pathlib import Path

import pytest
import torch

# Tests run beside each other and are small: threads would only wait for one another.
torch.set_num_threads(1)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real texts and tokenizers beside a checkout; tests that need it are skipped without it."""
    folder = Path(os.environ.get("SHARED_DATA", Path(__file__).parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip("needs the shared data folder beside the checkout")
    return folder
