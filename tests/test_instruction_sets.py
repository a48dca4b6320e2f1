"""Which set of instructions the kernel in C uses, and where its compiled libraries come from."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from models import tiny_model
from readme_commands import ROOT
from test_backends import TOLERANCE

from transformer.cli import build_kernel
from transformer.errors import ConfigError
from transformer.inference import TorchBackend, select_backend
from transformer.inference.native import NativeBackend, compiled_kernel, instruction_sets, load_kernel
from transformer.inference.native.compiled_kernel import FOLDER_VARIABLE, file_name
from transformer.inference.native.instruction_sets import (
    INSTRUCTION_SETS,
    VARIABLE,
    InstructionSet,
    chosen_sets,
    sets_of_machine,
    sets_of_processor,
)

needs_kernel = pytest.mark.skipif(not sets_of_processor(), reason="no kernel is for this processor")
AVX2 = "avx2 fma f16c bmi1 bmi2"
AVX512 = "avx512f avx512bw avx512cd avx512dq avx512vl"


@pytest.fixture(scope="module")
def built(quick_compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the kernel for every set of this machine's architecture, made by the command."""
    folder = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CC", quick_compiler)
        assert build_kernel.main([str(folder)]) == 0
    return folder


@pytest.mark.parametrize(
    ("processor", "features", "expected"),
    [
        ("x86_64", f"fpu {AVX2} {AVX512} avx512_vnni", ["avx512", "avx2"]),
        ("x86_64", f"{AVX2} {AVX512}", ["avx2"]),
        ("x86_64", f"{AVX2} avx_vnni", ["avx2-vnni", "avx2"]),
        ("x86_64", "fpu sse2 avx", []),
        ("aarch64", "fp asimd asimddp i8mm", ["neon"]),
        ("arm64", "fp asimd", []),
        ("riscv64", AVX2, []),
    ],
)
def test_the_sets_of_a_processor_are_the_fastest_first(
    processor: str, features: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instruction_sets.platform, "machine", lambda: processor)
    monkeypatch.setattr(instruction_sets, "processor_features", lambda: features)
    assert [each.name for each in sets_of_processor()] == expected


def test_a_mac_with_apples_processor_has_neon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instruction_sets.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(instruction_sets.sys, "platform", "darwin")
    assert [each.name for each in chosen_sets()] == ["neon"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("avx3", "'avx3'; expected one of this machine's instruction sets: avx512, avx2-vnni, avx2"),
        ("neon", "'neon'; expected one of"),
        ("avx512", "'avx512', but this processor lacks avx512_vnni"),
    ],
)
def test_a_set_that_cannot_be_had_is_refused(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instruction_sets.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(instruction_sets, "processor_features", lambda: f"{AVX2} {AVX512}")
    monkeypatch.setenv(VARIABLE, name)
    with pytest.raises(ConfigError, match=message):
        select_backend(tiny_model(), "fp32")


def test_a_set_is_asked_for_without_a_compiler(
    instructions: InstructionSet, no_kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "false")
    with pytest.raises(ConfigError, match=f"{VARIABLE} is '{instructions.name}', but .* cannot be compiled here"):
        select_backend(tiny_model(), "fp32")
    monkeypatch.delenv(VARIABLE)
    assert type(select_backend(tiny_model(), "fp32")) is TorchBackend


def test_the_set_that_is_asked_for_is_used(
    instructions: InstructionSet, no_kernel: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(built))
    loaded = load_kernel()
    assert loaded is not None and Path(loaded._name) == built / file_name(instructions)


@needs_kernel
def test_a_compiler_that_lacks_a_set_compiles_the_next(
    no_kernel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best, *others = sets_of_processor()
    if not others:
        pytest.skip(f"this processor has {best.name} alone")
    compiler = tmp_path / "old-compiler"
    compiler.write_text(f'#!/bin/sh\ncase "$*" in *{best.flags[-1]}*) exit 1;; esac\nexec gcc "$@" -O0\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    loaded = load_kernel()
    assert loaded is not None and Path(loaded._name).name == file_name(others[0])


# ---- compilers ----


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@torch.no_grad()
def test_each_compiler_makes_a_kernel_that_computes_the_model(
    compiler: str, instructions: InstructionSet, no_kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without OpenMP and without a warning."""
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}")
    monkeypatch.setenv("CC", f"{compiler} -Wall -Wextra -Werror")
    for preset in ("paper", "modern"):
        model, tokens = tiny_model(preset), torch.arange(40).view(2, 20)
        expected = model(tokens)
        for precision, tolerance in TOLERANCE.items():
            assert (NativeBackend(model, precision)(tokens) - expected).norm() <= tolerance * expected.norm()


DOT = """
#include "vectors.h"

void dots(const uint8_t *bytes, const int8_t *signs, int32_t *sums) {
    uint8_t biased[64];
    for (int i = 0; i < 64; i++) biased[i] = bytes[i] - 128 + BYTE_BIAS;
    float as_floats[LANES]; /* exact below 2^24 */
    store_floats(as_floats, ints_to_floats(dot(broadcast_int(sums[0]), load_bytes(biased), load_bytes(signs))));
    for (int i = 0; i < LANES; i++) sums[i] = as_floats[i];
}
"""


def test_dot_is_exact_where_16_bits_are_too_few(instructions: InstructionSet, tmp_path: Path) -> None:
    (tmp_path / "dot.c").write_text(DOT)
    command = ["gcc", "-O2", "-shared", "-fPIC", f"-I{compiled_kernel.SOURCE.parent}", *instructions.flags, "dot.c"]
    subprocess.run([*command, "-o", "dot.so"], cwd=tmp_path, check=True)
    library = ctypes.CDLL(str(tmp_path / "dot.so"))
    bias = 128 if instructions.machine == "x86_64" else 0
    for byte in (0, 1, 127, 128, 255):
        for sign in (-127, -1, 0, 1, 127):
            bytes_, signs = [byte] * 63 + [3], [sign] * 63 + [5]
            sums = (ctypes.c_int32 * 16)(7)
            library.dots((ctypes.c_uint8 * 64)(*bytes_), (ctypes.c_int8 * 64)(*signs), sums)
            products = [(a - 128 + bias) * b for a, b in zip(bytes_, signs, strict=True)]
            assert [*sums] == [7 + sum(products[4 * column : 4 * column + 4]) for column in range(16)]


# ---- compiled ahead ----


@needs_kernel
@pytest.mark.parametrize("place", ["the variable", "beside the source"])
def test_what_was_built_ahead_needs_no_compiler(
    place: str, no_kernel: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "false")
    if place == "the variable":
        monkeypatch.setenv(FOLDER_VARIABLE, str(built))
    else:
        shutil.copytree(built, compiled_kernel.AHEAD)
    assert {path.name for path in built.iterdir()} == {file_name(each) for each in sets_of_machine()}
    assert type(select_backend(tiny_model(), "fp32")) is NativeBackend
    assert not no_kernel.exists()


@needs_kernel
def test_a_library_of_another_system_is_compiled_again(no_kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled_kernel.AHEAD.mkdir()
    for each in sets_of_machine():
        (compiled_kernel.AHEAD / file_name(each)).write_bytes(b"\x7fELF of another system")
    loaded = load_kernel()
    assert loaded is not None and no_kernel in Path(loaded._name).parents


def test_the_name_of_a_library_tells_sources_and_flags_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file_name(each) for each in INSTRUCTION_SETS}
    assert len(before) == len(INSTRUCTION_SETS)
    for path in compiled_kernel.SOURCE.parent.glob("*.[ch]"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(compiled_kernel, "SOURCE", tmp_path / "kernel.c")
    assert {file_name(each) for each in INSTRUCTION_SETS} == before
    with (tmp_path / "vectors_avx2.h").open("a") as header:
        header.write("\n")
    assert not {file_name(each) for each in INSTRUCTION_SETS} & before


@needs_kernel
@pytest.mark.parametrize(
    ("compiler", "problem"),
    [("false", "ended with status 1"), ("no-such-cc", "No such file"), ("true", "it wrote no library")],
)
def test_the_command_says_why_it_failed(
    compiler: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CC", compiler)
    assert build_kernel.main([str(tmp_path)]) == 1
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and problem in error and "set CC" in error
    assert not list(tmp_path.iterdir())


def test_the_command_on_another_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(instruction_sets.platform, "machine", lambda: "riscv64")
    assert build_kernel.main([str(tmp_path)]) == 1
    assert "x86_64 and aarch64, and this machine is riscv64" in capsys.readouterr().err


@needs_kernel
def test_the_image_has_the_kernel_when_it_is_built(quick_compiler: str, tmp_path: Path) -> None:
    """The command of cog.yaml, with links and temporary folders in place of BuildKit's mount and the image.

    Then a prediction without a compiler and without a cache."""
    config = yaml.safe_load((ROOT / "cog.yaml").read_text("utf-8"))
    (line,) = config["build"]["run"]
    mount, command = line.split(" ", 1)
    assert mount == "--mount=type=bind,source=transformer,target=/build/transformer"
    (folder,) = (each.split("=")[1] for each in config["environment"] if each.startswith(f"{FOLDER_VARIABLE}="))
    assert folder in command and not folder.startswith("/src"), "COPY . /src comes later"
    (build := tmp_path / "build").mkdir()
    (build / "transformer").symlink_to(ROOT / "transformer")
    image = tmp_path / "image"
    command = command.replace("cd /build ", f"cd {build} ").replace(folder, str(image))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "CC": quick_compiler}
    subprocess.run(["bash", "-c", command], env=environment, check=True, cwd=tmp_path, capture_output=True)
    assert {path.name for path in image.iterdir()} == {file_name(each) for each in sets_of_machine()}
    code = "from models import tiny_model; from transformer.inference import select_backend\n"
    code += "print(type(select_backend(tiny_model())))"
    environment |= {FOLDER_VARIABLE: str(image), "CC": "false", "XDG_CACHE_HOME": "/dev/null"}
    environment["PYTHONPATH"] = f"{ROOT}:{ROOT / 'tests'}"
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert "NativeBackend" in done.stdout
