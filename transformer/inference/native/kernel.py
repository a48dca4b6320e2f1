"""Loads the compiled `kernel.c`, and declares its structures.

Without a suitable processor or a C compiler there is no kernel, and the PyTorch backend is used.
"""

from __future__ import annotations

import logging
import os
from ctypes import CDLL, POINTER, Structure, c_char_p, c_double, c_int, c_int64, c_void_p, sizeof
from functools import cache

from transformer.errors import ConfigError, WriteError
from transformer.inference.native.compiled_kernel import compiled_paths
from transformer.inference.native.instruction_sets import VARIABLE, InstructionSet, chosen_sets

logger = logging.getLogger("transformer")

DTYPES = {"fp32": 0, "bf16": 1, "fp16": 2, "int8": 3}
LAYER_NORM, RMS_NORM = 1, 2
ACTIVATIONS = {"relu": 0, "gelu": 1, "swiglu": 2, "geglu": 3}
DONE, OUT_OF_MEMORY, NO_SUCH_TOKEN, SEQUENCE_TOO_LONG, UNKNOWN_CHOICE = range(5)


def _fields(**kinds: str) -> list[tuple]:
    kind_of = {"pointers": c_void_p, "integers": c_int64, "numbers": c_double}
    return [(name, kind_of[kind]) for kind, names in kinds.items() for name in names.split()]


class Linear(Structure):
    _fields_ = _fields(pointers="weight scale sum bias", integers="dtype inputs outputs")


class Norm(Structure):
    _fields_ = _fields(pointers="weight bias", integers="kind", numbers="eps")


class Layer(Structure):
    _fields_ = [
        *((name, Norm) for name in ("attention_norm", "feed_forward_norm")),
        *((name, Norm) for name in ("attention_output_norm", "feed_forward_output_norm")),
        *((name, Norm) for name in ("query_norm", "key_norm", "joint_query_norm", "joint_key_norm")),
        *((name, Linear) for name in ("qkv", "output", "up", "down")),
        *_fields(pointers="cosine sine", integers="window"),
    ]


class Model(Structure):
    _fields_ = [
        *_fields(
            integers="vocab_size context_length n_layers d_model n_heads n_kv_heads head_dim d_feed_forward "
            "normalize_sums activation embedding_dtype",
            numbers="embedding_scale score_scale",
            pointers="embedding position_embedding layers",
        ),
        ("final_norm", Norm),
        ("head", Linear),
    ]


class Cache(Structure):
    _fields_ = _fields(pointers="keys values key_scales value_scales", integers="dtype capacity")


class _LayoutEntry(Structure):
    _fields_ = [("name", c_char_p), ("value", c_int64)]


def expected_layout() -> dict[str, int]:
    """Sizes and offsets of the structures above, and the constants, by their names in `kernel.c`."""
    layout = {name.upper(): number for name, number in (*DTYPES.items(), *ACTIVATIONS.items())}
    layout |= {"LAYER_NORM": LAYER_NORM, "RMS_NORM": RMS_NORM, "OUT_OF_MEMORY": OUT_OF_MEMORY}
    layout |= {"NO_SUCH_TOKEN": NO_SUCH_TOKEN, "SEQUENCE_TOO_LONG": SEQUENCE_TOO_LONG, "UNKNOWN_CHOICE": UNKNOWN_CHOICE}
    for structure in (Linear, Norm, Layer, Model, Cache):
        layout[structure.__name__] = sizeof(structure)
        for name, *_ in structure._fields_:
            layout[f"{structure.__name__}.{name}"] = getattr(structure, name).offset
    return layout


def compiled_layout(library: CDLL) -> dict[str, int]:
    """The same, as compiled."""
    entries = (_LayoutEntry * (len(expected_layout()) + 1)).in_dll(library, "layout")
    found = {}
    for entry in entries:
        if entry.name is None:
            break
        found[entry.name.decode()] = entry.value
    return found


def load_kernel() -> CDLL | None:
    """The compiled kernel, which is compiled now if necessary; None if there is none for this machine.

    Raises:
        ConfigError: if $NATIVE_INSTRUCTIONS names an instruction set for which no kernel can be loaded.
    """
    sets = tuple(chosen_sets())
    kernel = first_that_loads(sets)
    if kernel is None and os.environ.get(VARIABLE):
        raise ConfigError(
            f"{VARIABLE} is {sets[0].name!r}, but its kernel was not compiled ahead and cannot be compiled here. "
            "Install gcc, set CC, or unset the variable."
        )
    return kernel


@cache
def first_that_loads(sets: tuple[InstructionSet, ...]) -> CDLL | None:
    """The kernel for the first of these instruction sets for which one can be loaded; cached per process."""
    problem: Exception | None = None
    for instructions in sets:
        try:
            for path in compiled_paths(instructions):
                if (kernel := _load(str(path))) is not None:
                    return kernel
        except (OSError, ConfigError, WriteError, RuntimeError) as error:  # RuntimeError: a user without a home
            problem = error
    if problem:
        logger.info("PyTorch computes, which is slower: no kernel in C could be compiled. %s", problem)
    return None


def _load(path: str) -> CDLL | None:
    """None if the file is not a library for this system, or if its structures differ from those of this module."""
    try:
        loaded = CDLL(path)
    except OSError:
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
    loaded.forward.argtypes = [POINTER(Model), POINTER(Cache), c_int64, *[c_void_p] * 4, c_int]
    return loaded
