"""A model directory of ours is one of transformers', and the other way round."""

import json
from pathlib import Path
from random import Random

import pytest
import torch
import transformers
from models import model_config, tiny_config, tiny_model, tiny_tokenizer
from safetensors.torch import load_file, save_file

from transformer.data.tokenizer import Tokenizer
from transformer.errors import CheckpointError, WriteError
from transformer.hub import checkpoint
from transformer.hub.architectures import default_adapter
from transformer.hub.resolve import fetch, pack
from transformer.inference import Generator, SamplingOptions, TorchBackend, select_backend
from transformer.inference.decoder import Decoder
from transformer.model import ModelConfig, RopeScaling, Transformer

WITH_A_HUB_FORMAT = {
    "paper": ("paper", {}, "OPTForCausalLM"),
    "paper-untied": ("paper", {"tie_embeddings": False}, "OPTForCausalLM"),
    "gpt2": ("gpt2", {}, "GPT2LMHeadModel"),
    "gpt2-untied": ("gpt2", {"tie_embeddings": False}, "GPT2LMHeadModel"),
    "modern": ("modern", {}, "Qwen3ForCausalLM"),
    "modern-untied-wide-heads": ("modern", {"tie_embeddings": False, "head_dim": 24}, "Qwen3ForCausalLM"),
    "modern-without-qk-norm": ("modern", {"qk_norm": False}, "LlamaForCausalLM"),
    "modern-with-biases": ("modern", {"qk_norm": False, "bias": True, "rope_theta": 5e5}, "LlamaForCausalLM"),
    "modern-attention-biases": ("modern", {"bias": True, "feed_forward_bias": False}, "Qwen3ForCausalLM"),
    "modern-feed-forward-biases": ("modern", {"qk_norm": False, "feed_forward_bias": True}, "LlamaForCausalLM"),
    "modern-window": ("modern", {"qk_norm": False, "sliding_window": 7}, "MistralForCausalLM"),
    "local": ("local", {}, "Qwen3ForCausalLM"),
    "nope": ("nope", {}, "SmolLM3ForCausalLM"),
    "reordered": ("reordered", {}, "Olmo2ForCausalLM"),
    "sandwich": ("sandwich", {"tie_embeddings": False}, "Gemma3ForCausalLM"),
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


@pytest.mark.parametrize("name", ["paper", "gpt2-untied", "modern", "modern-with-biases"])
def test_transformers_writes_the_same_64_greedy_tokens(name: str, tmp_path: Path) -> None:
    preset, overrides, _ = WITH_A_HUB_FORMAT[name]
    ours = tiny_model(preset, context_length=96, **overrides)
    checkpoint.save(ours, None, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    text = IDS[:1, :8]
    options = {"do_sample": False, "repetition_penalty": 1.0, "eos_token_id": None, "pad_token_id": 0}
    expected = theirs.generate(text, max_new_tokens=64, **options)
    with torch.no_grad():
        for _ in range(64):
            text = torch.cat([text, ours(text)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(text, expected)


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


# Scaled rotary positions, whose original context is a few tokens, so that the texts of the tests go beyond it.
ROPES = {
    "linear": dict(factor=4.0),
    "dynamic": dict(factor=6.0),
    "llama3": dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=12),
    "yarn": dict(factor=6.0, original_max_position_embeddings=16),
    "yarn, every number": dict(
        **dict(factor=5.0, original_max_position_embeddings=16, beta_fast=8.0, beta_slow=2.0, truncate=False),
        **dict(mscale=0.8, mscale_all_dim=0.5),
    ),
    "yarn, an attention factor": dict(factor=4.0, original_max_position_embeddings=24, attention_factor=1.3),
}
WINDOWS = ["mistral, window", "qwen2, window", "qwen3, window", "qwen3, window in some layers", "smollm3, window"]
OPENED = [
    "gpt2",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "opt",
    "smollm3",
    "olmo2",
    "olmo2, yarn",
    "gemma3_text",
    "gemma3_text, linear",
    "gemma3_text, yarn",
    *(f"llama, {rope}" for rope in ROPES),
    *WINDOWS,
]


def their_config(name: str, seed: int) -> transformers.PreTrainedConfig:
    """A configuration of `transformers` with sizes and choices drawn at random. name: and after a comma what of it."""
    random = Random(seed)
    name, _, variant = name.partition(", ")
    heads, width = random.choice([2, 4, 6]), random.choice([8, 16])
    common = {"vocab_size": random.randint(90, 400), "tie_word_embeddings": random.random() < 0.5}
    layers, hidden = random.randint(1, 3), random.choice([40, 96])
    if name == "gpt2":
        sizes = {"n_positions": 96, "n_embd": heads * width, "n_layer": layers, "n_head": heads}
        return transformers.GPT2Config(**common, **sizes, n_inner=random.choice([None, hidden]))
    common |= {"max_position_embeddings": 96, "num_hidden_layers": layers, "num_attention_heads": heads}
    if name == "opt":
        post = {"do_layer_norm_before": random.random() < 0.5, "word_embed_proj_dim": heads * width}
        return transformers.OPTConfig(**common, **post, hidden_size=heads * width, ffn_dim=hidden)
    common |= {
        "hidden_size": heads * random.choice([8, 16]),
        "head_dim": width,
        "num_key_value_heads": random.choice([1, 2, heads]),
        "intermediate_size": hidden,
        "attention_bias": random.random() < 0.5,
        "rms_norm_eps": random.choice([1e-5, 1e-6]),
        "rope_parameters": {"rope_type": "default", "rope_theta": random.choice([1e4, 5e5])},
    }
    if variant in ROPES:
        common["rope_parameters"] |= {"rope_type": variant.split(",")[0], **ROPES[variant]}
    if variant == "dynamic":
        common["max_position_embeddings"] = 16  # the original context
    window = random.randint(3, 20)  # the texts of the tests go beyond it
    if name == "llama":
        return transformers.LlamaConfig(**common, mlp_bias=random.random() < 0.5)
    if name == "mistral":
        return transformers.MistralConfig(**common, sliding_window=window if variant else random.choice([None, 96]))
    if name == "smollm3":
        common |= {"no_rope_layer_interval": random.choice([2, 3]), "mlp_bias": random.random() < 0.5}
        common["num_hidden_layers"] = 3
    if name == "gemma3_text":
        common["rope_parameters"] = {
            "full_attention": common["rope_parameters"],
            "sliding_attention": {"rope_type": "default", "rope_theta": random.choice([1e3, 1e4])},
        }
        pattern = random.choice([["sliding", "full"], ["sliding"], ["full"], ["full", "sliding"]])
        common |= {"layer_types": [f"{pattern[i % len(pattern)]}_attention" for i in range(layers)]}
        common |= {"query_pre_attn_scalar": random.choice([width, 24]), "sliding_window": window}
    if name in ("smollm3", "olmo2"):  # the tokens of the originals are beyond these vocabularies
        common |= {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    if "window" in variant:
        common |= {"use_sliding_window": True, "sliding_window": window, "max_window_layers": random.randint(0, 1)}
    if variant == "window in some layers":
        common["layer_types"] = [["sliding_attention", "full_attention"][i % 2] for i in range(layers)]
    return transformers.AutoConfig.for_model(name, **common)


def save_theirs(path: Path, name: str, seed: int, **how: object) -> transformers.PreTrainedModel:
    """A model of `transformers` with random weights and biases that count, as it saves it."""
    torch.manual_seed(seed)
    theirs = transformers.AutoModelForCausalLM.from_config(their_config(name, seed)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.to(how.pop("dtype", torch.float32)).save_pretrained(path, **how)
    # Opened again: a cast of the model itself would round its rotary frequencies too.
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


@pytest.mark.parametrize("name", OPENED)
@pytest.mark.parametrize("seed", [1, 2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (0, 3))])
def test_we_open_what_transformers_saved_with_the_same_logits_and_text(name: str, seed: int, tmp_path: Path) -> None:
    dtype = [torch.float32, torch.bfloat16, torch.float16][seed % 3]
    theirs = save_theirs(tmp_path, name, seed, dtype=dtype)
    ours = checkpoint.load_model(tmp_path)
    ids = IDS % ours.config.vocab_size
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-4, rtol=0)
        text = ids[:1, :8]
        options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "use_cache": False}
        expected = theirs.generate(text, max_new_tokens=32, **options)
        for _ in range(32):
            text = torch.cat([text, ours(text)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(text, expected)


@pytest.mark.parametrize("name", OPENED)
def test_what_is_opened_is_written_as_what_it_was(name: str, tmp_path: Path) -> None:
    """Under its model type: transformers and we open it with the same logits, to the last digit."""
    theirs = save_theirs(tmp_path / "theirs", name, 2)
    ours = checkpoint.load_model(tmp_path / "theirs")
    checkpoint.save(ours, None, tmp_path / "ours", checkpoint.read_model_type(tmp_path / "theirs"))
    again = checkpoint.load_model(tmp_path / "ours")
    opened, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert again.config == ours.config and opened.config.model_type == theirs.config.model_type
    assert not any(report.values()), report
    ids = IDS % theirs.config.vocab_size
    with torch.no_grad():
        assert torch.equal(again(ids), ours(ids))
        torch.testing.assert_close(opened.eval()(ids).logits, theirs(ids).logits, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", OPENED)
def test_texts_written_together_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    """With the cache, greedily, texts of different lengths side by side, by PyTorch and by the fastest backend."""
    theirs = save_theirs(tmp_path, name, 5)
    ours = checkpoint.load_model(tmp_path)
    prompts = [
        (row % ours.config.vocab_size)[:length] for row, length in zip(IDS.repeat(2, 1), (9, 3, 14), strict=False)
    ]
    greedy = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 32}
    expected = [theirs.generate(prompt[None], **greedy)[0].tolist() for prompt in prompts]
    for backend in (TorchBackend(ours, "fp32"), select_backend(ours, "fp32")):
        options = SamplingOptions(max_tokens=32, temperature=0)
        decoder = Decoder(backend, [prompt.tolist() for prompt in prompts], options, [])
        for _ in range(32):
            decoder.next()
        assert decoder.tokens == expected, type(backend)


@pytest.mark.parametrize("theta", [1e4, 1e6])
def test_a_long_text_has_the_same_logits_up_to_the_end_of_the_context(theta: float, tmp_path: Path) -> None:
    sizes = dict(vocab_size=200, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
    rope = {"rope_type": "default", "rope_theta": theta}
    config = transformers.LlamaConfig(**sizes, max_position_embeddings=2048, rope_parameters=rope)
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    theirs.save_pretrained(tmp_path)
    ids = torch.randint(0, 200, (1, 2048), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.load_model(tmp_path)(ids), theirs(ids).logits, atol=1e-4, rtol=0)


def test_a_config_of_transformers_4_means_the_same(tmp_path: Path) -> None:
    theirs = save_theirs(tmp_path, "llama", 0, dtype=torch.bfloat16)
    fields = json.loads((tmp_path / "config.json").read_text())
    fields["rope_theta"] = fields.pop("rope_parameters")["rope_theta"]
    fields |= {"rope_scaling": None, "torch_dtype": fields.pop("dtype"), "transformers_version": "4.40.1"}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    ids = IDS % theirs.config.vocab_size
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.load_model(tmp_path)(ids), theirs(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_scaled_rotary_positions_are_read_or_refused_by_name(place: str, key: str) -> None:
    for kind in ("longrope", "su", "mrope", "proportional", ["linear"]):
        with pytest.raises(CheckpointError, match=r"rope_type.*this program computes default, linear"):
            model_config(LLAMA | {place: {key: kind, "factor": 2.0}})
    for kind in ("linear", "dynamic", "llama3"):
        with pytest.raises(CheckpointError, match=r"has no .*factor"):
            model_config(LLAMA | {place: {key: kind}})
    assert model_config(LLAMA | {place: {key: "linear", "factor": 2.0}}).rope_scaling == RopeScaling("linear", 2.0)
    dynamic = model_config(LLAMA | {place: {key: "dynamic", "factor": 2.5}})
    assert dynamic.rope_scaling == RopeScaling("dynamic", 2.5, 2048) and dynamic.context_length == 5120
    yarn = {key: "yarn", "original_max_position_embeddings": 512}  # the factor is what the context says
    assert model_config(LLAMA | {place: yarn}).rope_scaling == RopeScaling("yarn", 4.0, 512)
    extended = model_config(LLAMA | {place: {key: "yarn", "factor": 4.0}})  # as Qwen2.5 says to write it
    assert extended.context_length == 8192 and extended.rope_scaling == RopeScaling("yarn", 4.0, 2048)
    assert model_config(LLAMA | {place: yarn, "original_max_position_embeddings": 1024}).rope_scaling == RopeScaling(
        "yarn", 2.0, 1024
    )


@pytest.mark.parametrize(
    ("fields", "theta"),
    [
        ({"rope_theta": 5e5}, 5e5),
        ({"rope_theta": None}, 1e4),
        ({"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 7e4}}, 7e4),
        ({"rope_theta": 5e5, "rope_parameters": {"rope_theta": 7e4}}, 7e4),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}}, 5e5),
        ({"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"rope_theta": 7e4}}, 1e4),
    ],
)
def test_the_base_of_rotary_positions_stands_where_transformers_looks_for_it(fields: dict, theta: float) -> None:
    config = {name: value for name, value in (LLAMA | fields).items() if value is not None}
    theirs = transformers.LlamaConfig(**config)
    assert model_config(config).rope_theta == theirs.rope_parameters["rope_theta"] == theta


@pytest.mark.parametrize(
    ("rope", "word"),
    [
        ({"rope_type": "linear", "factor": 0}, "factor must be a number above 0, not 0"),
        ({"rope_type": "linear", "factor": "2"}, "factor must be a number above 0, not '2'"),
        ({"rope_type": "linear", "factor": 2, "attention_scale": 2}, "attention_scale"),
        ({"rope_type": "linear", "factor": 2, "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 4}, "less than"),
        ({"rope_type": "yarn", "factor": 2, "original_max_position_embeddings": 1.5}, "original_context"),
        ({"rope_type": "yarn", "factor": 2, "truncate": "no"}, "truncate"),
    ],
)
def test_scaling_that_does_not_fit_is_refused_by_name(rope: dict, word: str) -> None:
    with pytest.raises(CheckpointError, match=word):
        model_config(LLAMA | {"rope_parameters": rope})


# What known models say of themselves, with the fields that make each of them different.
GPT2 = {
    **dict(activation_function="gelu_new", architectures=["GPT2LMHeadModel"], attn_pdrop=0.1, bos_token_id=50256),
    **dict(embd_pdrop=0.1, eos_token_id=50256, initializer_range=0.02, layer_norm_epsilon=1e-05, model_type="gpt2"),
    **dict(n_ctx=1024, n_embd=768, n_head=12, n_layer=12, n_positions=1024, resid_pdrop=0.1, vocab_size=50257),
    **dict(summary_activation=None, summary_first_dropout=0.1, summary_proj_to_labels=True, summary_type="cls_index"),
    **dict(summary_use_proj=True, task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}}),
}
LLAMA = {  # TinyLlama
    **dict(architectures=["LlamaForCausalLM"], attention_bias=False, bos_token_id=1, eos_token_id=2, hidden_act="silu"),
    **dict(hidden_size=2048, initializer_range=0.02, intermediate_size=5632, max_position_embeddings=2048),
    **dict(model_type="llama", num_attention_heads=32, num_hidden_layers=22, num_key_value_heads=4, pretraining_tp=1),
    **dict(rms_norm_eps=1e-05, rope_scaling=None, rope_theta=10000.0, tie_word_embeddings=False, vocab_size=32000),
    **dict(torch_dtype="bfloat16", transformers_version="4.35.0", use_cache=True),
}
SMOLLM2 = LLAMA | {
    **dict(bos_token_id=0, eos_token_id=0, hidden_size=576, intermediate_size=1536, is_llama_config=True),
    **dict(max_position_embeddings=8192, num_attention_heads=9, num_hidden_layers=30, num_key_value_heads=3),
    **dict(rope_interleaved=False, rope_theta=100000, tie_word_embeddings=True, vocab_size=49152),
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
}
QWEN3 = {
    **dict(architectures=["Qwen3ForCausalLM"], attention_bias=False, attention_dropout=0.0, bos_token_id=151643),
    **dict(eos_token_id=151645, head_dim=128, hidden_act="silu", hidden_size=1024, initializer_range=0.02),
    **dict(intermediate_size=3072, max_position_embeddings=40960, max_window_layers=28, model_type="qwen3"),
    **dict(num_attention_heads=16, num_hidden_layers=28, num_key_value_heads=8, rms_norm_eps=1e-06, rope_scaling=None),
    **dict(rope_theta=1000000, sliding_window=None, tie_word_embeddings=True, torch_dtype="bfloat16", use_cache=True),
    **dict(transformers_version="4.51.0", use_sliding_window=False, vocab_size=151936),
}
LLAMA32 = LLAMA | {  # the one of a billion
    **dict(bos_token_id=128000, eos_token_id=[128001, 128008, 128009], head_dim=64, intermediate_size=8192),
    **dict(max_position_embeddings=131072, mlp_bias=False, num_hidden_layers=16, num_key_value_heads=8),
    **dict(rope_theta=500000.0, tie_word_embeddings=True, vocab_size=128256),
    "rope_scaling": {
        **dict(factor=32.0, high_freq_factor=4.0, low_freq_factor=1.0, rope_type="llama3"),
        "original_max_position_embeddings": 8192,
    },
}
QWEN2 = {  # Qwen2.5, the one of half a billion
    **dict(architectures=["Qwen2ForCausalLM"], attention_dropout=0.0, bos_token_id=151643, eos_token_id=151643),
    **dict(hidden_act="silu", hidden_size=896, initializer_range=0.02, intermediate_size=4864, model_type="qwen2"),
    **dict(max_position_embeddings=32768, max_window_layers=24, num_attention_heads=14, num_hidden_layers=24),
    **dict(num_key_value_heads=2, rms_norm_eps=1e-06, rope_theta=1000000.0, sliding_window=32768),
    **dict(tie_word_embeddings=True, torch_dtype="bfloat16", transformers_version="4.40.1", use_cache=True),
    **dict(use_mrope=False, use_sliding_window=False, vocab_size=151936),
}
MISTRAL = {  # 7B v0.3
    **dict(architectures=["MistralForCausalLM"], attention_dropout=0.0, bos_token_id=1, eos_token_id=2),
    **dict(hidden_act="silu", hidden_size=4096, initializer_range=0.02, intermediate_size=14336, model_type="mistral"),
    **dict(max_position_embeddings=32768, num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=8),
    **dict(rms_norm_eps=1e-05, rope_theta=1000000.0, sliding_window=None, tie_word_embeddings=False),
    **dict(torch_dtype="bfloat16", transformers_version="4.42.0.dev0", use_cache=True, vocab_size=32768),
}
OPT = {  # the one of 125 million
    **dict(_name_or_path="facebook/opt-125m", activation_dropout=0.0, activation_function="relu", bos_token_id=2),
    **dict(architectures=["OPTForCausalLM"], attention_dropout=0.0, do_layer_norm_before=True, dropout=0.1),
    **dict(eos_token_id=2, ffn_dim=3072, hidden_size=768, init_std=0.02, layerdrop=0.0, max_position_embeddings=2048),
    **dict(model_type="opt", num_attention_heads=12, num_hidden_layers=12, pad_token_id=1, prefix="</s>"),
    **dict(torch_dtype="float16", transformers_version="4.21.0.dev0", vocab_size=50272, word_embed_proj_dim=768),
    "_remove_final_layer_norm": False,
}
SMOLLM3 = {
    **dict(architectures=["SmolLM3ForCausalLM"], attention_bias=False, attention_dropout=0.0, bos_token_id=None),
    **dict(eos_token_id=128012, hidden_act="silu", hidden_size=2048, initializer_range=0.02, intermediate_size=11008),
    **dict(layer_types=["full_attention"] * 36, max_position_embeddings=65536, max_window_layers=28, mlp_bias=False),
    **dict(model_type="smollm3", no_rope_layer_interval=4, no_rope_layers=[1, 1, 1, 0] * 9, num_attention_heads=16),
    **dict(num_hidden_layers=36, num_key_value_heads=4, pad_token_id=128004, pretraining_tp=2, rms_norm_eps=1e-06),
    **dict(rope_scaling=None, rope_theta=5000000.0, sliding_window=None, torch_dtype="bfloat16", use_cache=False),
    **dict(transformers_version="4.54.0.dev0", use_sliding_window=False, vocab_size=128256),
}
OLMO2 = {  # the one of a billion
    **dict(architectures=["Olmo2ForCausalLM"], attention_bias=False, attention_dropout=0.0, eos_token_id=100257),
    **dict(hidden_act="silu", hidden_size=2048, initializer_range=0.02, intermediate_size=8192, model_type="olmo2"),
    **dict(max_position_embeddings=4096, num_attention_heads=16, num_hidden_layers=16, num_key_value_heads=16),
    **dict(pad_token_id=100277, rms_norm_eps=1e-06, rope_scaling=None, rope_theta=500000, tie_word_embeddings=False),
    **dict(torch_dtype="float32", transformers_version="4.47.0", use_cache=False, vocab_size=100352),
}
GEMMA3 = {  # the one of a billion
    **dict(architectures=["Gemma3ForCausalLM"], attention_bias=False, attention_dropout=0.0, bos_token_id=2),
    **dict(attn_logit_softcapping=None, cache_implementation="hybrid", eos_token_id=[1, 106], head_dim=256),
    **dict(final_logit_softcapping=None, hidden_activation="gelu_pytorch_tanh", hidden_size=1152, pad_token_id=0),
    **dict(initializer_range=0.02, intermediate_size=6912, max_position_embeddings=32768, model_type="gemma3_text"),
    **dict(num_attention_heads=4, num_hidden_layers=26, num_key_value_heads=1, query_pre_attn_scalar=256),
    **dict(rms_norm_eps=1e-06, rope_local_base_freq=10000, rope_scaling=None, rope_theta=1000000, sliding_window=512),
    **dict(sliding_window_pattern=6, torch_dtype="bfloat16", transformers_version="4.50.0.dev0", use_cache=True),
    **dict(vocab_size=262144),
}
KNOWN = {  # and how many parameters each has
    "gpt2": (GPT2, 124_439_808),
    "distilgpt2": (GPT2 | {"_num_labels": 1, "n_layer": 6, "id2label": {"0": "LABEL_0"}}, 81_912_576),
    "tinyllama": (LLAMA, 1_100_048_384),
    "smollm2": (SMOLLM2, 134_515_008),
    "llama 3.2": (LLAMA32, 1_235_814_400),
    "qwen2.5": (QWEN2, 494_032_768),
    "mistral": (MISTRAL, 7_248_023_552),
    "qwen3": (QWEN3, 596_049_920),
    "smollm3": (SMOLLM3, 3_075_098_624),
    "olmo2": (OLMO2, 1_484_916_736),
    "gemma3": (GEMMA3, 999_885_952),
    "opt": (OPT, 125_239_296 - 2 * 768),  # without its two rows of positions that are never used
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_models_are_understood(name: str) -> None:
    fields, parameters = KNOWN[name]
    with torch.device("meta"):
        assert Transformer(model_config(fields), initialize=False).parameter_count() == parameters


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        (GPT2 | {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        (GPT2 | {"scale_attn_weights": False}, "scale_attn_weights"),
        (GPT2 | {"add_cross_attention": True}, "add_cross_attention"),
        (OPT | {"word_embed_proj_dim": 512}, "word_embed_proj_dim 512"),
        (OPT | {"_remove_final_layer_norm": True}, "_remove_final_layer_norm"),
        (OPT | {"enable_bias": False}, "enable_bias"),
        (OPT | {"activation_function": "gelu"}, "activation_function"),
        (SMOLLM2 | {"rope_interleaved": True}, "rope_interleaved"),
    ],
)
def test_what_known_models_might_say_and_we_do_not_compute_is_refused(fields: dict, word: str) -> None:
    with pytest.raises(CheckpointError, match=word):
        model_config(fields)


def test_weights_in_several_files_are_opened_and_a_lost_one_is_named(tmp_path: Path) -> None:
    theirs = save_theirs(tmp_path, "llama", 1, max_shard_size="20KB", dtype=torch.bfloat16)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert not (tmp_path / "model.safetensors").exists()
    archive = pack(tmp_path, tmp_path.with_suffix(".tar"))
    ids = IDS % theirs.config.vocab_size
    for directory in (tmp_path, fetch(archive)):
        with torch.no_grad():
            torch.testing.assert_close(checkpoint.load_model(directory)(ids), theirs(ids).logits, atol=1e-4, rtol=0)
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=shards[1].name):
        checkpoint.load_model(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../other.safetensors"}}')
    with pytest.raises(CheckpointError, match="expected safetensors files beside it"):
        checkpoint.load_model(tmp_path)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_file_without_the_names_of_the_head_is_opened(name: str, tmp_path: Path) -> None:
    theirs = save_theirs(tmp_path, name, 3)
    tensors = load_file(tmp_path / "model.safetensors")
    bare = {key.removeprefix("transformer.").removeprefix("model."): value for key, value in tensors.items()}
    save_file(bare, tmp_path / "model.safetensors")
    ids = IDS % theirs.config.vocab_size
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.load_model(tmp_path)(ids), theirs(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model_type": "mamba"}, "mamba"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 4.0, "rope_theta": 1e4}}, "longrope"),
        ({"rope_scaling": {"type": "su", "factor": 2.0}, "rope_parameters": None}, "su"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "full_attention"),
        ({"rope_parameters": "default"}, "not understood"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"logits_scaling": 8.0}, "logits_scaling"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"auto_map": {"AutoModel": "modeling.Mine"}}, "auto_map"),
        ({"hidden_size": None}, "hidden_size"),
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
    with pytest.raises(CheckpointError, match=r"lack .* 'model\.layers\.2\."):
        checkpoint.load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**fields, "num_hidden_layers": 1}))
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\."):
        checkpoint.load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**fields, "intermediate_size": 64}))
    with pytest.raises(CheckpointError, match="has shape"):
        checkpoint.load_model(tmp_path)


HUGE = 10**6


@pytest.mark.parametrize("field", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"])
def test_a_config_of_a_trillion_parameters_is_refused_before_memory_is_spent(field: str, tmp_path: Path) -> None:
    save_tiny(tmp_path, "modern")
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, field: HUGE * HUGE}))
    with pytest.raises(CheckpointError, match="parameters, the files hold"):
        checkpoint.load_model(tmp_path)


def test_hostile_files_are_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path, "modern")
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, "max_position_embeddings": HUGE * HUGE}))
    with pytest.raises(CheckpointError, match="a context of"):
        checkpoint.load_model(tmp_path)
    (tmp_path / "config.json").write_text("[" * HUGE)
    with pytest.raises(CheckpointError, match="not valid JSON"):
        checkpoint.load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    for header in (b'{"a":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4]}}', b"{" * 64):
        (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"four")
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoint.load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load_model(tmp_path)
    with open(tmp_path / "tokenizer.json", "wb") as file:
        file.truncate(2**40)  # a hole: no disk is used
    with pytest.raises(CheckpointError, match="more than any tokenizer"):
        Tokenizer.load(tmp_path)


def test_extra_key_holds_only_what_the_hub_cannot_say() -> None:
    def hub_config(config: ModelConfig) -> dict:
        return default_adapter(config).hub_config(config)

    assert "decoder_only_transformer" not in hub_config(tiny_config("modern"))
    extra = hub_config(tiny_config("paper", dropout=0.2))["decoder_only_transformer"]
    assert extra == {"positions": "sinusoidal", "scale_embeddings": True, "tie_embeddings": True}
    assert model_config(hub_config(tiny_config("paper"))) == tiny_config("paper")


def test_a_tied_model_without_its_embedding_names_it(tmp_path: Path) -> None:
    save_tiny(tmp_path, "modern")
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.embed_tokens.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lack 1 .*'model\.embed_tokens\.weight'"):
        checkpoint.load_model(tmp_path)


def test_a_save_that_fails_leaves_the_tokenizer_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny(tmp_path, "modern")
    before = (tmp_path / "tokenizer.json").read_bytes()

    def disk_full(*arguments: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(WriteError, match="no space"):
        tiny_tokenizer(280).save(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == before
    assert not list(tmp_path.glob(".*partial"))
