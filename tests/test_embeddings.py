"""The token embedding of pretrained models, against what transformers finds in them."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from models import tiny_model, tiny_model_directory
from safetensors.torch import load_file, save_file

from transformer.errors import CheckpointError, ConfigError
from transformer.hub import checkpoint
from transformer.hub.embeddings import pretrained_embeddings, use_embeddings
from transformer.hub.resolve import pack

SIZES = dict(vocab_size=90, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
MODELS = {
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**SIZES)),
    "bert-with-a-head": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**SIZES)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=90, n_embd=16, n_layer=1, n_head=2)
    ),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)),
    "opt": lambda: transformers.OPTModel(
        transformers.OPTConfig(**{**SIZES, "ffn_dim": 32, "word_embed_proj_dim": 16, "max_position_embeddings": 32})
    ),
    "neox": lambda: transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**SIZES)),
    "t5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=90, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    ),
}


def save(name: str, directory: Path, **options: object) -> torch.Tensor:
    """Save the model as transformers does; returns its input embedding."""
    torch.manual_seed(0)
    model = MODELS[name]()
    model.save_pretrained(directory, **options)
    return model.get_input_embeddings().weight.detach()


@pytest.mark.parametrize("name", MODELS)
def test_the_embedding_is_the_one_that_transformers_finds(name: str, tmp_path: Path) -> None:
    expected = save(name, tmp_path)
    found = pretrained_embeddings(str(tmp_path))
    assert found.shape == (90, 16) and torch.equal(found, expected)


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    model = MODELS["llama"]().to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    found = pretrained_embeddings(str(tmp_path))
    assert found.dtype == torch.float32 and torch.equal(found, model.get_input_embeddings().weight.float())


def test_of_a_model_in_several_files_only_the_one_with_the_embedding_is_read(tmp_path: Path) -> None:
    expected = save("llama", tmp_path, max_shard_size="6KB")
    files = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(files.values())) > 2
    for file in set(files.values()) - {files["model.embed_tokens.weight"]}:
        (tmp_path / file).unlink()
    assert torch.equal(pretrained_embeddings(str(tmp_path)), expected)
    (tmp_path / files["model.embed_tokens.weight"]).unlink()
    with pytest.raises(CheckpointError, match="missing"):
        pretrained_embeddings(str(tmp_path))


def test_our_own_models_and_archives_of_them_are_read(tmp_path: Path) -> None:
    for preset in ("gpt2", "modern", "blog"):
        directory = tiny_model_directory(tmp_path / preset, preset)
        expected = tiny_model(preset).token_embedding.weight
        assert torch.equal(pretrained_embeddings(str(directory)), expected)
        archive = pack(directory, tmp_path / f"{preset}.tar")
        assert torch.equal(pretrained_embeddings(str(archive)), expected)


def test_of_the_hub_only_what_is_needed_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def snapshot_download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        assert (name, revision) == ("user/name", "v1")
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    save("llama", tmp_path, max_shard_size="6KB")
    shard = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"][
        "model.embed_tokens.weight"
    ]
    pretrained_embeddings("user/name@v1")
    assert asked == [["config.json", "model.safetensors", "model.safetensors.index.json"], ["config.json", shard]]


def test_models_without_one_embedding_say_so(tmp_path: Path) -> None:
    folder = str(tmp_path)
    with pytest.raises(CheckpointError, match="no weights"):
        pretrained_embeddings(folder)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(CheckpointError, match="not an index"):
        pretrained_embeddings(folder)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="damaged"):
        pretrained_embeddings(folder)
    for tensors, word in (
        ({"growte.weight": torch.ones(3, 2)}, "no token embedding"),
        ({f"{side}.embeddings.word_embeddings.weight": torch.ones(3, 2) for side in ("a", "b")}, "several"),
        ({"wte.weight": torch.ones(3, 2, dtype=torch.int8)}, "quantised"),
    ):
        save_file(tensors, weights)
        with pytest.raises(CheckpointError, match=word):
            pretrained_embeddings(folder)


def test_pickles_are_not_read(tmp_path: Path) -> None:
    torch.save({"wte.weight": torch.ones(3, 2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pickles .* are not read"):
        pretrained_embeddings(str(tmp_path))


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_takes_them_over(tied: bool) -> None:
    model = tiny_model("gpt2", tie_embeddings=tied)
    parameter, head = model.token_embedding.weight, model.head.weight.detach().clone()
    table = torch.randn(320, 32)  # padded: the model has 300 tokens
    use_embeddings(model, table)
    assert model.token_embedding.weight is parameter and parameter.requires_grad  # an optimizer may hold it already
    assert torch.equal(parameter, table[:300])
    assert torch.equal(model.head.weight, table[:300] if tied else head)
    table.zero_()
    assert parameter.any()  # a copy


def test_a_pretrained_table_survives_saving(tmp_path: Path) -> None:
    table = torch.randn(300, 32)
    directory = tiny_model_directory(tmp_path, "gpt2")
    model, tokenizer = checkpoint.load(directory)
    use_embeddings(model, table)
    checkpoint.save(model, tokenizer, directory)
    assert torch.equal(load_file(directory / "model.safetensors")["transformer.wte.weight"], table)


@pytest.mark.parametrize(
    ("shape", "words"), [((300, 48), ("48", "32", "d_model 48")), ((299, 32), ("299", "300", "tokenizer"))]
)
def test_a_table_that_does_not_fit_says_what_to_change(shape: tuple[int, int], words: tuple[str, ...]) -> None:
    model = tiny_model()
    before = model.token_embedding.weight.detach().clone()
    with pytest.raises(ConfigError) as error:
        use_embeddings(model, torch.ones(shape))
    assert all(word in str(error.value) for word in words)
    assert torch.equal(model.token_embedding.weight, before)
