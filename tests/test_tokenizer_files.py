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
from transformer.hub.resolve import fetch, pack

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


def token(content: str, special: bool = True, **flags: bool) -> dict:
    names = ("lstrip", "rstrip", "normalized", "single_word")
    return {"content": content, "special": special, **dict.fromkeys(names, False), **flags}


MARKED = ["a <tool> b", "<|im_start|>user\nHi<|im_end|>", "<pad>", "The <mask>  river 1889", "a</s>b", *TEXTS]
ADDED: dict[str, dict] = {
    "a named one": {"tokenizer_config.json": {"pad_token": "<pad>"}},
    "one with flags": {
        "tokenizer_config.json": {"mask_token": {**token("<mask>", lstrip=True), "__type": "AddedToken"}}
    },
    "additional": {"tokenizer_config.json": {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}},
    "extra": {"tokenizer_config.json": {"extra_special_tokens": ["<tool>"], "additional_special_tokens": ["<pad>"]}},
    "extra by name": {"tokenizer_config.json": {"extra_special_tokens": {"image_token": "<tool>"}}},
    "numbered": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {"9": token("<tool>", False, lstrip=True), "10": token("<|im_start|>")},
            "pad_token": "<tool>",
        },
        "special_tokens_map.json": {"cls_token": "<pad>"},  # which is not looked at then
    },
    "older files": {
        "special_tokens_map.json": {"pad_token": token("<pad>"), "additional_special_tokens": ["<mask>"]},
        "added_tokens.json": {"<tool>": 900, "<pad>": 901},
    },
}


@pytest.mark.parametrize("kind", ["byte level", "metaspace", "normalizer"])
@pytest.mark.parametrize("added", ADDED)
def test_tokens_that_the_settings_name_are_added(kind: str, added: str, tmp_path: Path) -> None:
    if kind == "byte level":
        byte_level(tmp_path, qwen=False)
    else:
        llama2(tmp_path, kind == "metaspace")
    before = Tokenizer.load(tmp_path).vocab_size
    for name, fields in ADDED[added].items():
        path = tmp_path / name
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        path.write_text(json.dumps(kept | fields), encoding="utf-8")
    same_ids(tmp_path, MARKED)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), Tokenizer.load(tmp_path)
    assert ours.vocab_size == len(theirs) > before
    named = {name: value for name, value in theirs.special_tokens_map.items() if isinstance(value, str)}
    assert named.items() <= ours.special_tokens.items() | {("unk_token", theirs.unk_token)}
    packed = fetch(pack(model_of(tmp_path), tmp_path / "model.tar"))
    assert Tokenizer.load(packed).encode_chat("".join(MARKED)) == ours.encode_chat("".join(MARKED))
    ours.save(packed)
    assert Tokenizer.load(packed).encode_chat("".join(MARKED)) == ours.encode_chat("".join(MARKED))


def model_of(folder: Path) -> Path:
    """A folder that an archive can be made of."""
    if not (folder / "config.json").exists():
        (folder / "config.json").write_text("{}", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("named", "model_type"),
    [
        ("PreTrainedTokenizerFast", "qwen2"),  # Qwen2's own class, whatever is named
        (None, "qwen3"),
        (None, "qwen2"),
        ("GPT2Tokenizer", "llama"),
        ("LlamaTokenizerFast", "llama"),  # byte-level all the same: the general class
        ("GPT2Tokenizer", "mistral"),  # the general class, whatever is named
        (None, "smollm3"),
        ("GPT2Tokenizer", "olmo2"),
    ],
)
def test_a_class_has_its_own_rules(named: str | None, model_type: str, tmp_path: Path) -> None:
    """The file says other ones: each digit alone, and all text in lower case."""
    byte_level(tmp_path, qwen=False)
    path = tmp_path / "tokenizer.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    digits = {"type": "Digits", "individual_digits": True}
    fields["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, fields["pre_tokenizer"]]}
    path.write_text(json.dumps(fields | {"normalizer": {"type": "Lowercase"}}), encoding="utf-8")
    settings_of(tmp_path, tokenizer_class=named)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
    same_ids(tmp_path, [*TEXTS, "In 1889 THE tower's 300", "e\u0301\n\n I'm"])


@pytest.mark.parametrize("model_type", ["llama", "mistral", "smollm3", "olmo2", "gemma3_text"])
@pytest.mark.parametrize("named", ["LlamaTokenizer", None])
@pytest.mark.parametrize("metaspace", [False, True])
def test_a_sentencepiece_like_tokenizer_by_the_model_it_is_of(
    model_type: str, named: str | None, metaspace: bool, tmp_path: Path
) -> None:
    llama2(tmp_path, metaspace)
    names = {"pad_token": "<s>", "mask_token": "<s>"}  # Gemma's class would add its own
    settings_of(tmp_path, tokenizer_class=named, **names)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
    same_ids(tmp_path, [*TEXTS, "a</s>b", "a\n\n  b", " x"])


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


@pytest.mark.parametrize("settings", [{}, {"eos_token": "<|im_end|>", "add_prefix_space": True}])
def test_qwens_vocabulary_and_merges(settings: dict, tmp_path: Path) -> None:
    vocabulary_and_merges(tmp_path, **{"tokenizer_class": "Qwen2Tokenizer", **settings})
    same_ids(tmp_path, [*TEXTS, "In 1889", "a<|im_end|>\n"])


def test_a_sentencepiece_model_alone_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x05")
    with pytest.raises(
        CheckpointError, match=r"only a tokenizer.model. Make one: pip install .*sentencepiece.*python -c"
    ):
        Tokenizer.load(tmp_path)


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
