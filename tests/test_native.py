"""The kernel in C, beyond what `test_backends.py` asks of every backend."""

import math
from pathlib import Path

import pytest
import torch
from models import tiny_model
from test_backends import TOLERANCE

from transformer.cli import DEFAULT_MODEL
from transformer.device import processor_quota
from transformer.errors import ConfigError, ContextLengthError
from transformer.evaluation import evaluate
from transformer.hub import checkpoint
from transformer.inference import TorchBackend, select_backend
from transformer.inference.native import NativeBackend, instruction_sets, kernel, load_kernel, native_backend
from transformer.model import RopeScaling, Transformer

each_set = pytest.mark.usefixtures("instructions")


def random_tokens(*shape: int) -> torch.Tensor:
    return torch.randint(300, shape, generator=torch.Generator().manual_seed(0))


@each_set
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_a_text_among_others_is_the_text_alone(precision: str) -> None:
    """For all numbers of texts and threads that divide the loops differently; bit by bit where rounding decides."""
    served = select_backend(tiny_model("modern"), precision)
    tokens = random_tokens(13, 9)

    def read(rows: torch.Tensor) -> torch.Tensor:
        memory = served.new_cache(len(rows), 16)
        for text, row in enumerate(rows):
            served.prefill(row[:-1].tolist(), memory, text)
        return served.decode(rows[:, -1].contiguous(), memory)

    alone = torch.cat([read(row[None]) for row in tokens])
    # Sums in another order may round a key to the next number of 16 bits, beside weights in bf16.
    atol = {"int8": 0.0, "bf16": 1e-3, "fp32": 1e-5}[precision]
    tolerance = {"rtol": {"int8": 0.0}.get(precision, 1e-4), "atol": atol}
    threads = torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            for count in range(1, 14):
                torch.testing.assert_close(read(tokens[:count]), alone[:count], **tolerance)
    finally:
        torch.set_num_threads(threads)


@each_set
@torch.no_grad()
def test_a_prompt_longer_than_a_piece_is_read_whole() -> None:
    model = tiny_model("modern", context_length=700)
    tokens = random_tokens(1, 700)
    served = select_backend(model, "fp32")
    torch.testing.assert_close(served(tokens), model(tokens), rtol=1e-4, atol=1e-5)
    memory = served.new_cache(1, 700)
    served.prefill(tokens[0, :-1].tolist(), memory, 0)
    torch.testing.assert_close(served.decode(tokens[:, -1], memory), model(tokens)[:, -1], rtol=1e-4, atol=1e-5)


@each_set
@pytest.mark.parametrize("precision", TOLERANCE)
@torch.no_grad()
def test_a_window_moves_over_blocks_and_pieces(precision: str) -> None:
    """Of texts longer than several windows, shorter than one, and empty."""
    model = tiny_model("sandwich", context_length=340, sliding_window=50)
    tokens = random_tokens(3, 340)
    expected, served = model(tokens), select_backend(model, precision)
    assert type(served) is NativeBackend
    assert (served(tokens) - expected).norm() <= TOLERANCE[precision] * expected.norm()
    cache, lengths = served.new_cache(3, 340), (330, 45, 0)
    for text, length in enumerate(lengths):
        served.prefill(tokens[text, :length].tolist(), cache, text)
    for new in range(10):
        places = [(text, length + new) for text, length in enumerate(lengths)]
        logits = served.decode(torch.stack([tokens[place] for place in places]), cache)
        for ours, place in zip(logits, places, strict=True):
            assert (ours - expected[place]).norm() <= TOLERANCE[precision] * expected[place].norm()


@each_set
@pytest.mark.parametrize("preset", ["modern", "sandwich"])  # the second has layers whose positions are not scaled
@torch.no_grad()
def test_dynamic_scaling_follows_the_length_of_each_text(preset: str) -> None:
    """A text that is read at once has frequencies of its length, and each token after it those of its position."""
    model = tiny_model(preset, rope_scaling=RopeScaling("dynamic", 4.0, 10))
    tokens, served = random_tokens(3, 32), select_backend(model, "fp32")
    assert type(served) is NativeBackend
    for length in (9, 11, 32):
        torch.testing.assert_close(served(tokens[:, :length]), model(tokens[:, :length]), rtol=1e-4, atol=1e-5)
    ours, theirs, lengths = served.new_cache(3, 32), model.new_cache(3, 32), (20, 8, 0)
    for text, length in enumerate(lengths):
        served.prefill(tokens[text, :length].tolist(), ours, text)
        model.prefill(tokens[text, :length].tolist(), theirs, text)
    for new in range(12):
        column = torch.stack([tokens[text, length + new] for text, length in enumerate(lengths)])
        torch.testing.assert_close(served.decode(column, ours), model.decode(column, theirs), rtol=1e-4, atol=1e-5)


@each_set
@torch.no_grad()
def test_tokens_of_any_kind_and_arrangement_are_read() -> None:
    served, tokens = select_backend(tiny_model(), "fp32"), random_tokens(3, 4)
    expected = served(tokens)
    for other in (tokens.int(), tokens.T.contiguous().T):
        assert torch.equal(served(other), expected)
        memory = served.new_cache(3, 8)
        for column in range(4):
            logits = served.decode(other[:, column], memory)
        torch.testing.assert_close(logits, expected[:, -1], rtol=1e-4, atol=1e-5)


@each_set
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_packing_leaves_the_model_as_it_is(precision: str) -> None:
    model = tiny_model("gpt2")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    select_backend(model, precision)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@each_set
def test_what_there_is_no_place_for_is_refused() -> None:
    served = select_backend(tiny_model(context_length=8), "int8")
    memory = served.new_cache(1, 8)
    for token in (-1, 300, 2**40):
        with pytest.raises(IndexError, match="300 that the model knows"):
            served.prefill([1, token], memory, 0)
        with pytest.raises(IndexError):
            served.decode(torch.tensor([token]), memory)
    with pytest.raises(ContextLengthError, match="no place left"):
        served.prefill([1] * 9, memory, 0)
    served.prefill([1] * 8, memory, 0)
    with pytest.raises(ContextLengthError):
        served.decode(torch.tensor([1]), memory)


def test_without_a_compiler_pytorch_serves(no_kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for compiler in ("false", "there-is-no-such-compiler", "touch /dev/null"):  # fails; is missing; makes no library
        monkeypatch.setenv("CC", compiler)
        kernel.first_that_loads.cache_clear()
        assert type(select_backend(tiny_model(), "fp32")) is TorchBackend
        assert not [path for path in no_kernel.rglob("*") if path.is_file()]
        with pytest.raises(ConfigError, match="C compiler"):
            NativeBackend(tiny_model(), "fp32")


@each_set
def test_auto_is_int8_in_c_also_without_vnni(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    served = select_backend(tiny_model())
    assert type(served) is NativeBackend and served.precision == "int8"
    assert select_backend(tiny_model(), "bf16").precision == "bf16"


def test_auto_is_fp32_in_pytorch_without_vnni(no_kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "false")
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    served = select_backend(tiny_model())
    assert type(served) is TorchBackend and served.precision == "fp32"


def test_a_user_without_a_home_is_served_by_pytorch(no_kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    assert type(select_backend(tiny_model(), "fp32")) is TorchBackend


def test_on_another_processor_nothing_is_compiled(no_kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instruction_sets, "processor_features", lambda: "fpu sse2 avx")
    assert load_kernel() is None
    assert not no_kernel.exists()


@pytest.mark.skipif(not instruction_sets.sets_of_processor(), reason="no kernel is for this processor")
def test_structures_that_differ_from_those_in_c_are_found(
    no_kernel: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    library = load_kernel()
    assert library is not None and kernel.compiled_layout(library) == kernel.expected_layout()

    weight, bias, *others = kernel.Norm._fields_
    monkeypatch.setattr(kernel, "Norm", type("Norm", (kernel.Structure,), {"_fields_": [bias, weight, *others]}))
    kernel.first_that_loads.cache_clear()
    assert load_kernel() is None and "Norm.bias is 8 in kernel.c and 0 in kernel.py" in caplog.text
    assert type(select_backend(tiny_model(), "fp32")) is TorchBackend


@each_set
@pytest.mark.parametrize("activation", [-1, 4])
def test_an_activation_that_the_kernel_does_not_know_is_refused(activation: int, monkeypatch) -> None:
    load_kernel()
    monkeypatch.setitem(kernel.ACTIVATIONS, tiny_model().config.activation, activation)
    served = select_backend(tiny_model(), "fp32")
    with pytest.raises(RuntimeError, match="does not know"):
        served.decode(torch.tensor([1]), served.new_cache(1, 8))


@each_set
def test_it_is_compiled_once(no_kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_kernel() is not None
    (file,) = [path for path in no_kernel.rglob("*") if path.is_file()]
    monkeypatch.setenv("CC", "false")
    kernel.first_that_loads.cache_clear()
    assert load_kernel() is not None and file.exists()


@each_set
def test_int8_costs_hardly_any_bits() -> None:
    """On a page of English: weights, rows, keys and values of the embedded model in 8 bits, beside fp32."""
    model, tokenizer = checkpoint.load(DEFAULT_MODEL)
    text = Path("README.md").read_text(encoding="utf-8")[:6000]
    assert isinstance(model, Transformer)
    exact, rounded = (evaluate(select_backend(model, precision), tokenizer, [text]) for precision in ("fp32", "int8"))
    assert abs(rounded.bits_per_byte / exact.bits_per_byte - 1) < 0.005


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ({}, math.inf),
    ],
)
def test_the_quota_of_a_container_is_read(files: dict[str, str], quota: float, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert processor_quota(tmp_path) == quota


@each_set
def test_no_more_threads_than_the_quota_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    library = load_kernel()
    forward, counts = library.forward, []
    monkeypatch.setattr(library, "forward", lambda *arguments: counts.append(arguments[-1]) or forward(*arguments))
    for quota in (0.5, 1.9, math.inf):
        monkeypatch.setattr(native_backend, "processor_quota", lambda quota=quota: quota)
        served = select_backend(tiny_model(), "fp32")
        served.decode(torch.tensor([1]), served.new_cache(1, 8))
    assert counts == [1, 1, torch.get_num_threads()]
