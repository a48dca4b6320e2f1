"""Write the schema by which Cog's HTTP server checks requests: `python -m tools.cog_schema`, in the project's folder.

The server reads `.cog/openapi_schema.json` and nothing else: without it no input is checked and no answer is streamed.
`cog build` makes that file when it builds the image; this does so where there is no Docker, in the same form. With
`--mode` it has only what a server in this mode answers: of a schema with both, Cog's playground shows the training.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import yaml

from tools.cog_signature import Json, SchemaError, Signature, Source, title

OUTPUT = Path(".cog/openapi_schema.json")


def openapi_schema(root: Path, predict: str | None, train: str | None = None) -> Json:
    """The OpenAPI document for the functions that `predict` and `train` name, as `file.py:name`; one may be None.

    Raises:
        SchemaError: if a file or function is not there, or says something that `cog build` would misread.
    """
    predicting, training = None, None
    if predict is not None:
        predicting = _operation(_read(root, predict, "predict"), "prediction", "Predict", "Input", "Output")
    if train is not None:
        training = _operation(_read(root, train, "train"), "training", "Train", "TrainingInput", "TrainingOutput")
    if predicting is None or training is None:
        if (one := predicting or training) is None:
            raise SchemaError("there is neither a predict nor a train function to describe.")
        return one
    predicting["paths"] |= training["paths"]
    components = predicting["components"]["schemas"]
    for name, schema in training["components"]["schemas"].items():
        # cog build keeps the first of two components of one name.
        if components.setdefault(name, schema) != schema:
            raise SchemaError(f"predict and train both have an input {name} with choices, but not the same choices.")
    return predicting


def _read(root: Path, reference: str, method: str) -> Signature:
    file, colon, name = reference.partition(":")
    if not (colon and name):
        raise SchemaError(f"{reference!r} is not of the form file.py:name.")
    return Source(root / file).signature(name, method)


def _operation(signature: Signature, noun: str, verb: str, input_name: str, output_name: str) -> Json:
    """The document for one function: its components, and the paths of the server that belong to it."""
    request, response = f"{noun.title()}Request", f"{noun.title()}Response"
    inputs: Json = {"title": input_name, "type": "object", "properties": signature.inputs}
    if signature.required:
        inputs["required"] = signature.required
    times = {name: {"type": "string", "format": "date-time"} for name in ("created_at", "started_at", "completed_at")}
    texts = {name: {"type": "string"} for name in ("id", "version", "status", "error", "logs")}
    answer = {name: {**schema, "title": title(name)} for name, schema in {**times, **texts}.items()}
    answer["metrics"] = {"title": "Metrics", "type": "object"}
    carried = {"input": _reference(input_name)}
    components = {
        input_name: inputs,
        output_name: signature.output,
        **signature.enumerations,
        request: _object(request, {"id": {"title": "Id", "type": "string"}, **carried}),
        response: _object(response, {**answer, **carried, "output": _reference(output_name)}),
        **_COMMON_COMPONENTS,
    }
    create: Json = {
        "summary": verb,
        "description": f"Run a single {noun} on the model",
        "operationId": f"{verb.lower()}_{noun}s_post",
        "requestBody": {"content": {"application/json": {"schema": _reference(request)}}},
        "responses": {"200": _answer(_reference(response)), "422": _INVALID},
    }
    if signature.streaming:
        create["x-cog-streaming"] = True
    id_name = f"{noun}_id"
    id_type = {"title": title(id_name), "type": "string"}
    cancel = {
        "summary": "Cancel",
        "operationId": f"cancel_{noun}s__{id_name}__cancel_post",
        "parameters": [{"in": "path", "name": id_name, "required": True, "schema": id_type}],
        "responses": {"200": _answer({}), "422": _INVALID},
    }
    paths = {
        "/": _get("Root", "root__get"),
        "/health-check": _get("Healthcheck", "healthcheck_health_check_get"),
        f"/{noun}s": {"post": create},
        f"/{noun}s/{{{id_name}}}/cancel": {"post": cancel},
    }
    info = {"title": "Cog", "version": version("cog")}
    return {"openapi": "3.0.2", "info": info, "paths": paths, "components": {"schemas": components}}


def _reference(component: str) -> Json:
    return {"$ref": f"#/components/schemas/{component}"}


def _object(title: str, properties: Json) -> Json:
    return {"title": title, "type": "object", "properties": properties}


def _answer(schema: Json, description: str = "Successful Response") -> Json:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _get(summary: str, operation: str) -> Json:
    return {"get": {"summary": summary, "operationId": operation, "responses": {"200": _answer({})}}}


_INVALID = _answer(_reference("HTTPValidationError"), "Validation Error")
_COMMON_COMPONENTS: Json = {
    "Status": {
        "title": "Status",
        "description": "An enumeration.",
        "enum": ["starting", "processing", "succeeded", "canceled", "failed"],
        "type": "string",
    },
    "HTTPValidationError": _object(
        "HTTPValidationError", {"detail": {"title": "Detail", "type": "array", "items": _reference("ValidationError")}}
    ),
    "ValidationError": {
        **_object(
            "ValidationError",
            {
                "loc": {
                    "title": "Location",
                    "type": "array",
                    "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
                },
                "msg": {"title": "Message", "type": "string"},
                "type": {"title": "Error Type", "type": "string"},
            },
        ),
        "required": ["loc", "msg", "type"],
    },
}


def write(schema: Json, path: Path) -> None:
    """Write the schema to `path`, whole or not at all: a server that starts meanwhile must not read half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".partial", delete=False) as file:
        json.dump(schema, file, indent=2, sort_keys=True)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def main(arguments: list[str] | None = None) -> int:
    """The command line; what it is not told it reads in cog.yaml."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predict", help="file.py:name; as in cog.yaml if not given")
    parser.add_argument("--train", help="file.py:name; as in cog.yaml if not given")
    parser.add_argument("--mode", choices=("predict", "train"), help="the schema of this alone; default: of both")
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"default: {OUTPUT}")
    options = parser.parse_args(arguments)
    try:
        given = {name: getattr(options, name) for name in ("predict", "train") if getattr(options, name)}
        references = (
            given if options.predict else {**yaml.safe_load(Path("cog.yaml").read_text(encoding="utf-8")), **given}
        )
        wanted = (options.mode,) if options.mode else ("predict", "train")
        predict, train = (references.get(name) if name in wanted else None for name in ("predict", "train"))
        if predict is None and options.mode != "train":
            raise SchemaError("cog.yaml names no predict, and --predict was not given.")
        if train is None and options.mode == "train":
            raise SchemaError("cog.yaml names no train, and --train was not given.")
        schema = openapi_schema(Path(), predict, train)
    except (SchemaError, OSError) as error:
        print(f"cog_schema.py: {error}", file=sys.stderr)
        return 1
    write(schema, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
