"""What the house promises of itself: imports point down, predictions start fast, the paper's modules are our own."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A room may import from itself, from those named, and from the common floor.
FLOOR = {"checksum", "cog_folders", "credentials", "errors", "files", "device", "page"}
ROOMS = {
    "credentials": set(),
    "errors": {"credentials"},
    "checksum": set(),
    "cog_folders": set(),
    "files": {"errors"},
    "page": set(),
    "device": {"errors"},
    "model": set(),
    "text": set(),
    "inference": {"model", "text"},
    "evaluation": {"model", "text"},
    "show": {"model", "text", "evaluation"},
    "hub": {"model", "text", "inference", "evaluation"},
    "training": {"model", "text", "inference", "evaluation", "hub"},
}
HEAVY = {
    "transformers",
    "datasets",
    "accelerate",
    "matplotlib",
    "pandas",
    "huggingface_hub",
    "jinja2",
    "cog",
    "jsonargparse",
}


def imports(path: Path) -> set[str]:
    """Modules that a file imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_down(room: str) -> None:
    files = list((ROOT / "transformer" / room).rglob("*.py")) or [ROOT / "transformer" / f"{room}.py"]
    allowed = ROOMS[room] | {room} | (FLOOR if room not in FLOOR else set())
    for file in files:
        rooms = {name.split(".")[1] for name in imports(file) if name.startswith("transformer.")}
        assert rooms <= allowed, f"{file.name} imports {rooms - allowed}"


def test_nobody_imports_the_faces() -> None:
    for file in (ROOT / "transformer").rglob("*.py"):
        assert not imports(file) & {"predict", "train"}, file
        if file.name not in ("__main__.py", "cli.py"):
            assert not any(name.startswith("transformer.cli") for name in imports(file)), file


def test_the_modules_of_the_paper_are_our_own() -> None:
    for file in (ROOT / "transformer").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
            assert name not in ("MultiheadAttention", "TransformerDecoder", "TransformerDecoderLayer"), file
            assert name not in ("TransformerEncoder", "TransformerEncoderLayer"), file
        assert not any(name.split(".")[0] == "transformers" for name in imports(file)), file


@pytest.mark.parametrize(
    "code",
    [
        "from transformer.cli import main; main(['predict', '--max-tokens', '2', '--seed', '0'])",
        "import predict; p = predict.Predictor(); p.setup()",
    ],
)
def test_no_heavy_import_on_the_way_to_a_prediction(code: str) -> None:
    report = f"{code}\nimport sys\nprint('MODULES', *sorted(m for m in sys.modules if '.' not in m))"
    run = subprocess.run([sys.executable, "-c", report], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(run.stdout.rsplit("MODULES", 1)[1].split())
    needless = HEAVY - {"cog"} if "predict.Predictor" in code else HEAVY
    assert "torch" in loaded and not loaded & needless, loaded & needless
