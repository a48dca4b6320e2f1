"""torch.compile with its C++ compiler, in training and in inference. Compiling takes most of the time."""

import shutil
from pathlib import Path

import pytest
import torch
from models import tiny_model, tiny_model_directory, tiny_tokenizer
from torch import Tensor, nn

from transformer.hub import checkpoint
from transformer.inference import CompiledBackend, Generator, SamplingOptions
from transformer.training.loss import LanguageModelLoss


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
@pytest.mark.parametrize("preset", ["modern", pytest.param("sandwich", marks=pytest.mark.slow)])
def test_the_compiled_step_has_the_gradients_of_the_plain_one(preset: str, tmp_path: Path) -> None:
    # A compiler can give the right loss and wrong gradients (experiments/LOG.md), which no first loss shows.
    model, _ = checkpoint.load(tiny_model_directory(tmp_path / "m", preset))
    tokens = torch.randint(5, 100, (2, 17), generator=torch.Generator().manual_seed(0))
    loss = LanguageModelLoss(model)

    def gradients(function: nn.Module) -> list[Tensor]:
        function(tokens[:, :-1], tokens[:, 1:]).backward()
        found = [parameter.grad for parameter in model.parameters()]
        model.zero_grad()
        return found

    expected = gradients(loss)
    for ours, theirs in zip(gradients(torch.compile(loss, dynamic=False)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("preset", ["modern", pytest.param("sandwich", marks=pytest.mark.slow)])
def test_a_compiled_step_is_the_same_step(preset: str) -> None:
    """On the CPU; past the context; and the cache of one text serves the next, without compiling again."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(preset, vocab_size=tokenizer.vocab_size, n_layers=2)
    compiled = CompiledBackend(model, "fp32")
    options = SamplingOptions(max_tokens=50, min_tokens=50, temperature=0)
    alone = "".join(Generator(model, tokenizer, "fp32").generate("The river", options))
    torch._dynamo.utils.counters.clear()
    for _ in range(2):
        assert "".join(Generator(compiled, tokenizer).generate("The river", options)) == alone
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    cache = compiled.new_cache(1, 8)
    cache.keys[0].fill_(7.0)
    other = compiled.new_cache(1, 8)  # two texts at a time do not share a cache
    assert not other.keys[0].any()
    del cache
    assert (compiled.new_cache(1, 8).keys[0] == 7.0).all()  # one after the other they do
    del other
    first, second = (Generator(compiled, tokenizer).generate("The river", options) for _ in range(2))
    pairs = list(zip(first, second, strict=True))
    assert all(one == other for one, other in pairs)
    batch = Generator(compiled, tokenizer).generate_batch(["The river"] * 2, options)
    assert [completion.text for completion in batch] == [alone, alone]
