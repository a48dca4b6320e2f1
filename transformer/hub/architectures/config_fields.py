"""Reading of `config.json`, in which no field that changes the result of a model is overlooked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformer.errors import CheckpointError

EXTRA_KEY = "decoder_only_transformer"  # has what other fields cannot express; other programs ignore it

# Fields that do not change the logits of a trained model, by reason. Any value is accepted.
_WITHOUT_EFFECT = {
    "the origin of the file": """
        _name_or_path _commit_hash architectures transformers_version transformers_weights transformers.js_config
        unsloth_version unsloth_fixed is_llama_config""",
    "the format of the weights, which is in their files too": "dtype torch_dtype use_bfloat16",
    "the kernel for attention: all of them compute the same": """
        _attn_implementation _attn_implementation_autoset _attn_implementation_internal attn_implementation
        _flash_attn_2_enabled use_flash_attn use_flash_attention use_flash_attention_2 use_sdpa
        _experts_implementation""",
    "the tokenizer": """
        tokenizer_class prefix model_max_length bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id
        cls_token_id mask_token_id decoder_start_token_id tokenizer_model_max_length tokenizer_padding_side
        padding_side predict_special_tokens n_special""",
    "the length of the training texts; the context is max_position_embeddings or n_positions": """
        max_sequence_length max_seq_length max_seq_len seq_length""",
    "how matrix products are split, with the same results": """
        pretraining_tp chunk_size_feed_forward""",
    "what a call returns or caches": """
        use_cache cache_implementation output_past return_dict return_dict_in_generate output_attentions
        output_hidden_states output_scores torchscript tf_legacy_loss keys_to_ignore_at_inference""",
    "whether it is a decoder, as these architectures always are": "is_decoder",
    "initialization and training": """
        initializer_range initializer_factor init_std gradient_checkpointing attention_dropout activation_dropout
        attn_pdrop embd_pdrop hidden_dropout embedding_dropout classifier_dropout layerdrop ignore_index loss_type""",
    "heads for other tasks, such as classification": """
        id2label label2id num_labels _num_labels problem_type task_specific_params finetuning_task
        summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout""",
    "sampling, whose settings are in generation_config.json": """
        do_sample max_length max_new_tokens min_length min_new_tokens temperature top_k top_p min_p typical_p
        num_beams num_beam_groups num_return_sequences early_stopping repetition_penalty length_penalty
        diversity_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids suppress_tokens
        begin_suppress_tokens forced_bos_token_id forced_eos_token_id remove_invalid_values
        exponential_decay_length_penalty""",
}


class ConfigFields(dict[str, Any]):
    """The fields of a `config.json` that are not null. It records which of them were read.

    Reading a field that is not there with `fields[name]` raises a `CheckpointError` that names it.
    """

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__({name: value for name, value in fields.items() if value is not None})
        self._null = {name for name, value in fields.items() if value is None}
        self._known = {"model_type", EXTRA_KEY, *" ".join(_WITHOUT_EFFECT.values()).split()}

    def __getitem__(self, name: str) -> Any:
        self._known.add(name)
        return super().__getitem__(name)

    def __missing__(self, name: str) -> Any:
        raise CheckpointError(f"config.json has no {name}.")

    def get(self, name: str, default: Any = None) -> Any:
        self._known.add(name)
        return super().get(name, default)

    def get_unless_null(self, name: str, missing: Any) -> Any:
        """As `get`, with `missing` for a missing field and None for a null one."""
        return self.get(name, None if name in self._null else missing)

    def ignore(self, *names: str) -> None:
        """Accept any value of fields that have no effect in this architecture."""
        self._known.update(names)

    def expect(self, name: str, *values: Any) -> None:
        """Refuse other values than these, of which the first is the default.

        Raises:
            CheckpointError: if the field has another value.
        """
        if self.get(name, values[0]) not in values:
            raise CheckpointError(f"config.json says {name} {self[name]!r}; this program computes {values[0]!r} alone.")

    def expect_full_attention(self, context: int) -> None:
        """Refuse attention within a window, unless it is as long as the context.

        Raises:
            CheckpointError: if a layer has one.
        """
        if other := {str(kind) for kind in self.get("layer_types", [])} - {"full_attention"}:
            raise CheckpointError(f"config.json says layer_types {min(other)!r}; expected full_attention.")
        window = super().get("sliding_window")
        if type(window) is int and window >= context:
            self.ignore("sliding_window")
        self.expect("use_sliding_window", False)
        self.ignore("max_window_layers")  # the layers without a window, if there were one

    def expect_no_more(self) -> None:
        """Refuse fields that were not read, and so may have an effect, unless they are false, 0 or empty.

        Raises:
            CheckpointError: if there is one.
        """
        for name in sorted(self.keys() - self._known):
            if self[name]:
                raise CheckpointError(f"config.json says {name} {self[name]!r}, which this program does not know.")
