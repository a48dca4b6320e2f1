"""Reading a `config.json` so that no field that changes what is computed is overlooked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformer.errors import CheckpointError

EXTRA_KEY = "decoder_only_transformer"  # what the Hub's config cannot say; other tools ignore it

# Fields that do not change the logits that a trained model computes, with the reason. Their values do not matter.
_COMPUTE_NOTHING = {
    "who wrote the file, with what, and where it came from": """
        _name_or_path _commit_hash architectures transformers_version transformers_weights transformers.js_config
        unsloth_version unsloth_fixed is_llama_config""",
    "how the weights are stored: the weights file says it itself": "dtype torch_dtype use_bfloat16",
    "which kernel computes attention: all of them compute the same": """
        _attn_implementation _attn_implementation_autoset _attn_implementation_internal attn_implementation
        _flash_attn_2_enabled use_flash_attn use_flash_attention use_flash_attention_2 use_sdpa
        _experts_implementation""",
    "what the tokenizer is and does": """
        tokenizer_class prefix model_max_length bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id
        cls_token_id mask_token_id decoder_start_token_id tokenizer_model_max_length tokenizer_padding_side
        padding_side predict_special_tokens n_special""",
    "how long the training texts were; the positions are counted by max_position_embeddings or n_positions": """
        max_sequence_length max_seq_length max_seq_len seq_length""",
    "how matrix products are split over processes or in time: the results are the same": """
        pretraining_tp chunk_size_feed_forward""",
    "what a call returns, or keeps for the next one": """
        use_cache cache_implementation output_past return_dict return_dict_in_generate output_attentions
        output_hidden_states output_scores torchscript tf_legacy_loss keys_to_ignore_at_inference""",
    "that it is a decoder, which these architectures always are": "is_decoder",
    "how it was initialised and trained": """
        initializer_range initializer_factor init_std gradient_checkpointing attention_dropout activation_dropout
        attn_pdrop embd_pdrop hidden_dropout embedding_dropout classifier_dropout layerdrop ignore_index loss_type""",
    "classification and other heads, which a language model lacks": """
        id2label label2id num_labels _num_labels problem_type task_specific_params finetuning_task
        summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout""",
    "how texts are sampled: `generate` reads generation_config.json, this program its own options": """
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
        self._known = {"model_type", EXTRA_KEY, *" ".join(_COMPUTE_NOTHING.values()).split()}

    def __getitem__(self, name: str) -> Any:
        self._known.add(name)
        return super().__getitem__(name)

    def __missing__(self, name: str) -> Any:
        raise CheckpointError(f"config.json has no {name}.")

    def get(self, name: str, default: Any = None) -> Any:
        self._known.add(name)
        return super().get(name, default)

    def get_unless_null(self, name: str, missing: Any) -> Any:
        """As `get`, where a field that is null does not mean the same as one that is missing."""
        return self.get(name, None if name in self._null else missing)

    def ignore(self, *names: str) -> None:
        """Accept fields that compute nothing in this architecture, whatever they say."""
        self._known.update(names)

    def expect(self, name: str, *values: Any) -> None:
        """Refuse a value that this program does not compute. The first of `values` is what a missing field means.

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
        """Refuse a field that was not read, and so may change what is computed, unless it is off (false, 0 or empty).

        Raises:
            CheckpointError: if there is one.
        """
        for name in sorted(self.keys() - self._known):
            if self[name]:
                raise CheckpointError(f"config.json says {name} {self[name]!r}, which this program does not know.")
