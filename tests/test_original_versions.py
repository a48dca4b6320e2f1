"""Checkpoints of every version of the original project give the same logits here, however the model was wrapped."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from transformer.cli import main
from transformer.errors import CheckpointError
from transformer.hub import checkpoint
from transformer.legacy.checkpoint_import import load_original

WIDTH, HEADS, LAYERS, CONTEXT = 12, 3, 2, 10
BERT, BERT_PAD = 30522, 0


class Head(nn.Module):
    """One attention head of the original, which masks padding if it is told of any."""

    def __init__(self) -> None:
        super().__init__()
        self.Q, self.K = nn.Linear(WIDTH, WIDTH // HEADS), nn.Linear(WIDTH, WIDTH // HEADS)
        self.V = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("causal_mask", torch.ones(CONTEXT, CONTEXT).triu(1).bool())

    def forward(self, x: Tensor, padded: Tensor | None) -> Tensor:
        scores = self.Q(x) @ self.K(x).transpose(1, 2) / math.sqrt(WIDTH // HEADS)
        scores = scores.masked_fill(self.causal_mask[: x.shape[1], : x.shape[1]], -math.inf)
        if padded is not None:
            scores = scores.masked_fill(padded[:, None], -1e9)
        return scores.softmax(-1) @ self.V(x)


class Layer(nn.Module):
    def __init__(self, join: str) -> None:
        super().__init__()
        self.join = join
        self.attention_heads = nn.ModuleList(Head() for _ in range(HEADS))
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.feed_forward = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.ReLU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor, padded: Tensor | None = None) -> Tensor:
        heads = torch.stack([head(x, padded) for head in self.attention_heads])
        x = self.layer_norm1(x + (heads.sum(0) if self.join == "sum" else heads.mean(0)))
        return self.layer_norm2(x + self.feed_forward(x))


class Original(nn.Module):
    """The original, as its earlier versions were (a Sequential called decoder, nothing masked) or as the later ones."""

    def __init__(self, earlier: bool, join: str, vocabulary: int = 50) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embedding = nn.Embedding(vocabulary, WIDTH)
        place, rate = torch.arange(CONTEXT)[:, None], 10000 ** (-torch.arange(0, WIDTH, 2) / WIDTH)
        self.register_buffer("pe", torch.stack([(place * rate).sin(), (place * rate).cos()], dim=-1).flatten(1))
        layers = [Layer(join) for _ in range(LAYERS)]
        if earlier:
            self.decoder = nn.Sequential(*layers)
        else:
            self.decoder_layers = nn.ModuleList(layers)
        self.output_projection = nn.Linear(WIDTH, vocabulary)

    @torch.no_grad()
    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) + self.pe[: ids.shape[1]]
        if hasattr(self, "decoder"):
            return self.output_projection(self.decoder(x))
        for layer in self.decoder_layers:
            x = layer(x, ids == BERT_PAD if self.embedding.num_embeddings == BERT else None)
        return self.output_projection(x)


def compiled_layers(model: Original) -> Original:
    layers = model.decoder if hasattr(model, "decoder") else model.decoder_layers
    for number, layer in enumerate(layers):
        layers[number] = torch.compile(layer)
    return model


WRAPPERS: dict[str, Callable[[Original], nn.Module]] = {
    "plain": lambda model: model,
    "compiled": torch.compile,
    "data parallel": nn.DataParallel,
    "compiled, then data parallel": lambda model: nn.DataParallel(torch.compile(model)),
    "data parallel, then compiled": lambda model: torch.compile(nn.DataParallel(model)),
    "compiled layers": compiled_layers,
}


def write(path: Path, model: nn.Module, bare: bool = False) -> Path:
    state = model.state_dict()
    torch.save(state if bare else {"model_state_dict": state, "epoch": 3}, path)
    return path


def same_logits(path: Path, original: Original, ids: Tensor, **options: object) -> bool:
    with torch.no_grad():
        ours = load_original(path, **options)(ids)
    return torch.allclose(ours, original(ids), atol=1e-4, rtol=1e-4)


def ids(vocabulary: int = 50) -> Tensor:
    return torch.randint(1, vocabulary, (2, CONTEXT), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(("earlier", "join"), [(True, "sum"), (False, "average")])
def test_the_version_is_known_by_the_names(tmp_path: Path, earlier: bool, join: str, wrapper: str) -> None:
    original = Original(earlier, join)
    expected = original(ids())
    path = write(tmp_path / "a.pt", WRAPPERS[wrapper](original))
    with torch.no_grad():
        torch.testing.assert_close(load_original(path)(ids()), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("earlier", "join"), [(True, "average"), (False, "sum")])
def test_heads_that_the_names_do_not_tell_are_an_option(tmp_path: Path, earlier: bool, join: str) -> None:
    original = Original(earlier, join)
    path = write(tmp_path / "a.pt", original)
    assert same_logits(path, original, ids(), heads=join) and not same_logits(path, original, ids())


def test_an_earlier_version_sees_its_padding(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    original = Original(True, "sum", BERT)
    padded = ids(BERT)
    padded[0, 6:] = padded[1, :3] = BERT_PAD
    path = write(tmp_path / "a.pt", original)
    assert same_logits(path, original, padded)
    assert "Heads are summed (the default for such a checkpoint), padding is not masked." in caplog.text
    assert not same_logits(path, original, padded, pad_token_id=BERT_PAD)


def test_a_later_version_does_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    original = Original(False, "average", BERT)
    padded = ids(BERT)
    padded[0, 6:] = BERT_PAD
    with torch.no_grad():
        ours = load_original(write(tmp_path / "a.pt", original))(padded)
    torch.testing.assert_close(ours[0, :6], original(padded)[0, :6], atol=1e-4, rtol=1e-4)
    assert not caplog.text


def test_a_bare_state_dict_in_half_precision_opens(tmp_path: Path) -> None:
    original = Original(True, "sum").half().float()  # its weights are rounded to half precision
    original.pe = Original(True, "sum").pe
    path = write(tmp_path / "a.pt", Original(True, "sum").half(), bare=True)
    assert same_logits(path, original, ids())


def test_the_command_says_what_it_assumes_and_keeps_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    original = Original(True, "sum")
    path = write(tmp_path / "a.pt", torch.compile(original))
    assert main(["import-original", str(path), str(tmp_path / "out")]) == 0
    assert "an earlier version of the original project" in caplog.text
    with torch.no_grad():
        ours = checkpoint.load_model(tmp_path / "out")(ids())
    torch.testing.assert_close(ours, original(ids()), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda s: s.update({"decoder_layers.0.layer_norm1.bias": torch.zeros(WIDTH)}), "layers of one model"),
        (lambda s: s.update({"module.embedding.weight": torch.zeros(1)}), "'embedding.weight' twice"),
        (lambda s: s.pop("decoder.1.feed_forward.2.bias"), "layers.1.feed_forward.down.bias"),
        (lambda s: [s.pop(name) for name in list(s) if name.startswith("decoder.")], "no checkpoint of the original"),
    ],
)
def test_what_does_not_fit_is_a_sentence(tmp_path: Path, change: Callable[[dict], object], word: str) -> None:
    state = Original(True, "sum").state_dict()
    change(state)
    torch.save({"model_state_dict": state}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=word):
        load_original(tmp_path / "a.pt")
