"""What every inference backend must do, in every precision, beside the model that is read and trained."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from models import FEATURES, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from transformer.cli import DEFAULT_MODEL, DEFAULT_PROMPT
from transformer.data.tokenizer import Tokenizer
from transformer.device import serving_precision
from transformer.errors import ConfigError
from transformer.hub import checkpoint
from transformer.inference import (
    Generator,
    InferenceBackend,
    NativeBackend,
    SamplingOptions,
    TorchBackend,
    select_backend,
    serve,
)
from transformer.inference.native.instruction_sets import VARIABLE, missing, sets_of_machine
from transformer.inference.quantized_linear import PlainLinear, quantize_linear
from transformer.legacy import preset_config
from transformer.model import RopeScaling, Transformer

ARCHITECTURES = [
    ("paper", {}),
    ("paper", {"head_bias": True, "tie_embeddings": False, "feed_forward_bias": False}),
    ("gpt2", {}),
    ("modern", {}),
    ("modern", {"qk_norm": False, "n_kv_heads": 1, "head_dim": 10}),
    ("modern", {"bias": True, "attention_output_bias": False, "feed_forward_bias": False}),
    ("modern", {"rope_scaling": RopeScaling("linear", 3.0)}),
    ("modern", {"rope_scaling": RopeScaling("llama3", 8.0, 10)}),
    ("modern", {"rope_scaling": RopeScaling("yarn", 4.0, 10)}),
    ("modern", {"rope_scaling": RopeScaling("dynamic", 4.0, 32)}),
    *((name, {}) for name in FEATURES),
    ("local", {"sliding_window": 2}),  # begins in the second block of the C backend's keys
    ("modern", {"sliding_window": 32, "n_kv_heads": 1}),  # no shorter than the context
    ("blog", {"positions": "rotary", "norm": "rms", "norm_placement": "pre", "activation": "swiglu", "qk_norm": True}),
    ("blog", {}),
    ("blog", {"heads": "sum", "pad_token_id": 3}),
]
BACKENDS = ["torch", *(f"native {instructions.name}" for instructions in sets_of_machine())]


def backend_of(name: str, model: Transformer, precision: str) -> InferenceBackend:
    """Skips where this machine or the backend cannot compute the model; with the instructions, the kernel must load."""
    kind, _, chosen = name.partition(" ")
    if kind == "torch":
        return TorchBackend(model, precision)
    (instructions,) = (each for each in sets_of_machine() if each.name == chosen)
    if lacking := missing(instructions):
        pytest.skip(f"this processor lacks {', '.join(sorted(lacking))}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, chosen)
        if reason := NativeBackend.unsupported(model.config):
            with pytest.raises(ConfigError, match="does not support"):
                NativeBackend(model, precision)
            pytest.skip(f"the C backend does not support {reason}, and says so")
        return NativeBackend(model, precision)


# How far the logits may be from those of the readable model, as a part of their size.
TOLERANCE = {"fp32": 2e-6, "bf16": 0.04, "int8": 0.1}
FBGEMM_ROUNDING = 1 if torch.cpu._is_vnni_supported() else 2  # without VNNI, rows have 7 bits instead of 8


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize(("preset", "overrides"), ARCHITECTURES)
@torch.no_grad()
def test_a_backend_computes_the_model(preset: str, overrides: dict, precision: str, kind: str) -> None:
    """In one pass, and token by token, with texts of one length and of several."""
    model = tiny_model(preset, **overrides)
    tokens = torch.randint(300, (3, 20), generator=torch.Generator().manual_seed(0))
    tokens[1, 0] = tokens[0, 4] = 3  # padding, to the one that knows it
    expected, backend = model(tokens), backend_of(kind, model, precision)
    tolerance = TOLERANCE[precision] * (FBGEMM_ROUNDING if (kind, precision) == ("torch", "int8") else 1)

    def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
        return bool((ours - theirs).norm() <= tolerance * theirs.norm())

    assert close(backend(tokens), expected)
    for lengths in ([7, 7, 7], [10, 5, 0]):
        cache = backend.new_cache(3, 32)
        for sequence, length in enumerate(lengths):
            backend.prefill(tokens[sequence, :length].tolist(), cache, sequence)
        for new in range(5):
            places = [(sequence, length + new) for sequence, length in enumerate(lengths)]
            logits = backend.decode(torch.stack([tokens[place] for place in places]), cache)
            for sequence, place in enumerate(places):
                assert close(logits[sequence], expected[place])


@pytest.mark.parametrize("rows", [1, 2, 40])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("bf16", 5e-3), ("int8", 2e-2 * FBGEMM_ROUNDING)])
def test_products(rows: int, precision: str, tolerance: float) -> None:
    random = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(70, 96, generator=random), torch.randn(70, generator=random)
    x = torch.randn(rows, 96, generator=random) * 10 ** torch.arange(rows)[:, None].remainder(5)  # of all sizes
    expected = x @ weight.T + bias
    product = quantize_linear(weight, bias, precision)
    error = (product(x) - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert error.max() < tolerance  # of each row by itself: a large one takes nothing from a small one
    assert not product(torch.zeros(rows, 96)).sub(bias.to(torch.bfloat16) if precision == "bf16" else bias).any()


@pytest.mark.parametrize("rows", [1, 8, 9, 40])
def test_a_processor_without_bf16_multiplies_rounded_rows(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    random = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(*shape, generator=random) for shape in ((70, 96), (70,), (rows, 96)))
    exact = x.bfloat16().float() @ weight.bfloat16().float().T + bias.bfloat16().float()
    atol, rtol = (1e-4, 1e-5) if rows > 8 else (0.01, 0.01)  # of few rows, the result is rounded to bf16 too
    torch.testing.assert_close(quantize_linear(weight, bias, "bf16")(x), exact, atol=atol, rtol=rtol)
    assert quantize_linear(weight, bias, "bf16").weight.dtype == torch.bfloat16


def test_int8_weights_are_rounded_by_output() -> None:
    """An output a thousand times smaller than another keeps its precision; one of zeros stays zero."""
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 1e-3, 0.0])[:, None]
    x = torch.randn(1, 64, generator=torch.Generator().manual_seed(1))
    expected, out = x @ weight.T, quantize_linear(weight, None, "int8")(x)
    sizes = x.norm() * weight.norm(dim=1)
    assert ((out - expected)[0] <= 0.01 * sizes).all() and ((expected - out)[0] <= 0.01 * sizes).all()
    assert out[0, 2] == 0


def test_the_plain_product_is_the_backend_one() -> None:
    random = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(*shape, generator=random) for shape in ((70, 96), (70,), (2, 5, 96)))
    for precision, tolerance in (("fp32", 1e-5), ("bf16", 0.1)):
        plain, backend = PlainLinear(weight, bias, precision)(x), quantize_linear(weight, bias, precision)(x)
        torch.testing.assert_close(plain, backend, atol=tolerance, rtol=0)


def test_which_precision_serves() -> None:
    cpu = torch.device("cpu")
    assert serving_precision(cpu) == ("int8" if torch.cpu._is_vnni_supported() else "fp32")
    assert [serving_precision(cpu, name) for name in ("fp32", "bf16", "int8")] == ["fp32", "bf16", "int8"]
    assert serving_precision(torch.device("mps")) == "fp32"
    with pytest.raises(ConfigError, match="fp16"):
        Generator(tiny_model(), tiny_tokenizer(), "fp16")
    with pytest.raises(ConfigError, match="CPU"):
        quantize_linear(torch.empty(4, 4, device="meta"), None, "int8")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_the_same_seed_gives_the_same_text_in_every_precision(precision: str) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(vocab_size=tokenizer.vocab_size)
    options = SamplingOptions(max_tokens=50, seed=3, repetition_penalty=1.1)
    texts = {"".join(Generator(model, tokenizer, precision).generate("The", options)) for _ in range(2)}
    assert len(texts) == 1


def test_a_cpu_serves_without_compiling() -> None:
    tokenizer = tiny_tokenizer()
    served, selected = serve(tiny_model(vocab_size=tokenizer.vocab_size), tokenizer).model, select_backend(tiny_model())
    assert type(served) is type(selected) and served.precision == selected.precision


@cache
def greedy_text(preset: str) -> tuple[Transformer, list[int]]:
    """A model as it comes back from its directory, and 20 tokens with the 200 with which transformers goes on."""
    sizes = dict(vocab_size=50_257, context_length=256, d_model=128, n_layers=3, n_heads=4, dropout=0.0)
    torch.manual_seed(0)
    model = Transformer(preset_config(preset, **sizes)).eval()
    with torch.no_grad():
        for parameter in model.layers.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    prompt = torch.randint(50_257, (1, 20), generator=torch.Generator().manual_seed(0))
    greedy = dict(do_sample=False, repetition_penalty=1.0, pad_token_id=0)
    with TemporaryDirectory() as folder:
        checkpoint.save(model, None, folder)
        theirs = AutoModelForCausalLM.from_pretrained(folder)
        expected = theirs.generate(prompt, max_new_tokens=200, min_new_tokens=200, **greedy)
        return checkpoint.load_model(folder), expected[0].tolist()


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("preset", ["gpt2", "modern"])
def test_greedy_text_in_fp32_is_that_of_transformers(preset: str, kind: str) -> None:
    """200 tokens after a prompt. Two logits are 1e-4 apart at least, and the two computations 3e-6 at most."""
    model, expected = greedy_text(preset)
    backend = backend_of(kind, model, "fp32")
    kv_cache = backend.new_cache(1, 256)
    tokens = expected[:20]
    backend.prefill(tokens[:-1], kv_cache, 0)
    for _ in range(200):
        tokens.append(int(backend.decode(torch.tensor(tokens[-1:]), kv_cache).argmax()))
    assert tokens == expected
    assert len(set(tokens[20:])) > 20


def test_the_embedded_model_continues_as_in_transformers() -> None:
    """Greedily, 200 tokens, through the generator."""
    weights = Path(DEFAULT_MODEL)
    tokenizer = Tokenizer.load(weights)
    prompt = tokenizer.encode_prompt(DEFAULT_PROMPT)
    greedy = dict(do_sample=False, repetition_penalty=1.0, eos_token_id=None)
    theirs = AutoModelForCausalLM.from_pretrained(weights)
    expected = theirs.generate(torch.tensor([prompt]), max_new_tokens=200, **greedy)[0, len(prompt) :].tolist()
    if tokenizer.end_of_text_id in expected:
        expected = expected[: expected.index(tokenizer.end_of_text_id)]
    generation = Generator(checkpoint.load_model(weights), tokenizer, "fp32").generate(
        DEFAULT_PROMPT, SamplingOptions(max_tokens=200, temperature=0)
    )
    assert "".join(generation) == tokenizer.decode(expected)
