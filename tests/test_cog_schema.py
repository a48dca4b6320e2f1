"""The schema that requests are checked by, and that `cog build` will read predict.py and train.py as Python does."""

import inspect
import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from cog.input import FieldInfo

from tools.cog_schema import SchemaError, main, openapi_schema

ROOT = Path(__file__).parents[1]
CONFIG = yaml.safe_load((ROOT / "cog.yaml").read_text())

SAMPLE = """
from collections.abc import Iterator
from typing import List, Optional

from cog import BaseModel, BasePredictor, ConcatenateIterator, Input, Path, Secret, streaming


class TrainingOutput(BaseModel):
    weights: Path
    steps: int = 3
    note: Optional[str]


class Predictor(BasePredictor):
    @streaming
    def predict(
        self,
        prompt: str = Input(description="Text – as it is."),
        max_tokens: int = Input(description='"Most" tokens', default=9, ge=1, le=20),
        top_p: float = Input(description="p", default=1.0, ge=0.0, le=1),
        seed: Optional[int] = Input(description="Blank: random.", default=None, ge=-1),
        mode: str = Input(description="m", default="b", choices=["a", "b"]),
        words: List[str] = Input(description=r"\\w+", min_length=1),
    ) -> ConcatenateIterator[str]:
        yield ""


def train(
    train_data: Path = Input(description="d", accept=".txt"),
    token: Optional[Secret] = Input(description="t"),
    steps: int | None = Input(description="s", default=-3),
    word: str = Input(description="w", default="", regex=r"^\\w*$", max_length=5, deprecated=True),
    mode: str = Input(description="m", choices=["a", "b"]),
    depth: int = Input(description="d", choices=[1, 2]),
    fast: bool = Input(description="f", default=False),
    rate: float = Input(description="r", default=1e-3),
) -> TrainingOutput:
    pass
"""


def read(folder: Path, source: str, train: str | None = None) -> dict[str, Any]:
    (folder / "sample.py").write_text(source)
    return openapi_schema(folder, "sample.py:Predictor", train)


# ---- the form ----


def test_the_form_is_that_of_cog_build(tmp_path: Path) -> None:
    """The components expected here are what Cog's own generator makes of the sample (main of August 2026)."""
    schema = read(tmp_path, SAMPLE, "sample.py:train")
    components = schema["components"]["schemas"]

    def reference(name: str) -> dict[str, Any]:
        return {"allOf": [{"$ref": f"#/components/schemas/{name}"}]}

    secret = {"type": "string", "format": "password", "writeOnly": True, "x-cog-secret": True}
    assert components["Input"] == {
        "title": "Input",
        "type": "object",
        "required": ["prompt", "words"],
        "properties": {
            "prompt": {"title": "Prompt", "type": "string", "description": "Text – as it is.", "x-order": 0},
            "max_tokens": {
                "title": "Max Tokens",
                "type": "integer",
                "description": '"Most" tokens',
                "default": 9,
                "minimum": 1,
                "maximum": 20,
                "x-order": 1,
            },
            "top_p": {
                "title": "Top P",
                "type": "number",
                "description": "p",
                "default": 1,
                "minimum": 0,
                "maximum": 1,
                "x-order": 2,
            },
            "seed": {
                "title": "Seed",
                "type": "integer",
                "description": "Blank: random.",
                "default": None,
                "nullable": True,
                "minimum": -1,
                "x-order": 3,
            },
            "mode": {**reference("mode"), "description": "m", "default": "b", "x-order": 4},
            "words": {
                "title": "Words",
                "type": "array",
                "items": {"type": "string"},
                "description": r"\w+",
                "minLength": 1,
                "x-order": 5,
            },
        },
    }
    assert components["TrainingInput"] == {
        "title": "TrainingInput",
        "type": "object",
        "required": ["train_data", "mode", "depth"],
        "properties": {
            "train_data": {
                "title": "Train Data",
                "type": "string",
                "format": "uri",
                "description": "d",
                "x-cog-accept": ".txt",
                "x-order": 0,
            },
            "token": {"title": "Token", **secret, "nullable": True, "description": "t", "x-order": 1},
            "steps": {
                "title": "Steps",
                "type": "integer",
                "nullable": True,
                "description": "s",
                "default": -3,
                "x-order": 2,
            },
            "word": {
                "title": "Word",
                "type": "string",
                "description": "w",
                "default": "",
                "pattern": r"^\w*$",
                "maxLength": 5,
                "deprecated": True,
                "x-order": 3,
            },
            "mode": {**reference("mode"), "description": "m", "x-order": 4},
            "depth": {**reference("depth"), "description": "d", "x-order": 5},
            "fast": {"title": "Fast", "type": "boolean", "description": "f", "default": False, "x-order": 6},
            "rate": {"title": "Rate", "type": "number", "description": "r", "default": 0.001, "x-order": 7},
        },
    }
    assert components["mode"]["enum"] == ["a", "b"] and components["mode"]["type"] == "string"
    assert components["depth"]["enum"] == [1, 2] and components["depth"]["type"] == "integer"
    assert components["Output"] == {
        "title": "Output",
        "type": "array",
        "items": {"type": "string"},
        "x-cog-array-type": "iterator",
        "x-cog-array-display": "concatenate",
    }
    assert components["TrainingOutput"] == {
        "title": "Output",
        "type": "object",
        "required": ["weights"],
        "properties": {
            "weights": {"title": "Weights", "type": "string", "format": "uri"},
            "steps": {"title": "Steps", "type": "integer"},
            "note": {"title": "Note", "type": "string", "nullable": True},
        },
    }
    assert set(schema["paths"]) == {
        "/",
        "/health-check",
        "/predictions",
        "/predictions/{prediction_id}/cancel",
        "/trainings",
        "/trainings/{training_id}/cancel",
    }
    assert schema["paths"]["/predictions"]["post"]["x-cog-streaming"] is True
    assert "x-cog-streaming" not in schema["paths"]["/trainings"]["post"]


@pytest.mark.parametrize("decorator", ["@streaming", "@streaming()", ""])
def test_streaming(tmp_path: Path, decorator: str) -> None:
    schema = read(tmp_path, SAMPLE.replace("@streaming", decorator))
    assert ("x-cog-streaming" in schema["paths"]["/predictions"]["post"]) == bool(decorator)


# ---- what cog build would drop, garble or mistake ----


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        # Bounds, defaults and choices: literals.
        ("x: int = Input(description='d', default=1, le=LIMIT)", "x: le must be written out as a plain literal"),
        ("x: int = Input(description='d', default=9, ge=2 + 2)", "x: ge must be written out as a plain literal"),
        ("x: int = Input(description='d', default=9, ge=(2))", "x: ge must be written as a plain number, not `(2)`"),
        ("x: float = Input(description='d', default=pi)", "x: default must be written out as a plain literal"),
        ("x: int = Input(description='d', default=2**4)", "x: default must be written out as a plain literal"),
        ("x: bool = Input(description='d', default=(True))", "x: default must be written as True"),
        ("x: str = Input(description='d', choices=NAMES)", "x: choices must be written out as a plain literal"),
        ("x: str = Input(description='d', choices=('a', 'b'))", "x: choices must be a string, a number"),
        ("x: str = Input(description='d', choices=['a' 'b', 'c'])", "x: choices must be one plain string"),
        ("x: str = Input(description='d', choices=[('a'), 'b'])", "x: choices must be a plain list"),
        # Descriptions: one string in one pair of quotes.
        ("x: str = Input(description=f'd')", "x: description must be written out as a plain literal"),
        ("x: str = Input(description='a ' 'b')", "x: description must be one plain string"),
        ("x: str = Input(description=('a'))", "x: description must be one plain string"),
        ("x: str = Input(description='it\\'s')", "x: description must be one plain string"),
        ("x: str = Input(description='a\\nb')", "x: description must be one plain string"),
        ("x: str = Input(description=u'a')", "x: description must be one plain string"),
        ("x: str = Input(default='a')", "x has no description"),
        # Input() itself.
        ("x: int = Input(5, description='d')", "without a name"),
        ("x: int = Input(**OPTIONS)", "Input() has no argument **"),
        ("x: int = Input(description='d', default_factory=int)", "Input() has no argument default_factory"),
        ("x: int = cog.Input(description='d')", "x must be described"),
        ("x: int = 5", "x must be described"),
        ("x: int", "x must be described"),
        ("x = Input(description='d')", "x has no type"),
        ("*, x: int = Input(description='d')", "plain named arguments only"),
        # Types.
        ("x: int = Input(description='d', default=None)", "write Optional"),
        ("x: dict = Input(description='d')", "`dict` is no type for this"),
        ("x: LocalPath = Input(description='d')", "`LocalPath` is no type for this"),
        ("x: str = Input(description='d', accept='.txt')", "accept is for files"),
        # Defaults that no request could have.
        ("x: int = Input(description='d', default=0.5)", "which is no integer"),
        ("x: int = Input(description='d', default=True)", "which is no integer"),
        ("x: str = Input(description='d', default=5)", "which is no string"),
        ("x: int = Input(description='d', default=0, ge=1)", "out of its bounds"),
        ("x: str = Input(description='d', default='c', choices=['a', 'b'])", "none of its choices"),
    ],
)
def test_an_input_that_would_be_misread(tmp_path: Path, argument: str, reason: str) -> None:
    source = (
        f"from cog import Input, Path\n\nclass Predictor:\n    def predict(self, {argument}) -> str:\n        pass\n"
    )
    with pytest.raises(SchemaError) as caught:
        read(tmp_path, source)
    assert "sample.py:4: " in str(caught.value) and reason in str(caught.value)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("Path, Secret", "Secret", "`Path` is not Cog's"),
        ("\n\n\nclass T", "\nfrom pathlib import Path\n\n\nclass T", "`Path` is not Cog's"),
        ("Input, Path", "Input as Field, Path", "`Input` is not Cog's"),
        ("Secret, streaming", "Secret", "`streaming` is not Cog's"),
        ("@streaming", "@streaming\n    @cache", "only @streaming is understood"),
        ("ConcatenateIterator[str]:", "str:", "@streaming needs an iterator"),
        ("ConcatenateIterator[str]:", "ConcatenateIterator[int]:", "ConcatenateIterator is of str"),
        (" -> ConcatenateIterator[str]:", ":", "predict() must say what it returns"),
        ("(BaseModel)", "(dict)", "TrainingOutput must derive from BaseModel"),
        ("def predict", "async def predict", "has no plain `def predict`"),
        ("class Predictor", "class Runner", "has no plain `def Predictor`"),
        ('choices=["a", "b"]),\n    depth', 'choices=["b", "c"]),\n    depth', "not the same choices"),
        ("def train(", "def train((", "cannot be read"),
    ],
)
def test_a_file_that_would_be_misread(tmp_path: Path, old: str, new: str, reason: str) -> None:
    assert old in SAMPLE
    with pytest.raises(SchemaError, match=re.escape(reason)):
        read(tmp_path, SAMPLE.replace(old, new, 1), "sample.py:train")


# ---- our own files ----


@pytest.mark.parametrize(("face", "component"), [("predict", "Input"), ("train", "TrainingInput")])
def test_the_schema_says_what_the_sdk_says(face: str, component: str) -> None:
    """What is read in the source here is what Python makes of it."""
    schema = openapi_schema(ROOT, CONFIG["predict"], CONFIG["train"])["components"]["schemas"]
    module = __import__(face)
    function = module.Predictor.predict if face == "predict" else module.train
    parameters = {name: p for name, p in inspect.signature(function).parameters.items() if name != "self"}
    properties = schema[component]["properties"]
    assert sorted(properties, key=lambda name: properties[name]["x-order"]) == list(parameters)
    for name, parameter in parameters.items():
        said, found = parameter.default, properties[name]
        assert isinstance(said, FieldInfo)
        choices = schema[name]["enum"] if "allOf" in found else None
        shown = {key: found.get(key) for key in ("default", "description", "minimum", "maximum")}
        meant = {"default": said.default, "description": said.description, "minimum": said.ge, "maximum": said.le}
        assert (shown, choices) == (meant, said.choices), name
    assert schema[component]["required"] == ["prompt" if face == "predict" else "train_data"]


def test_nothing_heavy_is_imported_for_a_signature() -> None:
    code = (
        "import sys, predict, train, tools.cog_schema; print(*{'torch', 'transformers', 'datasets'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


# ---- the command ----


def test_the_command(tmp_path: Path) -> None:
    output = tmp_path / "a" / "schema.json"
    command = [sys.executable, "-m", "tools.cog_schema", "--output", str(output)]
    subprocess.run(command, cwd=ROOT, check=True)
    assert json.loads(output.read_text()) == openapi_schema(ROOT, CONFIG["predict"], CONFIG["train"])
    assert list(output.parent.iterdir()) == [output]


def test_the_command_fails_with_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "schema.json"
    output.write_text("as it was")
    assert main(["--predict", "nowhere.py:Predictor", "--output", str(output)]) == 1
    assert capsys.readouterr().err.startswith("cog_schema.py: nowhere.py cannot be read")
    assert main(["--predict", "predict.py", "--output", str(output)]) == 1
    assert capsys.readouterr().err == "cog_schema.py: 'predict.py' is not of the form file.py:name.\n"
    assert output.read_text() == "as it was"


# ---- the container ----


def test_cog_yaml_fits_the_rest() -> None:
    build = CONFIG["build"]
    needed = (ROOT / build["python_requirements"]).read_text()
    assert build["sdk_version"] == version("cog"), "the tests run against another SDK than the container has"
    assert not any(line.startswith("cog") for line in needed.splitlines()), "Cog installs its SDK itself"
    assert build["gpu"] and build["cuda"] and "torch==" in needed
    assert build["python_version"] == "{}.{}".format(*sys.version_info), "or tests run with another Python"


def test_the_image_has_all_that_it_needs() -> None:
    ignored = {line.strip("/") for line in (ROOT / ".dockerignore").read_text().splitlines()}
    needed = {"predict.py", "train.py", "transformer", "weights", CONFIG["build"]["python_requirements"]}
    assert not needed & ignored
    # Some versions of Cog build from files in this folder.
    assert not ignored & {".cog", "*", "**"}


def test_the_schema_of_one_mode_has_only_its_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a schema with both, Cog's playground shows the form of the training alone."""
    monkeypatch.chdir(ROOT)
    both = openapi_schema(ROOT, CONFIG["predict"], CONFIG["train"])
    for mode, other in (("predict", "train"), ("train", "predict")):
        output = tmp_path / f"{mode}.json"
        assert main(["--mode", mode, "--output", str(output)]) == 0
        schema = json.loads(output.read_text())
        noun = {"predict": "/predictions", "train": "/trainings"}
        assert noun[mode] in schema["paths"] and noun[other] not in schema["paths"]
        for kind, found in (("paths", schema["paths"]), ("schemas", schema["components"]["schemas"])):
            whole = both["paths"] if kind == "paths" else both["components"]["schemas"]
            assert found == {name: whole[name] for name in found}
    assert main(["--mode", "train", "--predict", "predict.py:Predictor", "--output", str(tmp_path / "none.json")]) == 1


def test_make_serve_writes_the_schema_of_its_mode() -> None:
    for mode, expected in ((), "predict"), (("MODE=train",), "train"):
        done = subprocess.run(["make", "-n", "serve", *mode], cwd=ROOT, capture_output=True, text=True, check=True)
        assert f"tools.cog_schema --mode {expected}\n" in done.stdout
