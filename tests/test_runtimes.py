"""What is exported runs elsewhere: CTranslate2 converts it and writes the same text."""

from pathlib import Path

import pytest
import torch
from models import tiny_model, tiny_tokenizer

from transformer.hub import checkpoint

ctranslate2 = pytest.importorskip("ctranslate2", reason="needs CTranslate2, of requirements-dev.txt")

# The four architectures of the Hub that we write; CTranslate2 knows them all. Of OPT it takes multiples of 8 tokens.
MODELS = {
    "Qwen3ForCausalLM": ("modern", {}),
    "LlamaForCausalLM": ("modern", {"qk_norm": False, "tie_embeddings": False}),
    "GPT2LMHeadModel": ("gpt2", {}),
    "OPTForCausalLM": ("paper", {}),
}
NEW = 24


@pytest.mark.parametrize("architecture", MODELS)
def test_ctranslate2_writes_the_same_greedy_tokens(architecture: str, tmp_path: Path) -> None:
    preset, overrides = MODELS[architecture]
    tokenizer = tiny_tokenizer(304)
    model = tiny_model(preset, vocab_size=tokenizer.vocab_size, context_length=64, **overrides)
    checkpoint.save(model, tokenizer, tmp_path / "model")
    converter = ctranslate2.converters.TransformersConverter(str(tmp_path / "model"))
    converted = ctranslate2.Generator(converter.convert(str(tmp_path / "converted")), intra_threads=1)
    ids = tokenizer.encode_prompt("The river rises in")
    (result,) = converted.generate_batch(
        [[tokenizer.backend.id_to_token(id) for id in ids]],
        max_length=NEW,
        min_length=NEW,
        include_prompt_in_result=False,
        sampling_topk=1,
    )
    ours = list(ids)
    with torch.no_grad():
        for _ in range(NEW):
            logits = model(torch.tensor([ours]))[0, -1]
            logits[tokenizer.end_of_text_id] = -torch.inf  # as min_length has it
            ours.append(int(logits.argmax()))
    assert result.sequences_ids[0] == ours[len(ids) :]
