"""The package as pip sees it: its dependencies, and the files that it needs beside its modules."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from readme_commands import ROOT

from tools import requirements

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_the_requirements_files_are_those_of_pyproject() -> None:
    assert requirements.main(["--check"]) == 0


def test_cog_has_one_version() -> None:
    (cog,) = (Requirement(line) for line in PROJECT["project"]["optional-dependencies"]["serve"])
    (version,) = re.findall(r'sdk_version: "([^"]+)"', (ROOT / "cog.yaml").read_text("utf-8"))
    assert str(cog.specifier) == f"=={version}"


def test_an_installed_package_has_its_files_and_says_that_it_has_no_model(tmp_path: Path) -> None:
    """Built as pip builds it, and run from another folder than the checkout."""
    build = (
        "from setuptools import setup; import sys; "
        f"sys.argv = ['setup.py', '-q', 'build', '--build-base', {str(tmp_path / 'build')!r}, "
        f"'egg_info', '--egg-base', {str(tmp_path)!r}]; setup()"
    )
    subprocess.run([sys.executable, "-c", build], cwd=ROOT, check=True, capture_output=True)
    library = tmp_path / "build" / "lib"
    source = {
        path.relative_to(ROOT) for path in (ROOT / "transformer").rglob("*.*") if path.suffix not in (".pyc", ".png")
    }
    assert {path.relative_to(library) for path in library.rglob("*.*") if path.suffix != ".png"} >= source

    def transformer(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "transformer", *arguments]
        return subprocess.run(command, cwd=library, capture_output=True, text=True)

    without = transformer("predict")
    assert without.returncode == 2 and "no default model" in without.stderr
    text = transformer("predict", "--model", str(ROOT / "weights"), "--max-tokens", "3", "The river")
    assert text.stdout.startswith("The river"), text.stderr
    assert transformer("--version").stdout.split()[-1] == text_version()
    assert transformer("--help").stdout.startswith("usage: python -m transformer ")


@pytest.mark.parametrize(
    ("missing", "command"),
    [
        ("datasets", ["evaluate", "--data", "folder"]),
        ("pyarrow", ["evaluate", "--data", "rows.parquet", "--split", "train"]),
        ("accelerate", ["preflight", "--data", "text.txt"]),
        ("tyro", ["train", "--data", "text.txt"]),
    ],
)
def test_a_command_that_needs_an_extra_names_it(missing: str, command: list[str], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.txt").write_text("The river")
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    program = f"import sys; sys.modules[{missing!r}] = None; from transformer.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program, *command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"{missing}" in done.stderr and "decoder-only-transformer[train]" in done.stderr


def text_version() -> str:
    import transformer

    return transformer.__version__
