"""The Hub's `config.json` and our `ModelConfig`.

| ours | the Hub's |
|---|---|
| rotary, RMSNorm before, SwiGLU, QK-norm | Qwen3ForCausalLM |
| the same without QK-norm | LlamaForCausalLM |
| learned positions, LayerNorm before, GELU | GPT2LMHeadModel |
| LayerNorm, ReLU, sinusoidal or learned positions | OPTForCausalLM |
| heads averaged or summed, and all else | no architecture of the Hub has it: our own names and config |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from transformer.errors import CheckpointError, ConfigError
from transformer.legacy import saved_config
from transformer.model.config import ModelConfig

EXTRA_KEY = "decoder_only_transformer"  # what the Hub's config cannot say; other tools ignore it
OWN_MODEL_TYPE = "decoder_only_transformer"


def hub_config(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` of the Hub architecture that computes the same as `config`."""
    architecture = hub_architecture(config)
    if architecture is None:
        return {"architectures": ["Transformer"], "model_type": OWN_MODEL_TYPE, EXTRA_KEY: dataclasses.asdict(config)}
    fields = {"architectures": [architecture], **_TO_HUB[architecture](config), "dtype": "float32"}
    understood = model_config(fields)
    extra = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != getattr(understood, field.name)
    }
    return {**fields, EXTRA_KEY: extra} if extra else fields


def model_config(fields: Mapping[str, Any]) -> ModelConfig:
    """Our config from a `config.json`.

    Raises:
        CheckpointError: if the architecture, or a choice within it, is not one that we compute.
    """
    model_type = fields.get("model_type")
    extra = fields.get(EXTRA_KEY, {})
    try:
        if model_type == OWN_MODEL_TYPE:
            return saved_config(extra)
        if model_type not in _FROM_HUB:
            raise CheckpointError(
                f"config.json says model_type {model_type!r}; this program opens {', '.join(sorted(_FROM_HUB))}."
            )
        read = _Read(fields)
        _expect_full_attention(read)
        config = ModelConfig(**{**_FROM_HUB[model_type](read), **extra})
        read.expect_no_more()
        return config
    except KeyError as error:
        raise CheckpointError(f"config.json has no {error.args[0]}.") from error
    except (ConfigError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"config.json is not understood: {error}") from error


class _Read(dict[str, Any]):
    """The fields of a `config.json` that say something, and which of them were asked for."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__({name: value for name, value in fields.items() if value is not None})
        self.names = {"model_type", EXTRA_KEY, *" ".join(_NOT_COMPUTED.values()).split()}

    def __getitem__(self, name: str) -> Any:
        self.names.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)

    def expect(self, name: str, *values: Any) -> None:
        """Refuse what this program does not compute. The first of the values is what a missing field means."""
        if self.get(name, values[0]) not in values:
            raise CheckpointError(f"config.json says {name} {self[name]!r}; this program computes {values[0]!r} alone.")

    def expect_no_more(self) -> None:
        """Refuse a field that nothing asked for, which may change what is computed, unless it says "no"."""
        for name in sorted(self.keys() - self.names):
            if self[name]:
                raise CheckpointError(f"config.json says {name} {self[name]!r}, which this program does not know.")


def _expect_full_attention(fields: _Read) -> None:
    """Refuse attention within a window."""
    kinds = fields.get("layer_types", [])
    if other := {str(kind) for kind in kinds} - {"full_attention"}:
        raise CheckpointError(f"config.json says layer_types {min(other)!r}; expected full_attention.")
    if not fields.get("use_sliding_window", False):
        fields.names.add("max_window_layers")  # the layers without a window, if there were one


def hub_architecture(config: ModelConfig) -> str | None:
    """The Hub architecture that computes what `config` says; None if there is none."""
    if type(config) is not ModelConfig or config.head_bias:
        return None
    full_heads = config.kv_heads == config.n_heads and config.key_dim * config.n_heads == config.d_model
    biases = config.bias and config.feed_forward_bias
    layer_norm = biases and config.norm == "layer" and config.norm_eps == 1e-5 and not config.qk_norm
    pre = config.norm_placement == "pre"
    match config.positions, config.activation:
        case "rotary", "swiglu" if config.norm == "rms" and pre and not config.scale_embeddings:
            if config.qk_norm:
                return "Qwen3ForCausalLM" if not config.feed_forward_bias else None
            return "LlamaForCausalLM"
        case "learned", "gelu" if layer_norm and full_heads and pre and not config.scale_embeddings:
            return "GPT2LMHeadModel"
        case (("sinusoidal" | "learned"), "relu") if layer_norm and full_heads:
            return "OPTForCausalLM"
    return None


def _to_llama(config: ModelConfig) -> dict[str, Any]:
    fields = {
        "model_type": "qwen3" if config.qk_norm else "llama",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.key_dim,
        "intermediate_size": config.feed_forward_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,  # transformers 4 reads this, transformers 5 the next
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": config.bias,
        "tie_word_embeddings": config.tie_embeddings,
    }
    return fields if config.qk_norm else {**fields, "mlp_bias": config.feed_forward_bias}


def _from_llama(fields: _Read) -> dict[str, Any]:
    qwen = fields["model_type"] == "qwen3"
    rope = _Read(fields.get("rope_parameters") or fields.get("rope_scaling") or {})
    rope.expect("rope_type", "default")
    rope.expect("type", "default")
    rope.expect("partial_rotary_factor", 1.0)
    fields.expect("partial_rotary_factor", 1.0)
    fields.expect("hidden_act", "silu")
    fields.expect("use_sliding_window", False)
    if qwen or "use_sliding_window" in fields:
        fields.names.add("sliding_window")  # it says nothing without the one before
    theta = float(rope.get("rope_theta", fields.get("rope_theta", 10_000.0)))
    rope.expect_no_more()
    return {
        **ARCHITECTURE["modern"],
        "vocab_size": fields["vocab_size"],
        "context_length": fields["max_position_embeddings"],
        "d_model": fields["hidden_size"],
        "n_layers": fields["num_hidden_layers"],
        "n_heads": fields["num_attention_heads"],
        "n_kv_heads": fields.get("num_key_value_heads", 32 if qwen else None),
        "head_dim": fields.get("head_dim", 128 if qwen else None),
        "d_feed_forward": fields["intermediate_size"],
        "norm_eps": fields["rms_norm_eps"],
        "rope_theta": theta,
        "qk_norm": qwen,
        "bias": fields.get("attention_bias", False),
        "feed_forward_bias": not qwen and fields.get("mlp_bias", False),
        "tie_embeddings": fields.get("tie_word_embeddings", False),
    }


def _to_gpt2(config: ModelConfig) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.context_length,
        "n_embd": config.d_model,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": config.feed_forward_dim,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.norm_eps,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "attn_pdrop": 0.0,
        "tie_word_embeddings": config.tie_embeddings,
    }


def _from_gpt2(fields: _Read) -> dict[str, Any]:
    fields.expect("activation_function", "gelu_new", "gelu_pytorch_tanh")  # two names of one function
    fields.expect("scale_attn_weights", True)
    fields.names |= {"reorder_and_upcast_attn", "n_ctx"}  # the same result; an old name of n_positions
    return {
        **ARCHITECTURE["gpt2"],
        "vocab_size": fields["vocab_size"],
        "context_length": fields["n_positions"],
        "d_model": fields["n_embd"],
        "n_layers": fields["n_layer"],
        "n_heads": fields["n_head"],
        "d_feed_forward": fields.get("n_inner"),
        "norm_eps": fields.get("layer_norm_epsilon", 1e-5),
        "dropout": fields.get("resid_pdrop", 0.1),
        "tie_embeddings": fields.get("tie_word_embeddings", True),
    }


def _to_opt(config: ModelConfig) -> dict[str, Any]:
    return {
        "model_type": "opt",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "hidden_size": config.d_model,
        "word_embed_proj_dim": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "ffn_dim": config.feed_forward_dim,
        "activation_function": "relu",
        "do_layer_norm_before": config.norm_placement == "pre",
        "dropout": config.dropout,
        "attention_dropout": 0.0,
        # OPT would scale its vocabulary projection too if that were tied to the scaled embedding.
        "tie_word_embeddings": config.tie_embeddings and not config.scale_embeddings,
    }


def _from_opt(fields: _Read) -> dict[str, Any]:
    fields.expect("activation_function", "relu")
    fields.expect("word_embed_proj_dim", fields["hidden_size"])
    fields.expect("enable_bias", True)
    fields.expect("layer_norm_elementwise_affine", True)
    return {
        "vocab_size": fields["vocab_size"],
        "context_length": fields["max_position_embeddings"],
        "d_model": fields["hidden_size"],
        "n_layers": fields["num_hidden_layers"],
        "n_heads": fields["num_attention_heads"],
        "d_feed_forward": fields["ffn_dim"],
        "positions": "learned",
        "norm_placement": "pre" if fields.get("do_layer_norm_before", True) else "post",
        "dropout": fields.get("dropout", 0.1),
        "tie_embeddings": fields.get("tie_word_embeddings", True),
    }


# The choices that the Hub's architectures fix; sizes come from config.json.
ARCHITECTURE: dict[str, dict[str, Any]] = {
    "modern": dict(positions="rotary", norm="rms", norm_placement="pre", activation="swiglu"),
    "gpt2": dict(positions="learned", norm_placement="pre", activation="gelu"),
}

_TO_HUB: dict[str, Callable[[ModelConfig], dict[str, Any]]] = {
    "Qwen3ForCausalLM": _to_llama,
    "LlamaForCausalLM": _to_llama,
    "GPT2LMHeadModel": _to_gpt2,
    "OPTForCausalLM": _to_opt,
}
_FROM_HUB: dict[str, Callable[[_Read], dict[str, Any]]] = {
    "qwen3": _from_llama,
    "llama": _from_llama,
    "gpt2": _from_gpt2,
    "opt": _from_opt,
}

# Fields that do not change the scores a trained model computes, by the reason. What a field says does not matter.
_NOT_COMPUTED = {
    "who wrote the file, with what, and where it came from": """
        _name_or_path _commit_hash architectures transformers_version transformers_weights transformers.js_config
        unsloth_version unsloth_fixed is_llama_config""",
    "how the weights are kept in the file, which the file says itself": "dtype torch_dtype use_bfloat16",
    "which kernel computes attention: all of them compute the same": """
        _attn_implementation _attn_implementation_autoset _attn_implementation_internal attn_implementation
        _flash_attn_2_enabled use_flash_attn use_flash_attention use_flash_attention_2 use_sdpa
        _experts_implementation""",
    "what the tokenizer is and does": """
        tokenizer_class prefix model_max_length bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id
        cls_token_id mask_token_id decoder_start_token_id""",
    "how long its training texts were; the positions are counted by max_position_embeddings or n_positions": """
        max_sequence_length max_seq_length max_seq_len seq_length""",
    "how matrix products are split over processes or in time: the results are the same": """
        pretraining_tp chunk_size_feed_forward""",
    "what a call gives back, or keeps for the next one": """
        use_cache return_dict return_dict_in_generate output_attentions output_hidden_states output_scores
        torchscript tf_legacy_loss keys_to_ignore_at_inference""",
    "that it is a decoder, which these architectures always are": "is_decoder",
    "how it began and was trained": """
        initializer_range initializer_factor init_std gradient_checkpointing attention_dropout activation_dropout
        attn_pdrop embd_pdrop hidden_dropout embedding_dropout classifier_dropout layerdrop ignore_index loss_type""",
    "classification and other heads, which a language model lacks": """
        id2label label2id num_labels _num_labels problem_type task_specific_params finetuning_task
        summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout""",
    "how texts are sampled: `generate` reads generation_config.json, ours its own options": """
        do_sample max_length max_new_tokens min_length min_new_tokens temperature top_k top_p min_p typical_p
        num_beams num_beam_groups num_return_sequences early_stopping repetition_penalty length_penalty
        diversity_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids suppress_tokens
        begin_suppress_tokens forced_bos_token_id forced_eos_token_id remove_invalid_values
        exponential_decay_length_penalty""",
}
