"""A tokenizer is trained in seconds on any text, and on texts of words as the library itself does it."""

import random
import time

import pytest
from models import SENTENCES
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from transformer.data.tokenizer import Tokenizer
from transformer.data.tokenizer_training import cut_runs
from transformer.errors import ConfigError

N = 800_000
_CHOICE = random.Random(0)
HARD = {
    "one character": "x" * N,
    "spaces": " " * N,
    "letters": "".join(_CHOICE.choices("abcdefghijklmnopqrstuvwxyz", k=N)),
    "bytes": "".join(map(chr, _CHOICE.choices(range(256), k=N))),
    "Chinese": "".join(map(chr, _CHOICE.choices(range(0x4E00, 0x9FFF), k=N // 3))),
}


@pytest.mark.parametrize("kind", HARD)
def test_no_text_makes_the_training_slow(kind: str) -> None:
    text = HARD[kind]
    before = time.process_time()
    tokenizer = Tokenizer.train([text], 1000)
    assert time.process_time() - before < 10  # it takes about one; as one word, minutes
    short = text[:2000]
    assert tokenizer.decode(tokenizer.encode_documents([short])[0]) == short


def test_repeated_characters_become_long_tokens() -> None:
    tokenizer = Tokenizer.train(["x" * N], 1000)
    assert len(tokenizer.encode_documents(["x" * 2560])[0]) == 10


@pytest.mark.parametrize(
    ("line", "lengths"),
    [
        ("", [0]),
        ("The river rises.\n", [17]),
        ("word " * 200, [1000]),
        ("x" * 256, [256]),
        ("x" * 600, [256, 256, 88]),
        ("a " + "x" * 257 + " b\n", [258, 4]),
        ("a" + " " * 600 + "b", [257, 256, 89]),
    ],
)
def test_runs_of_more_than_256_characters_are_cut(line: str, lengths: list[int]) -> None:
    parts = list(cut_runs(line))
    assert "".join(parts) == line and [len(part) for part in parts] == lengths


def test_a_text_of_words_gives_the_librarys_own_vocabulary() -> None:
    texts = [f"{sentence}\n" for sentence in SENTENCES * 5]
    backend = Backend(BPE())
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    alphabet = ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    backend.train_from_iterator(texts, trainer)
    assert Tokenizer.train(texts, 400).backend.get_vocab() == backend.get_vocab()


def test_a_vocabulary_that_no_memory_holds_is_refused() -> None:
    with pytest.raises(ConfigError, match="too large"):
        Tokenizer.train(["The river."], 2**62)
