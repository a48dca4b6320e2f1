"""Checkpoints of the original project give the same logits here."""

import math
from pathlib import Path

import pytest
import torch
from models import tiny_tokenizer

from transformer.cli import main
from transformer.errors import CheckpointError, ConfigError
from transformer.hub import checkpoint
from transformer.legacy import BlogTransformer, preset_config
from transformer.legacy.checkpoint_import import load_original
from transformer.model import Transformer

VOCABULARY, WIDTH, HEADS, LAYERS, CONTEXT = 300, 24, 3, 2, 16
PAD = 299


def original_state(key_dim: int = WIDTH // HEADS, feed_forward: int = 4 * WIDTH) -> dict[str, torch.Tensor]:
    """Random weights under the names, and in the shapes, of the original's state_dict."""
    generator = torch.Generator().manual_seed(0)

    def linear(name: str, out: int, into: int) -> dict[str, torch.Tensor]:
        weight = torch.randn(out, into, generator=generator) / math.sqrt(into)
        return {f"{name}.weight": weight, f"{name}.bias": 0.3 * torch.randn(out, generator=generator)}

    position = torch.arange(CONTEXT)[:, None]
    rate = torch.exp(torch.arange(0, WIDTH, 2) * (-math.log(10000.0) / WIDTH))
    pe = torch.zeros(CONTEXT, WIDTH)
    pe[:, 0::2], pe[:, 1::2] = torch.sin(position * rate), torch.cos(position * rate)
    state = {"pe": pe, "embedding.weight": torch.randn(VOCABULARY, WIDTH, generator=generator)}
    for n in range(LAYERS):
        for m in range(HEADS):
            head = f"decoder_layers.{n}.attention_heads.{m}"
            state[f"{head}.causal_mask"] = torch.ones(CONTEXT, CONTEXT).tril() == 0
            state |= linear(f"{head}.Q", key_dim, WIDTH) | linear(f"{head}.K", key_dim, WIDTH)
            state |= linear(f"{head}.V", WIDTH, WIDTH)
        for norm in ("layer_norm1", "layer_norm2"):
            state[f"decoder_layers.{n}.{norm}.weight"] = torch.rand(WIDTH, generator=generator) + 0.5
            state[f"decoder_layers.{n}.{norm}.bias"] = torch.randn(WIDTH, generator=generator)
        state |= linear(f"decoder_layers.{n}.feed_forward.0", feed_forward, WIDTH)
        state |= linear(f"decoder_layers.{n}.feed_forward.2", WIDTH, feed_forward)
    return state | linear("output_projection", VOCABULARY, WIDTH)


def original_logits(state: dict[str, torch.Tensor], ids: torch.Tensor, join: str, pad: int | None) -> torch.Tensor:
    """What the original computes for one row of ids, (T, vocabulary): its arithmetic, one query at a time."""

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    def head(name: str, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (linear(f"{name}.{part}", x) for part in "QKV")
        rows = []
        for t in range(len(ids)):
            visible = [s for s in range(t + 1) if pad is None or ids[s] != pad]
            scores = k[visible] @ q[t] / math.sqrt(q.shape[-1])
            rows.append(scores.softmax(0) @ v[visible])
        return torch.stack(rows)

    x = state["embedding.weight"][ids] + state["pe"][: len(ids)]
    for n in range(LAYERS):
        layer = f"decoder_layers.{n}"
        heads = torch.stack([head(f"{layer}.attention_heads.{m}", x) for m in range(HEADS)])
        x = norm(f"{layer}.layer_norm1", x + (heads.mean(0) if join == "average" else heads.sum(0)))
        hidden = linear(f"{layer}.feed_forward.0", x).relu()
        x = norm(f"{layer}.layer_norm2", x + linear(f"{layer}.feed_forward.2", hidden))
    return linear("output_projection", x)


def write(path: Path, state: dict[str, torch.Tensor]) -> Path:
    torch.save({"model_state_dict": state, "epoch": 3, "val_loss": 1.1, "optimizer_state_dict": {"state": {}}}, path)
    return path


def ids(length: int = CONTEXT) -> torch.Tensor:
    return torch.randint(0, PAD, (length,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("join", ["average", "sum"])
@pytest.mark.parametrize("sizes", [{}, {"key_dim": WIDTH}, {"feed_forward": 40}])
def test_the_same_logits(join: str, sizes: dict, tmp_path: Path) -> None:
    state = original_state(**sizes)
    model = load_original(write(tmp_path / "a.pt", state), heads=join)
    torch.testing.assert_close(model(ids()[None])[0], original_logits(state, ids(), join, None), atol=1e-4, rtol=1e-4)


def test_the_same_logits_with_its_padding_on_either_side(tmp_path: Path) -> None:
    state, pad = original_state(), torch.tensor([PAD])
    model = load_original(write(tmp_path / "a.pt", state), pad_token_id=PAD)
    right, left = torch.cat([ids(10), pad.repeat(6)]), torch.cat([pad.repeat(6), ids(10)])
    for row, real in ((right, slice(0, 10)), (left, slice(6, 16))):
        # The queries at padding see nothing in this reference, and are compared with nothing.
        expected = original_logits(state, row, "average", PAD)[real] if row is right else None
        if expected is None:
            shifted = {**state, "pe": state["pe"].roll(-6, dims=0)}
            expected = original_logits(shifted, ids(10), "average", None)
        torch.testing.assert_close(model(row[None])[0][real], expected, atol=1e-4, rtol=1e-4)


def test_the_command_writes_a_model_directory_that_generates(tmp_path: Path, capsys) -> None:
    state = original_state()
    tiny_tokenizer(VOCABULARY).save(tmp_path / "tokenizer")
    path = write(tmp_path / "a.pt", state)
    command = ["import-original", str(path), str(tmp_path / "out"), "--tokenizer", str(tmp_path / "tokenizer")]
    assert main(command) == 0
    model = checkpoint.load_model(tmp_path / "out")
    torch.testing.assert_close(
        model(ids()[None])[0], original_logits(state, ids(), "average", None), atol=1e-4, rtol=1e-4
    )
    cache = model.new_cache(1, CONTEXT)
    logits = torch.cat([model.decode(part, cache) for part in ids().split(1)])
    torch.testing.assert_close(logits, model(ids()[None])[0], atol=1e-4, rtol=1e-4)
    capsys.readouterr()
    assert main(["predict", "--model", str(tmp_path / "out"), "--max-tokens", "30", "--seed", "1", "The river"]) == 0
    assert capsys.readouterr().out.startswith("The river")


def test_without_a_tokenizer_the_model_is_imported_and_says_what_it_lacks(tmp_path: Path, capsys) -> None:
    path = write(tmp_path / "a.pt", original_state())
    assert main(["import-original", str(path), str(tmp_path / "out")]) == 0
    assert "no tokenizer" in capsys.readouterr().out
    assert checkpoint.load_model(tmp_path / "out").config.heads == "average"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda s: s.pop("embedding.weight"), "embedding.weight"),
        (lambda s: s.pop("decoder_layers.1.attention_heads.2.V.bias"), "layers.1.attention.value.bias"),
        (lambda s: s.update({"output_projection.weight": torch.zeros(5, WIDTH)}), "head.weight"),
        (lambda s: s.update({"decoder_layers.0.extra.weight": torch.zeros(1)}), "extra"),
        (lambda s: s.update({"pe": torch.zeros(CONTEXT, WIDTH)}), "sinusoidal"),
    ],
)
def test_a_checkpoint_that_does_not_fit_names_the_tensor(change, word: str, tmp_path: Path) -> None:
    state = original_state()
    change(state)
    with pytest.raises(CheckpointError, match=word):
        load_original(write(tmp_path / "a.pt", state))


def test_files_that_are_no_checkpoint_are_refused_and_no_code_is_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no file"):
        load_original(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_original(tmp_path / "text.pt")
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="model_state_dict"):
        load_original(tmp_path / "other.pt")

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "was-run",))

    torch.save({"model_state_dict": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError):
        load_original(tmp_path / "evil.pt")
    assert not (tmp_path / "was-run").exists()


def test_a_config_builds_its_own_class_of_model_alone() -> None:
    with pytest.raises(ConfigError, match="a Transformer is built from a ModelConfig, not from a BlogConfig"):
        Transformer(preset_config("blog", vocab_size=8, d_model=8, n_layers=1, n_heads=2))
    with pytest.raises(ConfigError, match="a BlogTransformer is built from a BlogConfig"):
        BlogTransformer(preset_config("gpt2", vocab_size=8, d_model=8, n_layers=1, n_heads=2))
