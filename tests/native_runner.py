"""The kernel in C as a program of its own, for processors that an emulator has and for sanitizers."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from transformer.inference.native import NativeBackend
from transformer.inference.native.compiled_kernel import SOURCE

RUNNER = Path(__file__).with_name("native_runner.c")
_FLAGS = ("-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd", "-pthread", f"-I{SOURCE.parent}")


@dataclass(frozen=True)
class Target:
    """A compiler with its flags, and the program that runs what it makes."""

    name: str
    compiler: str
    flags: tuple[str, ...]
    emulator: tuple[str, ...] = ()
    features: frozenset[str] = frozenset()  # that this processor must have
    environment: dict[str, str] = field(default_factory=dict, hash=False)

    def build(self, folder: Path) -> Path:
        """The runner; skips if its compiler or emulator is missing here."""
        for program in (self.compiler, *self.emulator[:1]):
            if shutil.which(program) is None:
                pytest.skip(f"needs {program}, of the Debian packages gcc-aarch64-linux-gnu, qemu-user and clang")
        path = folder / "runner"
        command = [self.compiler, *_FLAGS, *self.flags, str(RUNNER), "-o", str(path), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return path


def dump(backend: NativeBackend, passes: Sequence[Pass], sequences: int, capacity: int, threads: int) -> bytes:
    """What native_runner.c reads."""
    arrays = {}
    for kept in backend.packed.arrays:
        address = kept.data_ptr() if isinstance(kept, Tensor) else ctypes.addressof(kept)
        size = kept.nbytes if isinstance(kept, Tensor) else ctypes.sizeof(kept)
        arrays[address] = ctypes.string_at(address, size)
    model = backend.packed.structure
    cache = backend.new_cache(sequences, capacity)
    scales = cache.keys[1].nbytes if len(cache.keys) > 1 else 0
    parts = [_numbers(len(arrays))]
    for address, data in arrays.items():
        parts += [_numbers(address, len(data)), data]
    parts.append(ctypes.string_at(ctypes.addressof(model), ctypes.sizeof(model)))
    parts.append(_numbers(cache.native.dtype, cache.native.capacity))
    parts.append(_numbers(cache.keys[0].nbytes, cache.values[0].nbytes, scales, threads, len(passes)))
    for each in passes:
        parts.append(_numbers(len(each.tokens), int(each.wanted), *each.tokens, *each.sequences, *each.positions))
    return b"".join(parts)


@dataclass(frozen=True)
class Pass:
    """Tokens that are read together, each of a sequence and at a position in it."""

    tokens: list[int]
    sequences: list[int]
    positions: list[int]
    wanted: bool  # their logits


def run(target: Target, program: Path, data: bytes, folder: Path) -> Tensor:
    """The wanted logits, one after the other."""
    (folder / "input").write_bytes(data)
    command = [*target.emulator, str(program), str(folder / "input"), str(folder / "output")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=target.environment or None)
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.frombuffer(bytearray((folder / "output").read_bytes()), dtype=torch.float32)


def _numbers(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(8, "little", signed=number < 0) for number in numbers)
