"""The signature of a predict or train function, read from its source as `cog build` reads it.

`cog build` does not run the code, and what it does not understand it drops in silence. Here the source is read in the
same manner, but what would be dropped, or would mean another thing than it does to Python, is refused.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

Json = dict[str, Any]

# The arguments of Input() and what they are called in the schema. `default` and `choices` are not that simple.
_KEYWORDS = {
    "description": "description",
    "ge": "minimum",
    "le": "maximum",
    "min_length": "minLength",
    "max_length": "maxLength",
    "regex": "pattern",
    "deprecated": "deprecated",
    "accept": "x-cog-accept",
}
_TYPES: dict[str, Json] = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "Path": {"type": "string", "format": "uri"},
    "Secret": {"type": "string", "format": "password", "writeOnly": True, "x-cog-secret": True},
}
_PYTHON_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
}
# Known to `cog build` by these names wherever they come from; to the server only if they are Cog's own.
_FROM_COG = ("BaseModel", "ConcatenateIterator", "Input", "Path", "Secret", "streaming")
_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


class SchemaError(Exception):
    """The source says something that `cog build` would not read as Python does."""


@dataclass
class Signature:
    """What a predict or train function takes and gives, as JSON schemas."""

    output: Json
    inputs: dict[str, Json] = field(default_factory=dict)
    required: list[str] = field(default_factory=list)
    enumerations: dict[str, Json] = field(default_factory=dict)
    streaming: bool = False


class Source:
    """One Python file, of which a function's signature is read.

    Raises:
        SchemaError: if the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.text = path.read_text(encoding="utf-8")
            self.tree = ast.parse(self.text)
        except (OSError, SyntaxError) as error:
            raise SchemaError(f"{path} cannot be read: {error}") from error
        imports = [node for node in self.tree.body if isinstance(node, ast.ImportFrom)]
        self.imported = {name.asname or name.name: (node.module, name.name) for node in imports for name in node.names}

    def signature(self, name: str, method: str) -> Signature:
        """The signature of the function called `name`, or of `method` of the class of that name.

        Raises:
            SchemaError: if it is not there, or says something that `cog build` would misread.
        """
        body, is_method = self.tree.body, False
        for node in body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                body, name, is_method = node.body, method, True
                break
        for node in body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                return self._signature(node, is_method)
        raise SchemaError(f"{self.path} has no plain `def {name}`.")

    def _signature(self, node: ast.FunctionDef, is_method: bool) -> Signature:
        arguments = node.args
        if arguments.vararg or arguments.kwarg or arguments.kwonlyargs or arguments.posonlyargs:
            self._refuse(node, f"{node.name}() must have plain named arguments only")
        if node.returns is None:
            self._refuse(node, f"{node.name}() must say what it returns")
        signature = Signature(output={**self._output_type(node.returns), "title": "Output"})
        for decorator in node.decorator_list:
            if self._source_of(decorator) not in ("streaming", "streaming()"):
                self._refuse(decorator, "only @streaming is understood here; another decorator hides the defaults")
            self._from_cog(decorator, "streaming")
            if "x-cog-array-type" not in signature.output:
                self._refuse(decorator, "@streaming needs an iterator as return type")
            signature.streaming = True
        names = arguments.args[1:] if is_method else arguments.args
        defaults = [None] * (len(names) - len(arguments.defaults)) + list(arguments.defaults)
        for order, (argument, default) in enumerate(zip(names, defaults, strict=True)):
            self._add_input(signature, argument, default, order)
        return signature

    def _add_input(self, signature: Signature, argument: ast.arg, call: ast.expr | None, order: int) -> None:
        name = argument.arg
        if argument.annotation is None:
            self._refuse(argument, f"{name} has no type")
        kind, optional = self._input_type(argument.annotation)
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Input"):
            self._refuse(argument, f"{name} must be described: `{name}: ... = Input(description=...)`, Input from cog")
        self._from_cog(call, "Input")
        given = self._arguments(name, call)
        if "accept" in given and kind != _TYPES["Path"]:
            self._refuse(call, f"{name}: accept is for files, that is for the type Path")
        schema: Json = {"x-order": order}
        if choices := given.pop("choices", None):
            enumeration = {"title": name, "description": "An enumeration.", "enum": choices, "type": kind["type"]}
            signature.enumerations[name] = enumeration
            schema["allOf"] = [{"$ref": f"#/components/schemas/{name}"}]
        else:
            schema |= {"title": title(name), **kind}
        if optional:
            schema["nullable"] = True
        if "default" in given:
            schema["default"] = given.pop("default")
        elif not optional:
            signature.required.append(name)
        signature.inputs[name] = schema | {_KEYWORDS[keyword]: value for keyword, value in given.items()}
        if "default" in schema and (fault := _fault_of_default(signature.inputs[name], kind["type"], choices)):
            self._refuse(call, f"{name} has the default {schema['default']!r}, {fault}")

    def _arguments(self, name: str, call: ast.Call) -> Json:
        """The arguments of Input(), each of them a literal."""
        if call.args:
            self._refuse(call, f"{name}: cog build drops arguments of Input() without a name; write `default=`")
        given: Json = {}
        for keyword in call.keywords:
            if keyword.arg is None or keyword.arg not in (*_KEYWORDS, "default", "choices"):
                self._refuse(keyword.value, f"{name}: Input() has no argument {keyword.arg or '**'}")
            written = self._source_of(keyword).split("=", 1)[1].strip()
            given[keyword.arg] = self._literal(f"{name}: {keyword.arg}", keyword.value, written)
        if "description" not in given:
            self._refuse(call, f"{name} has no description")
        return given

    def _literal(self, what: str, node: ast.expr, written: str) -> Any:
        """The value of a literal which `cog build` reads as Python does.

        It knows a string by its first and last quote: escapes stay as they are written, and parentheses, an f-string
        or two strings side by side are dropped or garbled. Names and arithmetic are dropped too.
        """
        if isinstance(node, ast.List):
            items = [self._source_of(item) for item in node.elts]
            if re.sub(r"[\s,]", "", written) != re.sub(r"[\s,]", "", f"[{''.join(items)}]"):
                self._refuse(node, f"{what} must be a plain list: no comments or parentheses in it")
            return [self._literal(what, item, source) for item, source in zip(node.elts, items, strict=True)]
        try:
            value = ast.literal_eval(node)
        except ValueError:
            self._refuse(node, f"{what} must be written out as a plain literal, not `{written}`")
        if isinstance(value, str):
            bare = written.removeprefix("r")
            quote = bare[:3] if bare[:3] in ('"""', "'''") and len(bare) >= 6 else bare[:1]
            if quote not in ('"', "'", '"""', "'''") or bare[len(quote) : -len(quote)] != value:
                self._refuse(node, f"{what} must be one plain string: no parts, escapes, prefixes or parentheses")
        elif isinstance(value, bool) or value is None:
            if written != repr(value):
                self._refuse(node, f"{what} must be written as {value}")
        elif isinstance(value, (int, float)):
            if not _NUMBER.fullmatch(written):
                self._refuse(node, f"{what} must be written as a plain number, not `{written}`")
            value = int(value) if float(value).is_integer() else value  # JSON has one kind of number: 0.0 is 0
        else:
            self._refuse(node, f"{what} must be a string, a number, True, False, None or a list of them")
        return value

    def _input_type(self, node: ast.expr) -> tuple[Json, bool]:
        """The schema of a type, and whether the input may be left out."""
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr) and _is_none(node.right):
            return self._input_type(node.left)[0], True
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
            if node.value.id == "Optional":
                return self._input_type(node.slice)[0], True
            if node.value.id in ("list", "List"):
                return {"type": "array", "items": self._type(node.slice)}, False
        return dict(self._type(node)), False

    def _output_type(self, node: ast.expr) -> Json:
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
            array = {"type": "array", "items": self._type(node.slice)}
            match node.value.id:
                case "list" | "List":
                    return array
                case "Iterator":
                    return {**array, "x-cog-array-type": "iterator"}
                case "ConcatenateIterator":
                    self._from_cog(node, "ConcatenateIterator")
                    if array["items"] != _TYPES["str"]:
                        self._refuse(node, "ConcatenateIterator is of str")
                    return {**array, "x-cog-array-type": "iterator", "x-cog-array-display": "concatenate"}
        if isinstance(node, ast.Name):
            for statement in self.tree.body:
                if isinstance(statement, ast.ClassDef) and statement.name == node.id:
                    return self._object_type(statement)
        return dict(self._type(node))

    def _object_type(self, node: ast.ClassDef) -> Json:
        """The schema of a class derived from cog.BaseModel."""
        if [self._source_of(base) for base in node.bases] != ["BaseModel"]:
            self._refuse(node, f"{node.name} must derive from BaseModel alone")
        self._from_cog(node, "BaseModel")
        properties, required = {}, []
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                kind, optional = self._input_type(item.annotation)
                nullable = {"nullable": True} if optional else {}
                properties[item.target.id] = {**kind, **nullable, "title": title(item.target.id)}
                if item.value is None and not optional:
                    required.append(item.target.id)
        return {"type": "object", "properties": properties, **({"required": required} if required else {})}

    def _type(self, node: ast.expr) -> Json:
        if not (isinstance(node, ast.Name) and node.id in _TYPES):
            self._refuse(node, f"`{self._source_of(node)}` is no type for this; known are {', '.join(_TYPES)}")
        if node.id in _FROM_COG:
            self._from_cog(node, node.id)
        return _TYPES[node.id]

    def _from_cog(self, node: ast.AST, name: str) -> None:
        if self.imported.get(name) != ("cog", name):
            self._refuse(node, f"`{name}` is not Cog's: it takes `from cog import {name}`, at the top of the file")

    def _source_of(self, node: ast.AST) -> str:
        return ast.get_source_segment(self.text, node) or ""

    def _refuse(self, node: ast.AST, reason: str) -> NoReturn:
        raise SchemaError(f"{self.path}:{getattr(node, 'lineno', 1)}: {reason}.")


def _fault_of_default(schema: Json, kind: str, choices: list[Any] | None) -> str | None:
    """What is wrong with the default of an input. Nobody else looks: the server checks only what is sent."""
    default = schema["default"]
    if default is None:
        return None if schema.get("nullable") else "so cog build makes it required: write Optional[...]"
    # bool is a kind of int to Python, not to JSON.
    if not isinstance(default, _PYTHON_TYPES[kind]) or isinstance(default, bool) != (kind == "boolean"):
        return f"which is no {kind}"
    if choices and default not in choices:
        return "which is none of its choices"
    if kind in ("integer", "number") and not schema.get("minimum", default) <= default <= schema.get(
        "maximum", default
    ):
        return "which is out of its bounds"
    return None


def title(name: str) -> str:
    """max_tokens becomes Max Tokens."""
    return " ".join(part[:1].upper() + part[1:] for part in name.split("_"))


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None
