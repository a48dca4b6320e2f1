"""The structure of the package: imports point down, predictions start fast, the paper's modules are our own."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A package may import itself, those named here, and the shared modules.
SHARED = {"checksum", "cog_folders", "credentials", "errors", "files", "device"}
PACKAGES = {
    "credentials": set(),
    "errors": {"credentials"},
    "checksum": {"errors", "files"},
    "cog_folders": set(),
    "files": {"errors"},
    "device": {"errors"},
    "model": set(),
    "data": set(),
    "inference": {"model", "data"},
    "evaluation": {"model", "data"},
    "legacy": {"model", "data", "evaluation"},
    "hub": {"model", "data", "inference", "evaluation", "legacy"},
    "reporting": {"model", "data", "inference", "evaluation", "hub"},
    "preflight": {"model", "data", "inference", "evaluation", "hub", "training"},
    "training": {"model", "data", "inference", "evaluation", "hub", "legacy", "reporting", "preflight"},
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


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_down(package: str) -> None:
    files = list((ROOT / "transformer" / package).rglob("*.py")) or [ROOT / "transformer" / f"{package}.py"]
    allowed = PACKAGES[package] | {package} | (SHARED if package not in SHARED else set())
    for file in files:
        packages = {name.split(".")[1] for name in imports(file) if name.startswith("transformer.")}
        assert packages <= allowed, f"{file.name} imports {packages - allowed}"


NETWORK = {"huggingface_hub", "datasets", "fsspec", "httpx", "httpx2", "requests", "urllib", "urllib3", "aiohttp"}
NETWORK |= {"http", "socket", "ssl", "ftplib"}


@pytest.mark.parametrize("package", ["model", "data", "inference", "evaluation", "legacy"])
def test_below_the_hub_nothing_opens_a_network_connection(package: str) -> None:
    for file in (ROOT / "transformer" / package).rglob("*.py"):
        libraries = {name.split(".")[0] for name in imports(file)}
        assert not libraries & NETWORK, f"{file.name} imports {libraries & NETWORK}"


def test_entry_points_are_imported_by_no_module() -> None:
    for file in (ROOT / "transformer").rglob("*.py"):
        assert not imports(file) & {"predict", "train"}, file
        if file.name != "__main__.py" and file.parent.name != "cli":
            assert not any(name.startswith("transformer.cli") for name in imports(file)), file


def test_the_modules_of_the_paper_are_our_own() -> None:
    for file in (ROOT / "transformer").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
            assert name not in ("MultiheadAttention", "TransformerDecoder", "TransformerDecoderLayer"), file
            assert name not in ("TransformerEncoder", "TransformerEncoderLayer"), file
        assert not any(name.split(".")[0] == "transformers" for name in imports(file)), file


def test_preflight_uses_public_interfaces() -> None:
    """It imports no private name, reads no private attribute of another object, and replaces no method."""
    for file in (ROOT / "transformer" / "preflight").glob("*.py"):
        tree = ast.parse(file.read_text())
        functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert not any(alias.name.startswith("_") for alias in node.names), file
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__"):
                owner = node.value.id if isinstance(node.value, ast.Name) else ""
                assert owner == "self" or node.attr in functions, f"{file.name}:{node.lineno} uses .{node.attr}"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("setattr", "vars", "delattr"), f"{file.name}:{node.lineno}"


def private_names() -> set[str]:
    """The names with a leading underscore that the package defines: functions, classes, constants and attributes."""
    names = set()
    for file in (ROOT / "transformer").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.id if isinstance(node, ast.Name) else node.attr)
    return {name for name in names if name.startswith("_") and not name.endswith("_")}


# The file name of a library, an attribute of ctypes.CDLL.
OTHERS_NAMES = {("test_instruction_sets.py", "_name")}


def used_names(node: ast.AST, package_names: set[str]) -> list[str]:
    """The names that a node imports from the package, reads from an object, replaces, or overrides in a subclass."""
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformer"):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.Attribute):
        return [] if isinstance(node.value, ast.Name) and node.value.id == "self" else [node.attr]
    if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("setattr", "delattr"):
        return [str(word.value).rpartition(".")[2] for word in node.args if isinstance(word, ast.Constant)]
    if isinstance(node, ast.ClassDef) and any(
        isinstance(base, ast.Name) and base.id in package_names for base in node.bases
    ):
        return [method.name for method in node.body if isinstance(method, ast.FunctionDef)]
    return []


def test_tests_use_public_names() -> None:
    private = private_names()
    for file in (ROOT / "tests").glob("*.py"):
        tree = ast.parse(file.read_text())
        package_names = {name.rpartition(".")[2] for name in imports(file) if name.startswith("transformer.")}
        for node in ast.walk(tree):
            used = [name for name in used_names(node, package_names) if name in private]
            used = [name for name in used if (file.name, name) not in OTHERS_NAMES]
            assert not used, f"{file.name}:{node.lineno} uses the private name {used[0]}"


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


def test_matplotlib_and_fsdp_are_imported_only_where_they_are_needed() -> None:
    code = "import sys, transformer.inference, transformer.training.run, transformer.reporting.charts as charts\n"
    code += "print('matplotlib' in sys.modules, 'torch.distributed.fsdp' in sys.modules)\n"
    code += "charts.svg('a', 'A', lambda axes: None, 300, 200); print('matplotlib' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False", "True"]
