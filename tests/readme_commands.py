"""The commands in the code blocks of README.md and docs/*.md, and a copy of the checkout to run them in."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
_SHELL = ("", "sh", "bash", "shell", "console")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COPIED = ("*.py", "*.toml", "*.txt", "*.md", "*.yaml", "Makefile", "LICENSE")
_FOLDERS = ("transformer", "tools", "weights", "benchmarks", "docs", "experiments")


@dataclass(frozen=True)
class Command:
    """A command as a document has it, or a whole block in a language other than the shell's."""

    text: str
    document: str
    language: str = ""

    def __str__(self) -> str:
        return f"{self.document}: {self.text}"


def commands() -> list[Command]:
    """All of them, in the order of the documents."""
    pages = (path for path in sorted((ROOT / "docs").rglob("*.md")) if "upstream" not in path.parts)  # bugs of others
    documents = [ROOT / "README.md", *pages]
    return [command for path in documents for command in commands_of(path.read_text("utf-8"), path.name)]


def commands_of(text: str, document: str) -> Iterator[Command]:
    """The commands of a document. In a block with lines that begin with "$ " the others are output."""
    for language, block in _FENCE.findall(text):
        if language not in _SHELL:
            yield Command(block.strip(), document, language)
            continue
        lines = re.sub(r"\\\n\s*", "", block).splitlines()
        if any(line.startswith("$ ") for line in lines):
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        for line in lines:
            if line.strip() and not line.startswith("#"):
                yield Command(re.sub(r"\s+# .*$", "", line).strip(), document)


def copy_checkout(folder: Path) -> Path:
    """A copy of the checkout, with the virtual environment that runs the tests; make finds nothing to install there."""
    for pattern in _COPIED:
        for file in ROOT.glob(pattern):
            shutil.copy2(file, folder / file.name)
    for name in _FOLDERS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "output", "cache"))
    (environment := folder / ".venv").mkdir()
    for entry in Path(sys.prefix).iterdir():
        if entry.suffix != ".stamp":
            (environment / entry.name).symlink_to(entry)
    for requirements in folder.glob("requirements*.txt"):
        os.utime(requirements, (0, 0))
    for stamp in ("run.stamp", "dev.stamp"):
        (environment / stamp).touch()
    return folder


def run(command: str, folder: Path, environment: Mapping[str, str], typed: str = "") -> str:
    """What a command prints on standard output, run by a shell in `folder` as a person would.

    The virtual environment is not activated, and nothing is on the PATH but the system's programs.

    Raises:
        AssertionError: with all that it printed, if it fails.
    """
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={**environment, "PATH": "/usr/local/bin:/usr/bin:/bin"},
        input=typed,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, f"{command}\nstatus {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert "Traceback" not in done.stderr, done.stderr[-4000:]
    return done.stdout
