"""A model directory of ours is one of transformers', and the other way round."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from models import tiny_config, tiny_model, tiny_tokenizer
from safetensors.torch import load_file, save_file

from transformer.errors import CheckpointError
from transformer.hub import checkpoint
from transformer.hub.formats import hub_config, model_config
from transformer.inference import Generator, SamplingOptions
from transformer.model import Transformer
from transformer.text.tokenizer import Tokenizer

WITH_A_HUB_FORMAT = {
    "paper": ("paper", {}, "OPTForCausalLM"),
    "paper-untied": ("paper", {"tie_embeddings": False}, "OPTForCausalLM"),
    "gpt2": ("gpt2", {}, "GPT2LMHeadModel"),
    "gpt2-untied": ("gpt2", {"tie_embeddings": False}, "GPT2LMHeadModel"),
    "modern": ("modern", {}, "Qwen3ForCausalLM"),
    "modern-untied-wide-heads": ("modern", {"tie_embeddings": False, "head_dim": 24}, "Qwen3ForCausalLM"),
    "modern-without-qk-norm": ("modern", {"qk_norm": False}, "LlamaForCausalLM"),
    "modern-with-biases": ("modern", {"qk_norm": False, "bias": True, "rope_theta": 5e5}, "LlamaForCausalLM"),
}
IDS = torch.randint(0, 300, (2, 32), generator=torch.Generator().manual_seed(1))


def save_tiny(path: Path, name: str) -> Transformer:
    preset, overrides, _ = WITH_A_HUB_FORMAT[name]
    tokenizer = tiny_tokenizer()
    model = tiny_model(preset, vocab_size=tokenizer.vocab_size, **overrides)
    checkpoint.save(model, tokenizer, path)
    return model


@pytest.mark.parametrize("name", WITH_A_HUB_FORMAT)
def test_transformers_opens_our_directory_with_the_same_logits(name: str, tmp_path: Path) -> None:
    ours = save_tiny(tmp_path, name)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(theirs).__name__ == WITH_A_HUB_FORMAT[name][2]
    assert not any(report.values()), report
    ids = IDS % ours.config.vocab_size
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(ids).logits, ours(ids), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", WITH_A_HUB_FORMAT)
def test_transformers_generates_the_same_greedy_text(name: str, tmp_path: Path) -> None:
    ours = save_tiny(tmp_path, name)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    prompt = "The river"
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    n = inputs["input_ids"].shape[1]
    out = theirs.generate(**inputs, do_sample=False, repetition_penalty=1.0, max_new_tokens=16)[0, n:]
    expected = tokenizer.decode(out, skip_special_tokens=True)
    greedy = SamplingOptions(max_tokens=16, temperature=0)
    generation = Generator(ours, Tokenizer.load(tmp_path)).generate(prompt, greedy)
    text = "".join(generation)
    assert generation.prompt_tokens == n
    assert text and expected.startswith(text)  # a character cut off by the last token is not shown


@pytest.mark.parametrize("name", WITH_A_HUB_FORMAT)
def test_our_directory_comes_back_exactly(name: str, tmp_path: Path) -> None:
    ours = save_tiny(tmp_path, name)
    again, tokenizer = checkpoint.load(tmp_path)
    assert again.config == ours.config
    assert not again.training
    for key, tensor in ours.state_dict().items():
        # One rounding is left where sqrt(d_model) was multiplied in and divided out.
        torch.testing.assert_close(again.state_dict()[key], tensor, rtol=2e-7 if name == "paper-untied" else 0, atol=0)
    assert again.parameter_count() == ours.parameter_count()
    assert tokenizer.encode_prompt("The river") == tiny_tokenizer().encode_prompt("The river")


@pytest.mark.parametrize("heads", ["average", "sum"])
def test_blog_keeps_its_own_format(heads: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model("blog", vocab_size=tokenizer.vocab_size, heads=heads, pad_token_id=1)
    checkpoint.save(model, tokenizer, tmp_path)
    again = checkpoint.load_model(tmp_path)
    assert again.config == model.config
    ids = IDS % tokenizer.vocab_size
    assert torch.equal(again(ids), model(ids))


THEIRS = {
    "gpt2": transformers.GPT2Config(vocab_size=300, n_positions=32, n_embd=32, n_layer=2, n_head=4),
    "llama": transformers.LlamaConfig(
        vocab_size=300,
        max_position_embeddings=32,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
    ),
    "qwen3": transformers.Qwen3Config(
        vocab_size=300,
        max_position_embeddings=32,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=48,
        tie_word_embeddings=True,
    ),
    "opt": transformers.OPTConfig(
        vocab_size=300,
        max_position_embeddings=32,
        hidden_size=32,
        word_embed_proj_dim=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=48,
    ),
}


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_we_open_what_transformers_saved_with_the_same_logits(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(THEIRS[name]).to(dtype).save_pretrained(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ours = checkpoint.load_model(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS), theirs(IDS).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model_type": "mamba"}, "mamba"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}, "yarn"),
        ({"hidden_size": None}, "d_model"),
        ({"num_attention_heads": 3}, "n_kv_heads"),
    ],
)
def test_a_config_that_is_not_understood_is_refused_by_name(change: dict, word: str, tmp_path: Path) -> None:
    save_tiny(tmp_path, "modern")
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, **change}))
    with pytest.raises(CheckpointError, match=word):
        checkpoint.load_model(tmp_path)


def test_damaged_and_incomplete_directories_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        checkpoint.load(tmp_path)
    save_tiny(tmp_path, "modern")
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(tmp_path)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        checkpoint.load(tmp_path)


def test_weights_that_do_not_fit_the_config_name_the_tensor(tmp_path: Path) -> None:
    save_tiny(tmp_path, "modern")
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, "num_hidden_layers": 3}))
    with pytest.raises(CheckpointError, match=r"lacks .* 'layers\.2\."):
        checkpoint.load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**fields, "num_hidden_layers": 1}))
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\."):
        checkpoint.load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**fields, "intermediate_size": 64}))
    with pytest.raises(CheckpointError, match="has shape"):
        checkpoint.load_model(tmp_path)


def test_extra_key_holds_only_what_the_hub_cannot_say() -> None:
    assert "decoder_only_transformer" not in hub_config(tiny_config("modern"))
    extra = hub_config(tiny_config("paper", dropout=0.2))["decoder_only_transformer"]
    assert extra == {"positions": "sinusoidal", "scale_embeddings": True, "tie_embeddings": True}
    assert model_config(hub_config(tiny_config("paper"))) == tiny_config("paper")


def test_a_tied_model_without_its_embedding_names_it(tmp_path: Path) -> None:
    save_tiny(tmp_path, "modern")
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.embed_tokens.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks .*'(head|token_embedding)\.weight'"):
        checkpoint.load_model(tmp_path)


def test_a_save_that_fails_leaves_the_tokenizer_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny(tmp_path, "modern")
    before = (tmp_path / "tokenizer.json").read_bytes()

    def disk_full(*arguments: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(OSError, match="no space"):
        tiny_tokenizer(280).save(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == before
    assert not list(tmp_path.glob(".*partial"))
