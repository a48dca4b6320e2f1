"""The package as pip sees it: its dependencies, and the files that it needs beside its modules."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

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


def text_version() -> str:
    import transformer

    return transformer.__version__
