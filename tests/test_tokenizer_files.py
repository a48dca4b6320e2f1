"""Tokenizers by the files that they are published in, held equal to transformers'."""

import json
from pathlib import Path

import pytest
import transformers
from models import SENTENCES, tiny_tokenizer
from test_text import llama2
from tokenizers import Regex, normalizers, pre_tokenizers
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from transformer.data.tokenizer import Tokenizer
from transformer.errors import CheckpointError

TEXTS = ["The river", " The river", "a<|endoftext|>b", "", "  x", "é 東京\n"]


def settings_of(folder: Path, **changes: object) -> None:
    path = folder / "tokenizer_config.json"
    fields = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}), encoding="utf-8")


def byte_level(folder: Path, qwen: bool) -> None:
    tokenizer = tiny_tokenizer()
    if qwen:
        split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated")
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.backend.normalizer = normalizers.NFC()
        tokenizer.backend.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    tokenizer.save(folder)


def same_ids(folder: Path, texts: list[str] = TEXTS) -> None:
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), Tokenizer.load(folder)
    for text in texts:
        assert ours.encode_prompt(text) == (theirs(text)["input_ids"] or [ours.bos_id]), text
        assert ours.decode(ours.encode_prompt(text)) == theirs.decode(
            theirs(text)["input_ids"], skip_special_tokens=True
        )


@pytest.mark.parametrize("said", [None, False, True])
@pytest.mark.parametrize(
    ("kind", "model_type"),
    [("GPT2Tokenizer", "opt"), ("Qwen2TokenizerFast", "qwen3"), ("PreTrainedTokenizerFast", "gpt2"), (None, "gpt2")],
)
def test_add_prefix_space_means_what_it_means_to_the_class(
    kind: str | None, model_type: str, said: bool | None, tmp_path: Path
) -> None:
    byte_level(tmp_path, qwen=kind == "Qwen2TokenizerFast")
    settings_of(tmp_path, tokenizer_class=kind, add_prefix_space=said)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
    same_ids(tmp_path)
    first = Tokenizer.load(tmp_path)
    assert (first.decode(first.encode_prompt("x")) == " x") == (said is True and kind != "PreTrainedTokenizerFast")
    (tmp_path / "again").mkdir()
    first.save(tmp_path / "again")
    same_ids(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").encode_prompt("x") == first.encode_prompt("x")


@pytest.mark.parametrize("metaspace", [False, True])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("said", [False, True])
def test_add_prefix_space_of_llamas_tokenizer(metaspace: bool, legacy: bool, said: bool, tmp_path: Path) -> None:
    llama2(tmp_path, metaspace)
    settings_of(tmp_path, add_prefix_space=said, legacy=legacy)
    same_ids(tmp_path, [*TEXTS, "a</s>b"])


def vocabulary_and_merges(folder: Path, **settings: object) -> Path:
    model = json.loads(tiny_tokenizer().backend.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = [" ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer", **settings}), encoding="utf-8"
    )
    return folder


BOS = {
    "__type": "AddedToken",
    "content": "<s>",
    "lstrip": False,
    "normalized": True,
    "rstrip": False,
    "single_word": False,
}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"add_prefix_space": True},
        {"bos_token": BOS, "eos_token": "<|endoftext|>", "add_bos_token": True},
        {"pad_token": "<pad>", "additional_special_tokens": ["<|im_start|>"]},
        {"added_tokens_decoder": {"300": {"content": "<tool>", "special": False, "lstrip": True}}},
    ],
)
def test_a_vocabulary_and_merges_are_opened_as_transformers_opens_them(settings: dict, tmp_path: Path) -> None:
    vocabulary_and_merges(tmp_path, **settings)
    same_ids(tmp_path, [*TEXTS, "a <|im_start|> b", "a <tool> b", "<s>x"[3:]])
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.end_of_text, tokenizer.end_of_text_id) == ("<|endoftext|>", 0)
    assert tokenizer.decode(tokenizer.encode_documents([SENTENCES[2]])[0]).strip() == SENTENCES[2]


def test_what_is_no_tokenizer_yet_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no tokenizer.json. Make one: python -c .*save_pretrained"):
        Tokenizer.load(tmp_path)
    vocabulary_and_merges(tmp_path, tokenizer_class="CodeGenTokenizer")
    with pytest.raises(CheckpointError, match=r"has no tokenizer.json. Make one"):
        Tokenizer.load(tmp_path)
    vocabulary_and_merges(tmp_path)
    (tmp_path / "merges.txt").write_bytes(b"a b c d\xff\n")
    with pytest.raises(CheckpointError, match="is not a tokenizer that can be read"):
        Tokenizer.load(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match=r"vocab.json without its merges.txt"):
        Tokenizer.load(tmp_path)
