"""`metrics.jsonl`: a line of JSON for every step and every validation, continued when a run is resumed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from transformer.errors import WriteError
from transformer.files import atomic_write, reason

METRICS_FILE = "metrics.jsonl"


class MetricsFile:
    """The metrics file of a run.

    Args:
        directory: folder of the file.
        step: the run continues after this step; lines of later steps are removed.

    Raises:
        WriteError: if it cannot be written.
    """

    def __init__(self, directory: Path, step: int = 0) -> None:
        self._path = directory / METRICS_FILE
        with atomic_write(self._path) as path:
            kept = [line for line in self._lines() if line["step"] <= step] if step else []
            path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def write(self, numbers: dict[str, Any]) -> None:
        """Append a line.

        Raises:
            WriteError: if it cannot be written, as on a full disk.
        """
        line = json.dumps({name: _rounded(value) for name, value in numbers.items()})
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise WriteError(f"{self._path} cannot be written: {reason(error)}.") from error

    def _lines(self) -> list[dict[str, Any]]:
        lines = []
        for line in self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []:
            try:
                read = json.loads(line)
            except ValueError:  # an incomplete last line, of a process that was killed
                continue
            if isinstance(read, dict) and isinstance(read.get("step"), int):
                lines.append(read)
        return lines


def _rounded(value: Any) -> Any:
    return float(f"{value:.7g}") if isinstance(value, float) and math.isfinite(value) else value
