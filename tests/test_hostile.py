"""Files of strangers that lie: each is refused with one sentence, before memory or time is spent."""

import base64
import gzip
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models import tiny_model_directory

from transformer.data.tokenizer_safety import repeats_choices
from transformer.hub.resolve import pack

ROOT = Path(__file__).parents[1]
HUGE = 10**12
# Opens each path that it is given and says what came of it: in a process of its own, whose memory can be measured.
OPEN = """
import json, resource, sys, time
from transformer.errors import TransformerError
from transformer.hub import checkpoint
from transformer.hub.resolve import fetch
from transformer.data.tokenizer import Tokenizer

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

for path in json.load(sys.stdin):
    before, begin = peak(), time.process_time()
    try:
        checkpoint.load(fetch(path))[1].vocab_size
        said = None
    except TransformerError as error:
        said = str(error)
    except BaseException as error:
        said = f"{type(error).__name__}\\n{error}"
    print(json.dumps([said, peak() - before, time.process_time() - begin]), flush=True)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_directory(tmp_path_factory.mktemp("model"))


@pytest.fixture
def opened(tmp_path: Path, model: Path) -> Callable[[dict[str, Path]], dict[str, str | None]]:
    """What is said of each path; a path must cost less than 200 MB and 5 seconds."""

    def opened(paths: dict[str, Path]) -> dict[str, str | None]:
        everything = [model, *paths.values()]  # a good one first, which imports and warms up
        done = subprocess.run(
            [sys.executable, "-c", OPEN],
            input=json.dumps(list(map(str, everything))),
            cwd=ROOT,
            capture_output=True,
            text=True,
            env={"XDG_CACHE_HOME": str(tmp_path), "TMPDIR": str(tmp_path), "RUST_BACKTRACE": "0"},
        )
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(answers) == len(everything), f"{list(paths)[len(answers) - 1]} ended the process: {done.stderr}"
        for name, (said, memory, seconds) in zip(paths, answers[1:], strict=True):
            assert memory < 200 and seconds < 5, f"{name}: {memory} MB, {seconds:.1f} s"
            assert said is None or "\n" not in said, f"{name}: {said}"
        assert answers[0][0] is None
        return {name: said for name, (said, _, _) in zip(paths, answers[1:], strict=True)}

    return opened


def copy_of(model: Path, path: Path, **files: bytes | dict[str, Any]) -> Path:
    """The model with other files, given by their names without dots; of JSON only the given fields are others."""
    names = {name.replace(".", "_"): name for name in (file.name for file in model.iterdir())}
    path.mkdir()
    for file in model.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    for key, content in files.items():
        name = names.get(key, key)
        if isinstance(content, dict):
            content = json.dumps({**json.loads((model / name).read_text()), **content}).encode()
        (path / name).write_bytes(content)
    return path


def refused(said: dict[str, str | None], words: dict[str, str]) -> None:
    for name, word in words.items():
        assert said[name] is not None and word in str(said[name]), f"{name}: {said[name]}"


# ---- archives ----


def header(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, **more: object) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    for key, value in more.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def test_archives(tmp_path: Path, model: Path, opened) -> None:
    good = pack(model, tmp_path / "good.tar").read_bytes()
    sparse = bytearray(header("model.safetensors", tarfile.GNUTYPE_SPARSE, 512))
    sparse[483:495] = b"77777777777\0"  # the size that it would have: 8 GB
    sparse[148:156] = b"%06o\0 " % (sum(sparse[:148]) + 8 * 32 + sum(sparse[156:]))
    archives = {
        "good": good,
        "gzipped": gzip.compress(good),
        "link": header("config.json", tarfile.SYMTYPE, linkname="/etc/passwd") + bytes(1024),
        "hard link": header("config.json", tarfile.LNKTYPE, linkname="/etc/passwd") + bytes(1024),
        "device": header("config.json", tarfile.CHRTYPE, devmajor=1, devminor=3) + bytes(1024),
        "pipe": header("config.json", tarfile.FIFOTYPE) + bytes(1024),
        "many": gzip.compress(header("x") * 100_000, 1),
        "sparse": bytes(sparse) + bytes(1024),
        "bomb": gzip.compress(header("model.safetensors", size=2**28) + bytes(2**28), 1),
        "unwanted bomb": gzip.compress(header("notes.txt", size=2**28) + bytes(2**28), 1),
        "size": header("model.safetensors", size=2**40) + bytes(1024),
        "negative": header("model.safetensors", size=-(2**20)) + bytes(1024),
        "long name": header("a", tarfile.GNUTYPE_LONGNAME, 2**33) + bytes(2**16),
        "extended": header("a", tarfile.XHDTYPE, 2**33) + bytes(2**16),
        "cut": good[: len(good) // 2],
        "cut gzip": gzip.compress(good)[:5000],
        "empty": b"",
        "xz": b"\xfd7zXZ\0" + bytes(100),
    }
    paths = {}
    for name, content in archives.items():
        paths[name] = tmp_path / f"{name}.tar"
        paths[name].write_bytes(content)
    said = opened(paths)
    assert said["good"] is None and said["gzipped"] is None
    nothing = dict.fromkeys(["link", "hard link", "device", "pipe"], "no config.json in it")
    more = dict.fromkeys(["sparse", "bomb", "unwanted bomb", "size", "negative"], "more than such an archive can")
    none = dict.fromkeys(["long name", "extended", "cut", "cut gzip", "empty", "xz"], "not a tar that can be read")
    refused(said, nothing | more | none | {"many": "more than 10,000 files"})
    left = [path for path in tmp_path.iterdir() if path.name.startswith("decoder-only-transformer-model-")]
    assert not left, "the process that opened them has ended"


# ---- weights ----


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(dtype: str = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_weights(tmp_path: Path, model: Path, opened) -> None:
    first = {"a": tensor(), "b": tensor(offsets=(2, 6))}
    files = {
        "longer than the file": safetensors({}, length=2**60),
        "too long": safetensors(b" " * 2**10, length=2**25),
        "overlap": safetensors(first, bytes(6)),
        "shape": safetensors({"a": tensor(shape=(10**6, 10**6))}, bytes(4)),
        "overflow": safetensors({"a": tensor(shape=(2**62, 2**62), offsets=(0, 0))}),
        "negative": safetensors({"a": tensor(shape=(-1,))}, bytes(4)),
        "dtype": safetensors({"a": tensor("X9")}, bytes(4)),
        "nested": safetensors(b"[" * 10**6),
        "no text": safetensors(b"\xff" * 64),
        "empty": b"",
        "integers": (model / "model.safetensors").read_bytes().replace(b'"F32"', b'"I32"'),
    }
    said = opened({name: copy_of(model, tmp_path / name, model_safetensors=file) for name, file in files.items()})
    refused(said, {**dict.fromkeys(files, "damaged"), "integers": "expected floating-point numbers"})


def test_an_index_names_files_beside_it(tmp_path: Path, model: Path, opened) -> None:
    maps: dict[str, object] = {
        "above": {"a": "../model/model.safetensors"},
        "absolute": {"a": "/etc/passwd"},
        "pickle": {"a": "pytorch_model.bin"},
        "number": {"a": 7},
        "list": ["model.safetensors"],
        "nothing": {},
        "lost": {"a": "model-00001-of-00002.safetensors"},
    }
    paths = {}
    for name, weight_map in maps.items():
        paths[name] = copy_of(model, tmp_path / name)
        (paths[name] / "model.safetensors").unlink()
        (paths[name] / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    beside = dict.fromkeys(["above", "absolute", "pickle", "number"], "expected safetensors files beside it")
    refused(opened(paths), beside | {"list": "no weight_map", "nothing": "no weight_map", "lost": "lacks model-00001"})


# ---- configurations ----


def test_configurations(tmp_path: Path, model: Path, opened) -> None:
    sizes = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    changes: dict[str, dict[str, Any]] = {f"huge {name}": {name: HUGE} for name in sizes}
    changes |= {f"endless {name}": {name: 10**30} for name in [*sizes, "max_position_embeddings"]}
    wrong = [-1, 0, 1.5, "64", True, float("nan"), float("inf"), [64], {"a": 1}]
    changes |= {f"size {value!r}"[:40].replace("/", ""): {"hidden_size": value} for value in wrong}
    changes |= {f"layers {value!r}": {"num_hidden_layers": value} for value in wrong[:6]}
    changes |= {
        "table": {"max_position_embeddings": HUGE},
        "rope": {"rope_parameters": {"rope_type": "default", "rope_theta": float("nan")}},
        "rope word": {"rope_parameters": {"rope_type": "default", "rope_theta": "much"}},
        "epsilon": {"rms_norm_eps": "1e-6"},
        "negative epsilon": {"rms_norm_eps": -1.0},
        "tie": {"tie_word_embeddings": "false"},
        "kind": {"model_type": ["qwen3"]},
        "own": {"model_type": "decoder_only_transformer", "decoder_only_transformer": {"vocab_size": HUGE}},
        "own nothing": {"model_type": "decoder_only_transformer"},
        "extra": {"decoder_only_transformer": {"n_layers": HUGE}},
        "extra list": {"decoder_only_transformer": [1]},
        "extra unknown": {"decoder_only_transformer": {"code": "x"}},
        "extra padding": {"decoder_only_transformer": {"pad_token_id": 10**30}},
    }
    paths = {name: copy_of(model, tmp_path / name, config_json=change) for name, change in changes.items()}
    for name, content in {"nested": b'{"a":' * 10**6, "digits": b'{"vocab_size": ' + b"1" * 10**6 + b"}"}.items():
        paths[name] = copy_of(model, tmp_path / name, config_json=content)
    paths["list"] = copy_of(model, tmp_path / "list", config_json=b"[]")
    paths["bytes"] = copy_of(model, tmp_path / "bytes", config_json=b"\xff\xfe{}")
    paths["long"] = copy_of(model, tmp_path / "long", config_json=b" " * 2**25)
    said = opened(paths)
    refused(said, dict.fromkeys(paths, ""))
    refused(said, {f"huge {name}": "parameters, the files hold" for name in sizes[:4]})
    refused(
        said, {"table": "a context of", "nested": "not valid JSON", "digits": "not valid JSON", "list": "an object"}
    )


# ---- tokenizers ----


def test_tokenizers(tmp_path: Path, model: Path, opened) -> None:
    fields = json.loads((model / "tokenizer.json").read_text())
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    between = {"type": "Replace", "pattern": {"Regex": "x*"}, "content": "-"}
    padding = {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 1, "pad_type_id": 0, "pad_token": "<|pad|>"}
    truncation = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}

    def charsmap(*parts: bytes) -> dict[str, str]:
        return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(b"".join(parts)).decode()}

    changes: dict[str, tuple[dict[str, Any], str | None]] = {
        "ids": ({"model": {**fields["model"], "vocab": {**fields["model"]["vocab"], "z": 2**31}}}, "ids up to"),
        "search": ({"pre_tokenizer": {**split, "pattern": {"Regex": "(a+)+$"}}}, "may take forever"),
        "choice": ({"normalizer": {"type": "Replace", "pattern": {"Regex": "(a|a)*b"}, "content": ""}}, "forever"),
        "long pattern": ({"pre_tokenizer": {**split, "pattern": {"Regex": "a" * 10**5}}}, "may take forever"),
        "doubling": ({"normalizer": {"type": "Sequence", "normalizers": [double] * 40}}, "times longer"),
        "between": ({"normalizer": {"type": "Sequence", "normalizers": [between] * 40}}, "times longer"),
        "prepend": ({"normalizer": {"type": "Prepend", "prepend": "a" * 10**6}}, "times longer"),
        "decoder": ({"decoder": {"type": "Sequence", "decoders": [double] * 40}}, "times longer"),
        "charsmap": ({"normalizer": charsmap((2**31).to_bytes(4, "little"), b"abcd" * 9)}, "not a tokenizer"),
        "charsmap short": ({"normalizer": charsmap(b"a")}, "not a tokenizer"),
        "padding": ({"padding": padding}, None),
        "truncation": ({"truncation": truncation}, None),
    }
    paths = {name: copy_of(model, tmp_path / name, tokenizer_json=change) for name, (change, _) in changes.items()}
    for name, content in {"nested": b'{"normalizer":[' * 10**5, "bytes": b"\xff" * 100, "empty": b""}.items():
        paths[name] = copy_of(model, tmp_path / name, tokenizer_json=content)
        changes[name] = ({}, "not a tokenizer")
    paths["settings"] = copy_of(model, tmp_path / "settings", tokenizer_config_json=b"[1]")
    paths["end"] = copy_of(model, tmp_path / "end", tokenizer_config_json={"eos_token": {"a": 1}, "pad_token": 3})
    paths["ends"] = copy_of(model, tmp_path / "ends", generation_config_json={"eos_token_id": [10**30, "a", -1, None]})
    paths["template"] = copy_of(model, tmp_path / "template", **{"chat_template.jinja": b"a" * 2**21})
    with open(copy_of(model, tmp_path / "hole") / "tokenizer.json", "wb") as file:
        file.truncate(2**40)  # no disk is used
    paths["hole"] = tmp_path / "hole"
    said = opened(paths)
    refused(said, {name: word for name, (_, word) in changes.items() if word is not None})
    refused(said, {"settings": "an object", "template": "any chat template", "hole": "more than any tokenizer"})
    assert said["padding"] is None and said["truncation"] is None and said["end"] is None and said["ends"] is None


def test_expressions_of_known_tokenizers_are_not_suspicious() -> None:
    known = [
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{M}]*[\p{Ll}\p{M}]+(?i:'s|'t)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s+(?!\S)",
        r" ?[^(\s|[.,!?…。，、।۔،])]+",
        r"(?=(\d{3})+(?!\d))",
        r"[]()*|]+\((?:[^)]|\+)?",
    ]
    assert not any(map(repeats_choices, known))
    hostile = [r"(a+)+$", r"(a|a)*c", r"((a*)b)*", r"(?:a{1,})+", r"(?:(?:x|y)z){2,}", r"[^\]](a+)*", r"(a?b+)*+"]
    assert all(map(repeats_choices, hostile))
