"""`python -m tools.requirements`: write the requirements files from pyproject.toml.

pyproject.toml has the direct dependencies and the ranges that are accepted. The requirements files pin the versions
that the tests run with: those that are installed. `--check` changes nothing and exits with 1 if a file is out of date;
a pin is up to date if pyproject.toml accepts it, so that the result does not depend on what is installed.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
_NOTE = "# Written by `python -m tools.requirements` from pyproject.toml, which says what each of these is for.\n"
# For each file: its first lines, the extras it holds, and whether it holds the dependencies of the library.
FILES = {
    "requirements.txt": (
        "# What the container needs to predict and to train. Cog installs its own SDK: see sdk_version in cog.yaml.\n",
        ("train",),
        True,
    ),
    "requirements-dev.txt": (
        "# What tests, lint, docs and the local server need besides.\n",
        ("serve", "dev"),
        False,
    ),
    "benchmarks/requirements.txt": (
        "# What the project is measured against. llama-cpp-python is built from source: it needs gcc and cmake.\n",
        ("bench",),
        False,
    ),
}


def requirements(extras: tuple[str, ...], library: bool) -> list[Requirement]:
    """The direct dependencies of these extras, as in pyproject.toml; references to the project itself are left out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"]] if library else []
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    found = (Requirement(line) for line in lines)
    return [requirement for requirement in found if requirement.name != project["name"]]


def pins(text: str) -> dict[str, str]:
    """The versions in a requirements file, by name."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE))


def render(name: str, versions: dict[str, str]) -> str:
    """The content of a requirements file, with the version of each dependency.

    Raises:
        LookupError: if a dependency has no version that pyproject.toml accepts.
    """
    header, extras, library = FILES[name]
    lines = [header, _NOTE]
    if name == "requirements-dev.txt":
        lines.append("-r requirements.txt\n")
    for requirement in requirements(extras, library):
        version = versions.get(requirement.name)
        if version is None or not requirement.specifier.contains(version):
            raise LookupError(f"{requirement}: the version is {version}. Install one that is accepted.")
        lines.append(f"{requirement.name}=={version}\n")
    return "".join(lines)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name).partition("+")[0]  # 2.13.0+cpu is a build of 2.13.0
    except metadata.PackageNotFoundError:
        return None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a file is out of date")
    options = parser.parse_args(arguments)
    status = 0
    for name, (_, extras, library) in FILES.items():
        path = ROOT / name
        before = path.read_text(encoding="utf-8")
        versions = pins(before)
        if not options.check:
            installed = {one.name: _installed(one.name) for one in requirements(extras, library)}
            versions |= {one: version for one, version in installed.items() if version}
        try:
            after = render(name, versions)
        except LookupError as error:
            print(f"{name}: {error}", file=sys.stderr)
            status = 1
            continue
        if before != after and options.check:
            print(f"{name} is out of date: run `python -m tools.requirements`.", file=sys.stderr)
            status = 1
        elif before != after:
            path.write_text(after, encoding="utf-8")
            print(f"{name}: written")
    return status


if __name__ == "__main__":
    sys.exit(main())
