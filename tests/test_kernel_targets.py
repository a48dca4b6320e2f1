"""The kernel in C where PyTorch does not run it: for ARM in an emulator, and under AddressSanitizer and UBSan."""

from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_model
from native_runner import Pass, Target, dump, run
from test_backends import ARCHITECTURES, TOLERANCE

from transformer.inference import NativeBackend
from transformer.inference.native import load_kernel
from transformer.inference.native.instruction_sets import INSTRUCTION_SETS, processor_features, sets_of_processor

FLAGS = {each.name: each.flags for each in INSTRUCTION_SETS}
NEEDED = {each.name: each.needed for each in INSTRUCTION_SETS}
SANITIZED = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
# AVX-VNNI's instruction, as AVX-512 encodes it: processors with AVX-VNNI are few.
VNNI = ("-mavx2", "-mfma", "-mf16c", "-mavx512vl", "-mavx512vnni", "-DVNNI_OF_AVX512")
ARM = ("-static", *FLAGS["neon"])
QEMU = ("qemu-aarch64",)
TARGETS = [
    Target("neon in an emulator", "aarch64-linux-gnu-gcc", ("-O3", *ARM), QEMU),
    Target("avx2-vnni", "gcc", ("-O3", *VNNI), features=NEEDED["avx512"]),
    *(
        Target(f"{name} sanitized", "gcc", (*SANITIZED, *FLAGS[name]), features=NEEDED[name])
        for name in ("avx512", "avx2")
    ),
    Target("avx2-vnni sanitized", "gcc", (*SANITIZED, *VNNI), features=NEEDED["avx512"]),
    Target(
        "neon sanitized", "aarch64-linux-gnu-gcc", ("-O1", "-g", "-fsanitize=undefined", *SANITIZED[3:], *ARM), QEMU
    ),
]
SUPPORTED = [
    (preset, overrides)
    for preset, overrides in ARCHITECTURES
    if NativeBackend.unsupported(tiny_model(preset, **overrides).config) is None
]


def _param(target: Target) -> Any:
    return pytest.param(target, id=target.name, marks=[pytest.mark.slow] if "sanitized" in target.name else [])


@pytest.fixture(scope="module", params=map(_param, TARGETS))
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Target, Path]:
    chosen: Target = request.param
    if not sets_of_processor() or load_kernel() is None:
        pytest.skip("needs a kernel for this processor, whose Python side lays the weights out")
    if lacking := chosen.features - set(processor_features().split()):
        pytest.skip(f"this processor lacks {', '.join(sorted(lacking))}")
    return chosen, chosen.build(tmp_path_factory.mktemp("runner"))


def passes_of(tokens: torch.Tensor) -> tuple[list[Pass], list[tuple[int, int]]]:
    """One pass over all; then texts of one length and of several, token by token. And which logits they give."""
    texts, length = tokens.shape
    places = [(text, position) for text in range(texts) for position in range(length)]
    passes, wanted = [_pass(tokens, places, True)], [*places]
    for lengths in ([7, 7, 7], [10, 5, 0]):
        for text, known in enumerate(lengths):
            if known:
                passes.append(_pass(tokens, [(text, position) for position in range(known)], False))
        for new in range(8):
            places = [(text, known + new) for text, known in enumerate(lengths)]
            passes.append(_pass(tokens, places, True))
            wanted += places
    return passes, wanted


def _pass(tokens: torch.Tensor, places: list[tuple[int, int]], wanted: bool) -> Pass:
    texts, positions = [text for text, _ in places], [position for _, position in places]
    return Pass([int(tokens[place]) for place in places], texts, positions, wanted)


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize(("preset", "overrides"), SUPPORTED)
@torch.no_grad()
def test_the_kernel_computes_the_model(
    preset: str, overrides: dict, precision: str, target: tuple[Target, Path], tmp_path: Path
) -> None:
    model = tiny_model(preset, **overrides)
    tokens = torch.randint(300, (3, 20), generator=torch.Generator().manual_seed(0))
    expected = model(tokens)
    passes, wanted = passes_of(tokens)
    data = dump(NativeBackend(model, precision), passes, sequences=3, capacity=32, threads=3)
    logits = run(*target, data, tmp_path).view(len(wanted), -1)[:, : expected.shape[-1]]
    for ours, place in zip(logits, wanted, strict=True):
        assert (ours - expected[place]).norm() <= TOLERANCE[precision] * expected[place].norm()
