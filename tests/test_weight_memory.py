"""A model of a file in bf16 or fp16: it computes what it does in fp32, and its weights are not held twice."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import tiny_model, tiny_tokenizer
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from benchmarks.shapes import write_shape
from transformer.hub import checkpoint
from transformer.inference import CompiledBackend, NativeBackend, TorchBackend, quantize
from transformer.inference.native import load_kernel
from transformer.inference.weight_memory import HugePageMemory, UnchangedMappings, mapped_again

RESIDENT = """
import sys, torch
from pathlib import Path

def resident(name):
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(name))) * 1024

"""
ROUNDED = """
from transformer.inference.native.packed_model import quantized_blocks
from transformer.inference.quantized_linear import Int8Linear
weight = torch.ones(32768, 2048, dtype=torch.bfloat16)
pack = {"C": quantized_blocks, "FBGEMM": lambda weight: Int8Linear(weight, None)}[sys.argv[1]]
pack(weight[:64])  # opens the libraries
Path("/proc/self/clear_refs").write_text("5")  # forget the peak
before = resident("VmRSS")
kept = pack(weight)
print(weight.numel(), resident("VmHWM") - before)
"""
MEASURED = """
from transformer.hub import checkpoint
from transformer.inference import BACKEND

BACKEND(checkpoint.load_model(sys.argv[2], keep_half=True), "int8")  # compiles, and opens the libraries
Path("/proc/self/clear_refs").write_text("5")  # forget the peak
before = resident("VmRSS")
backend = BACKEND(checkpoint.load_model(sys.argv[1], keep_half=True), "int8")
print(resident("VmHWM") - before, resident("VmRSS") - before)
"""


def directory_in_half(path: Path, dtype: torch.dtype = torch.bfloat16, **sizes: object) -> Path:
    checkpoint.save(tiny_model(**sizes), tiny_tokenizer(), path)
    state = load_file(path / "model.safetensors")
    save_file({name: tensor.to(dtype) for name, tensor in state.items()}, path / "model.safetensors")
    return path


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("preset", ["modern", "gpt2", "paper"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("backend", [NativeBackend, TorchBackend, CompiledBackend])
def test_a_file_in_half_size_gives_what_its_weights_in_fp32_give(
    backend, precision: str, preset: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    if backend is NativeBackend and load_kernel() is None:
        pytest.skip("the C backend needs AVX2 or NEON and a compiler")
    if backend is CompiledBackend and precision == "int8":
        pytest.skip("a GPU computes in bf16")
    folder = directory_in_half(tmp_path, dtype, preset=preset)
    wide, kept = checkpoint.load_model(folder), checkpoint.load_model(folder, keep_half=True)
    assert wide.token_embedding.weight.dtype == torch.float32
    assert kept.token_embedding.weight.dtype == kept.head.weight.dtype == dtype
    tokens = torch.arange(20)[None] + 3
    assert torch.equal(backend(kept, precision)(tokens), backend(wide, precision)(tokens))


def test_a_part_of_a_file_is_mapped_again(tmp_path: Path) -> None:
    expected = {"a": torch.randn(300, 40).bfloat16(), "b": torch.randn(7, 5000)}
    save_file(expected, tmp_path / "file")
    with safe_open(tmp_path / "file", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in expected}
    for name, tensor in tensors.items():
        again = mapped_again(tensor)
        assert torch.equal(again, expected[name])
        assert again.data_ptr() != tensor.data_ptr() or not Path("/proc/self/maps").exists()
    ordinary = torch.ones(1000)
    assert mapped_again(ordinary).data_ptr() == ordinary.data_ptr()
    (tmp_path / "file").write_bytes(b"another")  # in place: the tensors are gone too
    (tmp_path / "file").unlink()
    assert mapped_again(tensors["a"]).data_ptr() == tensors["a"].data_ptr()


def test_tensors_of_huge_pages_are_zeros_of_their_own() -> None:
    memory = HugePageMemory(1000)
    tensors = [
        memory.zeros(3, 5, dtype=torch.int8),
        memory.zeros(2, 7, dtype=torch.bfloat16),
        memory.zeros(9, dtype=torch.int32),
    ]
    del memory  # the tensors keep it
    assert [tensor.shape for tensor in tensors] == [(3, 5), (2, 7), (9,)]
    for value, tensor in enumerate(tensors):
        assert tensor.data_ptr() % 64 == 0 and not tensor.any()
        tensor.fill_(value + 1)
    assert [set(tensor.flatten().tolist()) for tensor in tensors] == [{1}, {2}, {3}]


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="finds mapped files in Linux's /proc")
def test_pages_of_a_file_are_given_back_unless_they_were_changed(tmp_path: Path) -> None:
    expected = torch.arange(2**24, dtype=torch.float32)
    tensors = []
    for name in ("a", "b"):
        save_file({"x": expected}, tmp_path / name)
        with safe_open(tmp_path / name, "pt") as file:
            tensors.append(file.get_tensor("x"))
    unchanged, changed = tensors
    changed[7] = -1.0

    def resident() -> int:
        status = Path("/proc/self/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) * 1024

    assert torch.equal(unchanged, expected) and changed.sum().isfinite()  # reads all pages
    files, before = UnchangedMappings([unchanged]), resident()
    files.give_back(changed)
    files.give_back(expected)  # which is no part of a file
    assert resident() > before - 2**24
    files.give_back(unchanged)
    assert resident() < before - 0.9 * unchanged.nbytes
    assert torch.equal(unchanged, expected) and changed[7] == -1.0 and expected[7] == 7.0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak from Linux's /proc")
@pytest.mark.skipif(load_kernel() is None, reason="the C backend needs AVX2 or NEON and a compiler")
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        ("NativeBackend", torch.bfloat16),
        ("NativeBackend", torch.float16),
        ("NativeBackend", torch.float32),
        ("TorchBackend", torch.bfloat16),
        ("TorchBackend", torch.float32),
    ],
)
def test_weights_are_not_held_twice(backend: str, dtype: torch.dtype, tmp_path: Path) -> None:
    write_shape("smollm2-135m", tmp_path)
    small = directory_in_half(tmp_path / "small", dtype, vocab_size=300)
    state = {name: tensor.to(dtype) for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    save_file(state, tmp_path / "model.safetensors")
    file = (tmp_path / "model.safetensors").stat().st_size
    packed = file / dtype.itemsize
    if dtype == torch.float16 and backend == "NativeBackend":  # whose embedding is in fp32 then
        packed += 4 * state["model.embed_tokens.weight"].numel()
    command = [sys.executable, "-c", RESIDENT + MEASURED.replace("BACKEND", backend), str(tmp_path), str(small)]
    peak, after = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    beside = 2**26  # what packing takes for a while, of a model of any size
    # FBGEMM pads the 576 inputs of this shape to whole blocks, which are larger without AVX-512.
    fbgemm = 1.6 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 1.8
    stays = {"NativeBackend": 1.15, "TorchBackend": fbgemm}[backend]
    assert packed < after < stays * packed, f"{after / packed:.2f} times the packed weights stay"
    largest = max(tensor.nbytes for tensor in state.values())  # of the file only the matrix that is being packed
    assert peak < after + largest + beside, f"{peak:,} bytes to load, {file:,} of file, {after:,} stay"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak from Linux's /proc")
@pytest.mark.parametrize(("layout", "copies"), [("C", 1), ("FBGEMM", 2)])  # FBGEMM arranges integers of another tensor
def test_a_large_matrix_is_rounded_without_another_of_its_size(layout: str, copies: int) -> None:
    if layout == "FBGEMM" and "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("this PyTorch has no int8")
    command = [sys.executable, "-c", RESIDENT + ROUNDED, layout]
    weights, peak = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert copies * weights < peak < copies * weights + 2**26, f"{peak:,} bytes for {weights:,} weights in int8"


def test_only_the_embedding_of_a_backend_is_of_the_file(tmp_path: Path) -> None:
    quantized = quantize(checkpoint.load_model(directory_in_half(tmp_path), keep_half=True), "int8")
    of_bf16 = [name for name, tensor in quantized.named_parameters() if tensor.dtype == torch.bfloat16]
    assert of_bf16 == ["token_embedding.weight"]
