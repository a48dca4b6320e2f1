"""Model directories of others as they are found: held equal to transformers, or refused by a sentence."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from models import model_config, tiny_model_directory
from safetensors.torch import load_file, save_file
from test_formats import GPT2, LLAMA, OLMO2, OPT, QWEN3

from transformer.errors import CheckpointError
from transformer.hub import checkpoint

IDS = torch.arange(3, 27)[None]
HEADS = {"modern": "lm_head.weight", "gpt2": "lm_head.weight"}
EMBEDDINGS = {"modern": "model.embed_tokens.weight", "gpt2": "transformer.wte.weight"}


def change(folder: Path, tensors: dict[str, torch.Tensor | None], **fields: object) -> Path:
    """Replace tensors and fields of a model directory, or take them out where they are None."""
    path = folder / "model.safetensors"
    state = load_file(path) | tensors
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | fields
    config = {name: value for name, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def same_logits(folder: Path) -> checkpoint.Transformer:
    theirs, ours = transformers.AutoModelForCausalLM.from_pretrained(folder).eval(), checkpoint.load_model(folder)
    with torch.inference_mode():
        torch.testing.assert_close(ours(IDS), theirs(IDS).logits, atol=1e-4, rtol=0)
    return ours


@pytest.mark.parametrize("preset", ["modern", "gpt2"])
def test_a_head_of_its_own_counts_though_config_says_that_it_is_tied(preset: str, tmp_path: Path) -> None:
    tiny_model_directory(tmp_path, preset, tie_embeddings=False)
    change(tmp_path, {}, tie_word_embeddings=True)
    model = same_logits(tmp_path)
    assert not model.config.tie_embeddings and model.head.weight is not model.token_embedding.weight
    checkpoint.save(model, checkpoint.Tokenizer.load(tmp_path), tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["tie_word_embeddings"] is False
    with torch.inference_mode():
        assert torch.equal(same_logits(tmp_path / "again")(IDS), model(IDS))


@pytest.mark.parametrize("preset", ["modern", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_that_is_the_embedding_is_tied(preset: str, dtype: torch.dtype, tmp_path: Path) -> None:
    tiny_model_directory(tmp_path, preset, tie_embeddings=True)
    state = {name: tensor.to(dtype) for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    change(tmp_path, state | {HEADS[preset]: state[EMBEDDINGS[preset]].clone()})
    model = checkpoint.load_model(tmp_path)
    assert model.config.tie_embeddings and model.head.weight is model.token_embedding.weight


@pytest.mark.parametrize("said", [False, None])
def test_a_head_that_is_missing_names_the_field_that_would_tie_it(said: bool | None, tmp_path: Path) -> None:
    tiny_model_directory(tmp_path, "modern", tie_embeddings=True)
    change(tmp_path, {}, tie_word_embeddings=said)
    with pytest.raises(CheckpointError, match=r"lack 1 tensors, .* 'lm_head.weight'.*\"tie_word_embeddings\": true"):
        checkpoint.load_model(tmp_path)


@pytest.mark.parametrize(
    ("tensor", "broken", "word"),
    [
        ("lm_head.weight", torch.zeros(3, 32), r"'lm_head.weight' has shape \(3, 32\), expected \(300, 32\)"),
        ("transformer.h.0.attn.c_attn.weight", torch.zeros(32, 9), r"c_attn.weight' has shape .*, expected \(32, 96\)"),
        ("transformer.h.1.attn.c_attn.weight", None, r"lack 1 tensors, .*'transformer.h.1.attn.c_attn.weight'"),
        ("transformer.h.2.ln_1.weight", torch.zeros(32), r"hold 'transformer.h.2.ln_1.weight', .*no place"),
        ("transformer.ln_f.bias", torch.full((32,), torch.nan), r"'transformer.ln_f.bias' holds .*NaN"),
        ("transformer.h.1.mlp.c_fc.weight", torch.full((32, 128), -torch.inf), r"c_fc.weight' holds .*infinite"),
        ("transformer.ln_f.bias", torch.zeros(32, dtype=torch.int8), r"'transformer.ln_f.bias' is of torch.int8"),
    ],
)
def test_a_tensor_is_named_as_in_the_file(tensor: str, broken: torch.Tensor | None, word: str, tmp_path: Path) -> None:
    change(tiny_model_directory(tmp_path, "gpt2", tie_embeddings=False), {tensor: broken})
    with pytest.raises(CheckpointError, match=word):
        checkpoint.load_model(tmp_path)
    bare = {
        name.removeprefix("transformer."): value for name, value in load_file(tmp_path / "model.safetensors").items()
    }
    save_file(bare, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=word.replace("transformer.", "")):
        checkpoint.load_model(tmp_path)


LEFT_OVER = {
    "_attn_implementation": "sdpa",
    "_attn_implementation_autoset": True,
    "_attn_implementation_internal": "flash_attention_2",
    "_flash_attn_2_enabled": True,
    "_commit_hash": "607a30d",
    "attn_implementation": "eager",
    "use_flash_attn": True,
    "model_max_length": 4096,
    "is_decoder": False,
    "max_window_layers": 28,
    "layer_types": ["full_attention", "full_attention"],
    "torch_dtype": "bfloat16",
    "cls_token_id": 1,
    "max_new_tokens": 20,
    "hidden_dropout": 0.1,
    "sliding_window": 10**6,  # beyond every context
    "output_past": True,
    "predict_special_tokens": True,
    "n_special": 0,
    "tokenizer_padding_side": "right",
}


@pytest.mark.parametrize("known", [GPT2, LLAMA, OPT, QWEN3], ids=["gpt2", "llama", "opt", "qwen3"])
def test_fields_that_compute_nothing_change_nothing(known: dict) -> None:
    assert model_config(known | LEFT_OVER) == model_config(known)


@pytest.mark.parametrize(
    ("field", "word"),
    [
        ({"sliding_window": 128}, "sliding_window 128"),
        ({"sliding_window": 128, "use_sliding_window": True}, "use_sliding_window"),
        ({"use_sliding_window": True, "max_window_layers": 1}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"attention_multiplier": 0.5}, "attention_multiplier"),
        ({"residual_multiplier": 0.5}, "residual_multiplier"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"alibi": True}, "alibi"),
        ({"parallel_attn": True}, "parallel_attn"),
    ],
)
def test_fields_that_compute_are_never_ignored(field: dict, word: str) -> None:
    with pytest.raises(CheckpointError, match=word):
        model_config(LLAMA | field)


@pytest.mark.parametrize(("known", "eps"), [(LLAMA, 1e-6), (QWEN3, 1e-6), (OLMO2, 1e-5)])
def test_a_missing_eps_and_another_name_of_silu_mean_what_they_do_in_transformers(known: dict, eps: float) -> None:
    fields = {name: value for name, value in known.items() if name != "rms_norm_eps"} | {"hidden_act": "swish"}
    assert transformers.AutoConfig.for_model(**fields).rms_norm_eps == eps
    assert model_config(fields) == model_config(known | {"rms_norm_eps": eps})


@pytest.mark.parametrize("known", [LLAMA, QWEN3])
def test_the_original_context_means_nothing_without_scaling(known: dict) -> None:
    assert model_config(known | {"original_max_position_embeddings": 128}) == model_config(known)


def test_a_window_that_is_switched_off_is_none() -> None:
    off = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 21}
    assert model_config(LLAMA | off) == model_config(LLAMA)
    assert model_config(QWEN3 | off) == model_config(QWEN3)
