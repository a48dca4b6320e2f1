"""`kernel.c` as a library: compiled once on each kind of machine, and its structures.

Where it cannot be had, for want of the processor's instructions or of a C compiler, nothing is said: PyTorch serves.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
from ctypes import CDLL, POINTER, Structure, c_char_p, c_double, c_int, c_int64, c_void_p, sizeof
from functools import cache
from pathlib import Path

from transformer.errors import WriteError
from transformer.files import whole_file

logger = logging.getLogger("transformer")

SOURCE = Path(__file__).with_name("kernel.c")
_HEADER = SOURCE.with_name("threads.h")
_FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC"]
_FLAGS += ["-shared"]
_NEEDED = {"avx512f", "avx512bw", "avx512_vnni", "f16c"}  # as Linux names them
_SECONDS = 120  # that a compiler may take; it takes two

KINDS = {"fp32": 0, "bf16": 1, "fp16": 2, "int8": 3}
LAYER_NORM, RMS_NORM = 1, 2
ACTIVATIONS = {"relu": 0, "gelu": 1, "swiglu": 2}
DONE, OUT_OF_MEMORY, NO_SUCH_TOKEN, SEQUENCE_TOO_LONG, UNKNOWN_CHOICE = range(5)


def _fields(**kinds: str) -> list[tuple]:
    kind_of = {"pointers": c_void_p, "integers": c_int64, "numbers": c_double}
    return [(name, kind_of[kind]) for kind, names in kinds.items() for name in names.split()]


class Product(Structure):
    _fields_ = _fields(pointers="weight scale sum bias", integers="kind inputs outputs")


class Norm(Structure):
    _fields_ = _fields(pointers="weight bias", integers="kind", numbers="eps")


class Layer(Structure):
    _fields_ = [
        *((name, Norm) for name in ("attention_norm", "query_norm", "key_norm", "feed_forward_norm")),
        *((name, Product) for name in ("project", "output", "up", "down")),
    ]


class Model(Structure):
    _fields_ = [
        *_fields(
            integers="vocabulary context n_layers width n_heads n_kv_heads key_width value_width hidden "
            "norm_first activation",
            numbers="embedding_scale",
            pointers="embedding table cosine sine layers",
        ),
        ("final_norm", Norm),
        ("head", Product),
    ]


class Cache(Structure):
    _fields_ = _fields(pointers="keys values key_scales value_scales", integers="kind capacity")


class _LayoutEntry(Structure):
    _fields_ = [("name", c_char_p), ("value", c_int64)]


def expected_layout() -> dict[str, int]:
    """Sizes and offsets of the structures above, and the constants, by their names in `kernel.c`."""
    layout = {kind.upper(): number for kind, number in (*KINDS.items(), *ACTIVATIONS.items())}
    layout |= {"LAYER_NORM": LAYER_NORM, "RMS_NORM": RMS_NORM, "OUT_OF_MEMORY": OUT_OF_MEMORY}
    layout |= {"NO_SUCH_TOKEN": NO_SUCH_TOKEN, "SEQUENCE_TOO_LONG": SEQUENCE_TOO_LONG, "UNKNOWN_CHOICE": UNKNOWN_CHOICE}
    for structure in (Product, Norm, Layer, Model, Cache):
        layout[structure.__name__] = sizeof(structure)
        for name, *_ in structure._fields_:
            layout[f"{structure.__name__}.{name}"] = getattr(structure, name).offset
    return layout


def compiled_layout(library: CDLL) -> dict[str, int]:
    """The same as the C compiler has it."""
    entries = (_LayoutEntry * (len(expected_layout()) + 1)).in_dll(library, "layout")
    found = {}
    for entry in entries:
        if entry.name is None:
            break
        found[entry.name.decode()] = entry.value
    return found


@cache
def load_kernel() -> CDLL | None:
    """The compiled kernel, compiled now if it is not in the cache yet; None where it cannot be had."""
    if missing_instructions():
        return None
    flags = _processor_flags()
    sources = SOURCE.read_bytes() + _HEADER.read_bytes()
    key = hashlib.sha256(sources + " ".join(_FLAGS).encode() + flags.encode()).hexdigest()[:16]
    try:
        path = _cache() / f"kernel-{key}.so"
        if not path.exists():
            with whole_file(path) as partial:
                _compile(partial)
        loaded = CDLL(str(path))
    except (OSError, WriteError, subprocess.SubprocessError, RuntimeError):  # RuntimeError: of a user without a home
        return None
    expected, compiled = expected_layout(), compiled_layout(loaded)
    if different := sorted(name for name, _ in expected.items() ^ compiled.items()):
        name = different[0]
        logger.warning(
            "The C backend is not used: %s is %s in kernel.c and %s in kernel.py; expected the same. PyTorch computes.",
            name,
            compiled.get(name, "missing"),
            expected.get(name, "missing"),
        )
        return None
    loaded.read_tokens.argtypes = [POINTER(Model), POINTER(Cache), c_int64, *[c_void_p] * 4, c_int]
    return loaded


def missing_instructions() -> set[str]:
    """Instructions that the kernel needs and this processor lacks."""
    return _NEEDED - set(_processor_flags().split())


def _compile(target: Path) -> None:
    """Raises: OSError or subprocess.SubprocessError if there is no compiler that can."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or "cc"
    command = [*compiler.split(), *_FLAGS, "-o", str(target), str(SOURCE), "-lm"]
    subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "decoder-only-transformer" / "native"


def _processor_flags() -> str:
    """What Linux says the processor can do; nothing on other systems."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            return next((line.partition(":")[2] for line in file if line.startswith("flags")), "")
    except OSError:
        return ""
