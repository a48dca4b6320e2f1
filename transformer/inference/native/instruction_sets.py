"""The sets of instructions that `kernel.c` is compiled for, and which of them this processor has."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from transformer.errors import ConfigError

VARIABLE = "NATIVE_INSTRUCTIONS"  # of the environment: the name of the set to use


@dataclass(frozen=True)
class InstructionSet:
    """One way to compile `kernel.c`."""

    name: str
    machine: str  # as platform.machine() has it
    needed: frozenset[str]  # what a processor must have, as Linux names it
    flags: tuple[str, ...]  # of the compiler: those instructions and no others


def _set(name: str, machine: str, needed: str, flags: str) -> InstructionSet:
    return InstructionSet(name, machine, frozenset(needed.split()), tuple(flags.split()))


_AVX2 = "avx2 fma f16c bmi1 bmi2"
_AVX2_FLAGS = "-mavx2 -mfma -mf16c -mbmi -mbmi2"
_AVX512 = "avx512f avx512bw avx512cd avx512dq avx512vl avx512_vnni"
_AVX512_FLAGS = "-mavx512f -mavx512bw -mavx512cd -mavx512dq -mavx512vl -mavx512vnni"

# The fastest first.
INSTRUCTION_SETS = (
    _set("avx512", "x86_64", f"{_AVX2} {_AVX512}", f"{_AVX2_FLAGS} {_AVX512_FLAGS}"),
    _set("avx2-vnni", "x86_64", f"{_AVX2} avx_vnni", f"{_AVX2_FLAGS} -mavxvnni"),
    _set("avx2", "x86_64", _AVX2, _AVX2_FLAGS),
    _set("neon", "aarch64", "asimd asimddp", "-march=armv8.2-a+dotprod"),
)


def machine() -> str:
    """The architecture of this processor: x86_64, aarch64, or another one's name."""
    return {"arm64": "aarch64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine())


def sets_of_machine() -> list[InstructionSet]:
    """Those of this architecture, also those that this processor lacks."""
    return [each for each in INSTRUCTION_SETS if each.machine == machine()]


def sets_of_processor() -> list[InstructionSet]:
    """Those that this processor has, the fastest first."""
    return [each for each in sets_of_machine() if not missing(each)]


def missing(instructions: InstructionSet) -> set[str]:
    """What of a set this processor lacks."""
    return set(instructions.needed) - set(processor_features().split())


def chosen_sets() -> list[InstructionSet]:
    """Those to try, the fastest first: the one that $NATIVE_INSTRUCTIONS names, else all that this processor has.

    Raises:
        ConfigError: if the variable names none, or one that this processor lacks.
    """
    name = os.environ.get(VARIABLE)
    if not name:
        return sets_of_processor()
    for each in sets_of_machine():
        if each.name == name:
            if lacking := missing(each):
                raise ConfigError(f"{VARIABLE} is {name!r}, but this processor lacks {', '.join(sorted(lacking))}.")
            return [each]
    known = ", ".join(each.name for each in sets_of_machine()) or "none"
    raise ConfigError(f"{VARIABLE} is {name!r}; expected one of this machine's instruction sets: {known}.")


def processor_features() -> str:
    """What the processor can do, as Linux names it; on other systems what all Macs with Apple's processors can."""
    if sys.platform == "darwin" and machine() == "aarch64":
        return "asimd asimddp"
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            return next((line.partition(":")[2] for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        return ""
