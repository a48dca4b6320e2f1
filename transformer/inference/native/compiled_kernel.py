"""`kernel.c` compiled: ahead of time where a folder has it, else once on each machine, into the user's cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from transformer.errors import ConfigError
from transformer.files import atomic_write, cache_folder
from transformer.inference.native.instruction_sets import InstructionSet, machine, sets_of_machine

SOURCE = Path(__file__).with_name("kernel.c")
AHEAD = SOURCE.with_name("built")  # where `make kernel` puts it, and a wheel has it
FOLDER_VARIABLE = "NATIVE_KERNELS"  # of the environment: another such folder, that of the container image
_FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd", "-fPIC", "-shared", "-pthread")
_DARWIN_FLAGS = ("-undefined", "dynamic_lookup")  # of OpenMP's functions, which PyTorch has loaded, if at all
_SECONDS = 120  # that a compiler may take; it takes two


def compiled_paths(instructions: InstructionSet) -> Iterator[Path]:
    """Files that hold the kernel for a set of instructions, the one in the cache last, compiled now if it is missing.

    Raises: ConfigError or WriteError if it cannot be compiled or kept, RuntimeError for a user without a home.
    """
    name = file_name(instructions)
    for folder in (os.environ.get(FOLDER_VARIABLE), AHEAD):
        if folder and (path := Path(folder) / name).exists():
            yield path
    path = cache_folder() / "native" / name
    if not path.exists():
        with atomic_write(path) as partial:
            compile_kernel(instructions, partial)
    yield path


def build_ahead(folder: Path) -> list[Path]:
    """Compile the kernel for every set of instructions of this architecture, whatever this processor has.

    Raises:
        ConfigError: if the architecture has none, or a compiler is missing or fails.
        WriteError: if the folder cannot be written to.
    """
    if not sets_of_machine():
        raise ConfigError(f"the kernel in C is for x86_64 and aarch64, and this machine is {machine()}.")
    paths = []
    for instructions in sets_of_machine():
        path = folder / file_name(instructions)
        with atomic_write(path) as partial:
            compile_kernel(instructions, partial)
        paths.append(path)
    return paths


def file_name(instructions: InstructionSet) -> str:
    """It tells sources, flags and systems apart: what was compiled from others is not found."""
    sources = b"".join(path.read_bytes() for path in sorted(SOURCE.parent.glob("*.[ch]")))
    flags = " ".join([*_FLAGS, *instructions.flags, sys.platform, machine()])
    key = hashlib.sha256(sources + flags.encode()).hexdigest()[:16]
    return f"kernel-{instructions.name}-{key}.so"


def compile_kernel(instructions: InstructionSet, target: Path) -> None:
    """Raises: ConfigError if there is no compiler that can."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or "cc"
    system = _DARWIN_FLAGS if sys.platform == "darwin" else ()
    command = [*compiler.split(), *_FLAGS, *instructions.flags, *system, "-o", str(target), str(SOURCE), "-lm"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS)
        said = done.stderr.decode(errors="replace").strip().splitlines()
        problem = (said or [f"it ended with status {done.returncode}"])[0] if done.returncode else "it wrote no library"
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if not target.exists():
        raise ConfigError(
            f"the compiler {compiler!r} cannot compile the kernel for {instructions.name}: {problem}. "
            "Install gcc 11 or a later one, or set CC to another compiler."
        )
