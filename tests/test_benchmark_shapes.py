"""Random weights in the shapes of published models."""

import pytest
import torch
from models import tiny_model

from benchmarks import shapes
from benchmarks.decoding import prepare, read_options
from benchmarks.peers import pairs_together
from transformer.hub import checkpoint
from transformer.hub.architectures import adapter_for
from transformer.inference import TorchBackend
from transformer.model import Transformer
from transformer.model.positions import apply_rope

PARAMETERS = {"smollm2-135m": 134_515_008, "qwen3-0.6b": 596_049_920, "llama-3.2-1b": 1_235_814_400}  # as published


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_a_shape_has_the_parameters_of_the_published_model(name: str) -> None:
    with torch.device("meta"):
        model = Transformer(shapes.shape_config(name), initialize=False)
    assert model.parameter_count() == PARAMETERS[name]
    assert adapter_for(shapes.SHAPES[name][0]).represents(shapes.shape_config(name))


def test_a_shape_is_written_in_bf16(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_type, choices = shapes.SHAPES["llama-3.2-1b"]
    small = choices | dict(d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, d_feed_forward=96, vocab_size=99)
    monkeypatch.setitem(shapes.SHAPES, "llama-3.2-1b", (model_type, small))
    prepare(read_options(["--shape", "llama-3.2-1b"]), tmp_path)
    model = checkpoint.load_model(tmp_path, keep_half=True)
    assert model.config == shapes.shape_config("llama-3.2-1b") and model.head.weight.dtype == torch.bfloat16
    assert TorchBackend(model, "fp32")(torch.arange(9)[None]).isfinite().all()
    deviation = model.layers[1].feed_forward.up.weight.float().std()
    assert 0.018 < deviation < 0.022


@pytest.mark.parametrize("other", ["--preset modern", "--d-model 8", "--model weights"])
def test_a_shape_says_all_sizes(other: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_options(["--shape", "qwen3-0.6b", *other.split()])
    assert "--shape says the sizes" in capsys.readouterr().err


def test_rotating_neighbours_gives_the_scores_of_rotating_halves() -> None:
    """llama.cpp's Llama rotates values that stand side by side."""
    model = tiny_model(n_kv_heads=4)
    config, rotary = model.config, model.rotary
    x = torch.randn(1, 5, config.d_model)
    query, key = model.layers[0].attention.query.weight, model.layers[0].attention.key.weight
    cosine, sine = (table[:5] for table in (rotary.cosine_CE, rotary.sine_CE))
    half = config.key_dim // 2

    def rotated(weight: torch.Tensor) -> torch.Tensor:
        heads = (x @ weight.T).view(1, 5, -1, half, 2).transpose(1, 2)  # (B, H, T, E/2, 2)
        one, two = heads.unbind(-1)
        cos, sin = cosine[:, :half], sine[:, half:]
        return torch.stack([one * cos - two * sin, one * sin + two * cos], -1).flatten(-2)

    def split(weight: torch.Tensor) -> torch.Tensor:
        return apply_rope((x @ weight.T).view(1, 5, -1, config.key_dim).transpose(1, 2), (cosine, sine))

    ours = split(query) @ split(key).transpose(-1, -2)
    theirs = rotated(pairs_together(query, config)) @ rotated(pairs_together(key, config)).transpose(-1, -2)
    assert torch.allclose(ours, theirs, atol=1e-4)
