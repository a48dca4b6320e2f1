"""The default model in `weights/`: what a visitor gets."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from transformer.cli import DEFAULT_PROMPT
from transformer.hub import checkpoint
from transformer.inference import Generator, SamplingOptions

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "weights"
TEXT = (
    "The tower was the tallest structure in the world until 1930. It was built for the exhibition of 1889, and named "
    "after the engineer whose company designed it. It is visited by almost seven million people each year."
)


def test_transformers_opens_it_with_the_same_logits_and_tokens() -> None:
    ours, tokenizer = checkpoint.load(WEIGHTS)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(WEIGHTS).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(WEIGHTS)
    ids = tokenizer.encode_prompt(TEXT)
    assert their_tokenizer(TEXT)["input_ids"] == ids
    random = torch.randint(0, tokenizer.vocab_size, (2, ours.config.context_length), generator=torch.manual_seed(0))
    with torch.no_grad():
        for batch in (torch.tensor([ids]), random):
            assert (theirs(batch).logits - ours(batch)).abs().max() < 1e-4


def test_greedy_text_is_that_of_transformers() -> None:
    model, tokenizer = checkpoint.load(WEIGHTS)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(WEIGHTS).eval()
    inputs = torch.tensor([tokenizer.encode_prompt(DEFAULT_PROMPT)])
    out = theirs.generate(inputs, do_sample=False, repetition_penalty=1.0, max_new_tokens=64)[0, inputs.shape[1] :]
    generation = Generator(model, tokenizer).generate(DEFAULT_PROMPT, SamplingOptions(max_tokens=64, temperature=0))
    assert "".join(generation) == tokenizer.decode(out.tolist())


def test_it_has_learned_english() -> None:
    model, tokenizer = checkpoint.load(WEIGHTS)
    ids = torch.tensor([tokenizer.encode_prompt(TEXT)])
    with torch.no_grad():
        nats = -model(ids)[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).sum()
    bits_per_byte = float(nats) / 0.693147 / len(TEXT.encode())
    assert bits_per_byte < 1.4  # a model that knows the frequencies of tokens alone has about 2.7


def test_make_predict_prints_text_without_any_argument() -> None:
    command = [sys.executable, "-m", "transformer", "predict", "--max-tokens", "30", "--seed", "0"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.startswith(DEFAULT_PROMPT) and len(run.stdout) > len(DEFAULT_PROMPT) + 30
    chat, sampling = run.stderr.splitlines()
    assert "chat template" in chat and sampling.startswith("sampling: temperature ") and sampling.count("(model)") == 5


def test_it_is_small_enough_to_be_committed_and_says_what_it_is() -> None:
    assert sum(file.stat().st_size for file in WEIGHTS.iterdir()) < 60e6
    card = (WEIGHTS / "README.md").read_text()
    for word in ("license: cc-by-sa", "perplexity per token", "per word", "bits per byte", "stride", "python train.py"):
        assert word in card, word


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json"])
def test_its_files_are_those_of_a_model_directory(name: str) -> None:
    assert (WEIGHTS / name).is_file()
