"""What Cog's server leaves in the temporary folder for each prediction is removed, and nothing else."""

import os
import time
from pathlib import Path

from transformer.cog_folders import remove_empty


def prediction(folder: Path, name: str, seconds: float, file: str | None = None) -> Path:
    """A folder as the server makes it, last changed this many seconds ago."""
    made = folder / name
    for part in ("inputs", "outputs"):
        (made / part).mkdir(parents=True)
    if file:
        (made / file).write_text("kept")
    os.utime(made, (time.time() - seconds,) * 2)
    return made


def test_only_old_and_empty_folders_are_removed(tmp_path: Path) -> None:
    predictions = tmp_path / "predictions"
    prediction(predictions, "old", 100)
    prediction(predictions, "new", 1)
    kept = prediction(predictions, "with a file", 100, "outputs/weights.tar")
    (tmp_path / "elsewhere").mkdir()
    (predictions / "link").symlink_to(tmp_path / "elsewhere")
    assert remove_empty(predictions, age=50) == 1
    assert {path.name for path in predictions.iterdir()} == {"new", "with a file", "link"}
    assert (kept / "outputs" / "weights.tar").read_text() == "kept" and (tmp_path / "elsewhere").exists()
    assert remove_empty(tmp_path / "none") == 0
