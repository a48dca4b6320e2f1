"""The documents: links lead somewhere, code blocks parse, and the README stays short."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from long_files import LONG
from readme_commands import ROOT

from transformer.hub.architectures import ADAPTERS
from transformer.preflight import CHECK_NAMES

DOCUMENTS = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / ".github").rglob("*.md")]
    if "upstream" not in path.parts
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(document: Path) -> None:
    text = FENCE.sub("", document.read_text("utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            assert target.startswith("https://"), target
            continue
        name, _, anchor = target.partition("#")
        file = (document.parent / name) if name else document
        assert file.exists(), f"{document.name} links to {target}, which does not exist"
        assert not anchor or anchor in anchors(file), (
            f"{document.name} links to {target}, a heading that does not exist"
        )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_blocks_parse(document: Path) -> None:
    text = document.read_text("utf-8")
    assert len(re.findall(r"^```", text, re.MULTILINE)) % 2 == 0, "a code block is not closed"
    for language, block in FENCE.findall(text):
        if language == "python":
            ast.parse(block)
        elif language == "json":
            json.loads(block)
        elif language == "yaml":
            yaml.safe_load(block)
        elif language in ("", "sh", "bash", "console"):
            lines = block.splitlines()
            typed = [line[2:] for line in lines if line.startswith("$ ")] or lines
            checked = subprocess.run(["bash", "-n"], input="\n".join(typed), text=True, capture_output=True)
            assert checked.returncode == 0, checked.stderr


def test_the_readme_is_short_and_names_every_page() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 150
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or f"(docs/{page.name})" in text, f"README.md does not link docs/{page.name}"


def test_every_page_is_in_the_navigation() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    assert set(site["nav"]) == {page.name for page in (ROOT / "docs").glob("*.md")}


def test_the_site_is_built(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs mkdocs-material, of requirements-dev.txt")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for page in (ROOT / "docs").glob("*.md"):
        assert (tmp_path / f"{page.stem}.html").exists()


def test_the_commands_that_ci_runs_exist() -> None:
    targets = set(re.findall(r"^([\w-]+(?: [\w-]+)*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = {target for line in targets for target in line.split()}
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))
    commands = [step["run"] for step in workflow["jobs"]["ci"]["steps"] if "run" in step]
    for command in commands:
        program, *arguments = command.split()
        assert (program == "make" and set(arguments) <= named) or (ROOT / program).exists(), command
    assert not [name for name in LONG if not (ROOT / "tests" / name).exists()]


ADDING = (ROOT / "docs/adding-an-architecture.md").read_text("utf-8")


def test_the_adapter_that_is_explained_is_the_one_that_runs() -> None:
    (block,) = [code for language, code in FENCE.findall(ADDING) if language == "python"]
    assert (ROOT / "transformer/hub/architectures/qwen2.py").read_text("utf-8").endswith(block)


def test_every_architecture_that_opens_is_listed() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", ADDING, re.MULTILINE)
    assert {*listed} - {"model_type"} == {*ADAPTERS} - {"decoder_only_transformer"}


def test_every_check_of_the_preflight_is_documented_with_cause_and_cure() -> None:
    pages = "".join((ROOT / "docs" / name).read_text("utf-8") for name in ("preflight.md", "preflight_model.md"))
    tables = [table.strip().splitlines() for table in re.findall(r"(?:^\|.*\n)+", pages, re.MULTILINE)]
    documented = {}
    for header, _, *rows in tables:
        columns = [cell.strip() for cell in header.strip("|").split("|")]
        if columns[-2:] == ["cause", "cure"]:
            for row in rows:
                names, *_, cause, cure = (cell.strip() for cell in row.strip("|").split("|"))
                documented |= {name: (cause, cure) for name in names.split(", ")}
    assert documented.keys() == set(CHECK_NAMES)
    without = {name for name, cells in documented.items() if not all(cells)}
    assert without == {"forecast"}  # which is for information
