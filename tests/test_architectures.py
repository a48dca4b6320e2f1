"""What the config.json of single architectures says, beyond what `test_formats.py` asks of all of them."""

import copy
from pathlib import Path

import pytest
import torch
import transformers
from models import model_config
from test_formats import GEMMA3, MISTRAL, OLMO2, QWEN2, QWEN3, SMOLLM3

from transformer.errors import CheckpointError
from transformer.hub import checkpoint
from transformer.hub.architectures import adapter_for
from transformer.inference import SamplingOptions, TorchBackend
from transformer.inference.decoder import Decoder

SIZES = dict(vocab_size=500, hidden_size=48, intermediate_size=80, num_hidden_layers=4, num_attention_heads=4)
SIZES |= dict(num_key_value_heads=2, head_dim=20, max_position_embeddings=260)
SIZES |= dict(pad_token_id=None, bos_token_id=None, eos_token_id=None)
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}
LONG = {
    "mistral": transformers.MistralConfig(**SIZES, sliding_window=33),
    "qwen2": transformers.Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=17, max_window_layers=2),
    "qwen3": transformers.Qwen3Config(**SIZES, use_sliding_window=True, sliding_window=50, max_window_layers=1),
    "qwen2, yarn": transformers.Qwen2Config(  # max_position_embeddings is the original context
        **SIZES | dict(max_position_embeddings=65), rope_parameters={"rope_type": "yarn", "factor": 4.0}
    ),
    "smollm3": transformers.SmolLM3Config(**SIZES, rope_parameters=YARN, tie_word_embeddings=False),
    "smollm3, window": transformers.SmolLM3Config(
        **SIZES, use_sliding_window=True, sliding_window=20, no_rope_layers=[1, 0, 1, 0]
    ),
    "olmo2": transformers.Olmo2Config(**SIZES, rope_parameters=YARN, attention_bias=True),
    "gemma3_text": transformers.Gemma3TextConfig(
        **SIZES,
        **dict(sliding_window=24, sliding_window_pattern=3, query_pre_attn_scalar=30, attention_bias=True),
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
}
LOCAL_FIRST = ["sliding_attention", "full_attention"]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ("mistral", "gemma3_text") else pytest.mark.slow) for name in LONG]
)
def test_200_tokens_beyond_the_window_and_the_original_context_are_those_of_transformers(
    name: str, tmp_path: Path
) -> None:
    """Alone and side by side, from prompts of different lengths; and the logits of the longest text."""
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(LONG[name]).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    ours = checkpoint.load_model(tmp_path)
    ids = torch.randint(3, 500, (1, 260), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-4, rtol=0)
    prompts = [ids[0, :length].tolist() for length in (41, 2, 19)]
    greedy = {"do_sample": False, "max_new_tokens": 200, "pad_token_id": 0}
    expected = [theirs.generate(torch.tensor([prompt]), **greedy)[0].tolist() for prompt in prompts]
    backend = TorchBackend(ours, "fp32")
    for together in ([0], [1], [0, 1, 2]):
        decoder = Decoder(backend, [prompts[i] for i in together], SamplingOptions(max_tokens=200, temperature=0), [])
        for _ in range(200):
            decoder.next()
        assert decoder.tokens == [expected[i] for i in together]


@pytest.mark.parametrize(
    ("fields", "window", "local"),
    [
        (MISTRAL, None, []),  # null
        ({name: value for name, value in MISTRAL.items() if name != "sliding_window"}, 4096, range(32)),
        (MISTRAL | {"sliding_window": 64}, 64, range(32)),
        (MISTRAL | {"sliding_window": 64, "use_sliding_window": False}, 64, range(32)),  # not read
        (MISTRAL | {"use_sliding_window": True}, None, []),
        (QWEN2 | {"use_sliding_window": True, "sliding_window": 64}, 64, []),  # max_window_layers is their number
        (QWEN2 | {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 21}, 64, range(21, 24)),
        (QWEN3 | {"use_sliding_window": True}, None, []),
        (QWEN3 | {"use_sliding_window": False, "sliding_window": 64, "max_window_layers": 3}, None, []),
        (
            QWEN3 | {"use_sliding_window": True, "sliding_window": 64, "layer_types": LOCAL_FIRST * 14},
            *(64, range(0, 28, 2)),
        ),
    ],
)
def test_the_layers_with_a_window_are_those_of_transformers(fields: dict, window: int | None, local: list) -> None:
    config = model_config(fields)
    assert [layer for layer in range(config.n_layers) if config.is_local(layer)] == [*local]
    assert config.sliding_window == (window if local else None) and config.context_length >= 32768
    theirs = transformers.AutoConfig.for_model(**fields)
    kinds = getattr(theirs, "layer_types", ["sliding_attention" if theirs.sliding_window else "full_attention"] * 32)
    assert [kind == "sliding_attention" for kind in kinds] == [*map(config.is_local, range(config.n_layers))]


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        (QWEN3 | {"use_sliding_window": True, "layer_types": LOCAL_FIRST * 14}, "but no sliding_window"),
        (
            QWEN3 | {"use_sliding_window": True, "sliding_window": 64, "layer_types": LOCAL_FIRST},
            "2 layers; expected 28",
        ),
        (QWEN3 | {"use_sliding_window": True, "layer_types": ["chunked_attention"] * 28}, "chunked_attention"),
        (QWEN2 | {"layer_types": LOCAL_FIRST * 12}, "sliding_attention"),
        (MISTRAL | {"layer_types": LOCAL_FIRST * 16}, "layer_types 'sliding_attention'; with sliding_window None"),
        (MISTRAL | {"sliding_window": -1}, "sliding_window must be a positive"),
        (QWEN2 | {"use_sliding_window": True, "num_hidden_layers": 10**15}, "num_hidden_layers .* at most 10,000"),
    ],
)
def test_a_window_that_does_not_fit_is_refused_by_name(fields: dict, word: str) -> None:
    with pytest.raises(CheckpointError, match=word):
        model_config(fields)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"no_rope_layers": None},
        {"no_rope_layers": None, "no_rope_layer_interval": 5, "layer_types": None},
        {"no_rope_layers": [0] * 40},
        {"use_sliding_window": True, "sliding_window": 64, "layer_types": None},
        {"rope_theta": "missing", "num_key_value_heads": None},
    ],
)
def test_the_layers_of_smollm3_are_those_of_transformers(change: dict) -> None:
    fields = {name: value for name, value in (SMOLLM3 | change).items() if value != "missing"}
    config, theirs = model_config(fields), transformers.AutoConfig.for_model(**fields)
    layers = range(config.n_layers)
    assert [*map(config.rotates, layers)] == [bool(flag) for flag in theirs.no_rope_layers[: config.n_layers]]
    assert [*map(config.is_local, layers)] == [kind == "sliding_attention" for kind in theirs.layer_types]
    assert config.kv_heads == theirs.num_key_value_heads and config.tie_embeddings == theirs.tie_word_embeddings
    assert {"rope_theta": config.rope_theta, "rope_type": "default"} == theirs.rope_parameters


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        (SMOLLM3 | {"no_rope_layers": [1, 0]}, r"no_rope_layers \[1, 0\]; expected 0 or 1 for each of 36 layers"),
        (SMOLLM3 | {"no_rope_layers": [2] * 36}, "no_rope_layers"),
        (SMOLLM3 | {"no_rope_layers": None, "no_rope_layer_interval": 0}, "no_rope_layer_interval 0"),
        (SMOLLM3 | {"no_rope_layers": None, "num_hidden_layers": 10**15}, "num_hidden_layers .* at most 10,000"),
        (SMOLLM3 | {"hidden_act": "gelu"}, "hidden_act"),
        (SMOLLM3 | {"use_sliding_window": True, "layer_types": LOCAL_FIRST * 18}, "but no sliding_window"),
    ],
)
def test_what_no_smollm3_computes_is_refused_by_name(fields: dict, word: str) -> None:
    with pytest.raises(CheckpointError, match=word):
        model_config(fields)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        (OLMO2 | {"clip_qkv": 8.0}, "clip_qkv 8.0"),
        (OLMO2 | {"hidden_act": "gelu"}, "hidden_act"),
        (OLMO2 | {"layer_types": LOCAL_FIRST * 8}, "sliding_attention"),
        (OLMO2 | {"mlp_bias": True}, "mlp_bias"),
    ],
)
def test_what_no_olmo2_computes_is_refused_by_name(fields: dict, word: str) -> None:
    with pytest.raises(CheckpointError, match=word):
        model_config(fields)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        {"sliding_window_pattern": 3, "rope_theta": "missing", "rope_local_base_freq": "missing"},
        {"sliding_window": "missing", "sliding_window_pattern": "missing"},
        {"layer_types": LOCAL_FIRST * 13, "_sliding_window_pattern": 6, "query_pre_attn_scalar": "missing"},
        {"rope_parameters": {"full_attention": {"rope_theta": 5e5}}, "head_dim": "missing"},
        {"rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 3e4}}, "rope_theta": 7e5},
    ],
)
def test_the_layers_and_rotary_bases_of_gemma3_are_those_of_transformers(change: dict) -> None:
    fields = {name: value for name, value in (GEMMA3 | change).items() if value != "missing"}
    config, theirs = model_config(fields), transformers.AutoConfig.for_model(**copy.deepcopy(fields))
    assert [*map(config.is_local, range(26))] == [kind == "sliding_attention" for kind in theirs.layer_types]
    rope = theirs.rope_parameters
    assert config.rope_theta == rope["full_attention"]["rope_theta"]
    assert config.rope_local_theta == rope["sliding_attention"]["rope_theta"]
    assert (config.rope_scaling and config.rope_scaling.factor) == rope["full_attention"].get("factor")
    assert config.sliding_window == theirs.sliding_window and config.head_dim == theirs.head_dim
    assert (config.query_pre_attn_scalar or config.head_dim) == theirs.query_pre_attn_scalar


@pytest.mark.parametrize(
    ("types", "pattern"),
    [(LOCAL_FIRST * 3, 2), (LOCAL_FIRST[:1] * 6, 7), (LOCAL_FIRST[1:] * 6, 1), (LOCAL_FIRST[::-1] * 3, None)],
)
def test_the_pattern_of_gemma3_is_written_for_versions_that_do_not_know_layer_types(
    types: list[str], pattern: int | None
) -> None:
    fields = GEMMA3 | {"num_hidden_layers": 6, "layer_types": types}
    config = model_config(fields)
    written = adapter_for("gemma3_text").hub_config(config)
    assert written.get("sliding_window_pattern") == pattern and written["layer_types"] == types
    if pattern is not None:
        del written["layer_types"]
        assert model_config(written) == config


def test_a_gemma3_without_windows_has_no_rotary_base_for_them() -> None:
    config = model_config(GEMMA3 | {"layer_types": ["full_attention"] * 26})
    assert config.sliding_window is None and config.rope_local_theta is None


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"hidden_activation": "gelu"}, "hidden_activation 'gelu'"),
        ({"sliding_window": None}, "but no sliding_window"),
        ({"sliding_window_pattern": 0}, "sliding_window_pattern 0"),
        ({"layer_types": LOCAL_FIRST}, "of 2 layers; expected 26"),
        ({"rope_parameters": {"sliding_attention": {"type": "linear", "factor": 2.0}}}, "'linear' for sliding_att"),
        ({"rope_parameters": {"rope_type": "default"}}, "rope_type 'default'"),
        ({"query_pre_attn_scalar": -1}, "query_pre_attn_scalar must be"),
        ({"num_hidden_layers": 10**15}, "num_hidden_layers .* at most 10,000"),
    ],
)
def test_what_no_gemma3_computes_here_is_refused_by_name(fields: dict, word: str) -> None:
    with pytest.raises(CheckpointError, match=word):
        model_config(GEMMA3 | fields)
