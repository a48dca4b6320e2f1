"""Pieces of a streamed text, joined, are the text decoded at once, for any ids and every kind of decoder."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import tiny_model, tiny_tokenizer
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE, Unigram, WordPiece

from transformer.data.stream_decoder import StreamDecoder
from transformer.data.tokenizer import Tokenizer
from transformer.errors import CheckpointError
from transformer.inference import Generator, SamplingOptions, select_backend

WORDS = ["▁", "▁▁", "▁the", "m", "é", "東", "\ufffd", ".", "'s", "a b", "##ing", "do", "##'t", "</w>", "x</w>", ""]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_fallback(*rules: object) -> Tokenizer:
    """Llama's kind: byte tokens have the ids from 3 on."""
    vocabulary = {token: id for id, token in enumerate(["<unk>", "<s>", "</s>", *BYTES, *WORDS])}
    backend = Backend(BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), *rules])
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return Tokenizer(backend)


def plain(decoder: object) -> Tokenizer:
    vocabulary = {token: id for id, token in enumerate(["<unk>", "</s>", *WORDS])}
    backend = Backend(BPE(vocabulary, [], unk_token="<unk>"))
    if decoder is not None:
        backend.decoder = decoder
    backend.add_special_tokens(["</s>"])
    return Tokenizer(backend)


def byte_level() -> Tokenizer:
    tokenizer = tiny_tokenizer(320)
    backend = Backend.from_str(tokenizer.backend.to_str())
    backend.add_tokens([AddedToken("<tool>", special=False), AddedToken("東京", special=False)])
    backend.add_special_tokens(["<|im_end|>"])
    return Tokenizer(backend)


def sentencepiece() -> Tokenizer:
    """T5's kind: pieces of a unigram model, joined by Metaspace."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((word, -3.0) for word in dict.fromkeys(WORDS) if word)]
    backend = Backend(Unigram(pieces, unk_id=2))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.add_special_tokens(["<pad>", "</s>"])
    return Tokenizer(backend)


def wordpiece() -> Tokenizer:
    names = ["[PAD]", "[UNK]", "[SEP]", *WORDS, "n", "##n", "do", "not", ",", "!", "##!"]
    backend = Backend(WordPiece({token: id for id, token in enumerate(dict.fromkeys(names))}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(["[PAD]", "[SEP]"])
    return Tokenizer(backend)


TOKENIZERS = {
    "byte-level": byte_level(),
    "Llama 2": byte_fallback(decoders.Fuse(), decoders.Strip(" ", 1, 0)),
    "Gemma": byte_fallback(decoders.Fuse()),
    "strips the end": byte_fallback(decoders.Fuse(), decoders.Strip(" ", 0, 1)),
    "SentencePiece": sentencepiece(),
    "WordPiece": wordpiece(),
    "GPT-1": plain(decoders.BPEDecoder()),
    "CTC": plain(decoders.CTC()),
    "without a decoder": plain(None),
}


def streamed(tokenizer: Tokenizer, ids: list[int], before: tuple[int, ...] | list[int] = ()) -> str:
    stream = tokenizer.stream(before)
    return "".join([*map(stream.add, ids), stream.finish()])


def some_ids(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    """Ids of any tokens, and two that are no token's; runs of bytes where there are any, often of few values."""
    any_id = st.integers(0, tokenizer.vocab_size + 1)
    id_of = tokenizer.backend.token_to_id
    few = [id_of(f"<0x{b}>") for b in ("C3", "A9", "E2", "82", "AC", "F0", "9F", "ED", "F4", "41", "20", "0A")]
    few += [id_of(c) for c in "ÃéâĤ¬ðŁíô"] + [id_of(word) for word in ("▁", "m", "▁the", "</w>", "##n", "\ufffd")]
    return st.lists(any_id | st.sampled_from([id for id in few if id is not None]), max_size=60)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_pieces_of_any_ids_are_the_text_decoded_at_once(name: str) -> None:
    tokenizer = TOKENIZERS[name]

    @settings(max_examples=300)
    @given(some_ids(tokenizer))
    def check(ids: list[int]) -> None:
        if name == "strips the end":  # where the library itself fails on an empty text
            ids = [*ids, tokenizer.backend.token_to_id("m")]
        assert streamed(tokenizer, ids) == tokenizer.decode(ids)

    check()


@settings(max_examples=300)
@given(some_ids(TOKENIZERS["Llama 2"]), st.integers(0, 60))
def test_after_a_prompt_the_pieces_are_the_rest_of_the_text(ids: list[int], cut: int) -> None:
    tokenizer = TOKENIZERS["Llama 2"]
    before, whole = tokenizer.decode(ids[:cut]), tokenizer.decode(ids)
    if whole.startswith(before) and not before.endswith("\ufffd"):  # the prompt ends with a character
        assert before + streamed(tokenizer, ids[cut:], ids[:cut]) == whole


def named(*tokens: str) -> list[int]:
    return [TOKENIZERS["Llama 2"].backend.token_to_id(token) for token in tokens]


@pytest.mark.parametrize(
    ("tokens", "pieces"),
    [
        (("<0xC3>", "<0xA9>", "<0xA9>", "m"), ["", "", "\ufffd" * 3, "m"]),
        (("<0xC3>", "<0xA9>", "m"), ["", "", "ém"]),
        (("<0xA9>", "<0xC3>", "<0xA9>", "m"), ["\ufffd", "\ufffd", "\ufffd", "m"]),
        (("<0xF0>", "<0x9F>", "</s>", "<0xA6>", "<0x9E>", "▁the"), ["", "", "", "", "", "🦞 the"]),
    ],
)
def test_a_run_of_byte_tokens_is_given_out_as_soon_as_it_is_certain(tokens: tuple[str, ...], pieces: list[str]) -> None:
    stream = TOKENIZERS["Llama 2"].stream(named("m"))
    assert [stream.add(id) for id in named(*tokens)] == pieces


@pytest.mark.parametrize("lead", [["m"], ["<s>"], ["m", "<0x41>", "<0xC3>", "<0xA9>"]])
def test_a_prompt_that_ends_within_a_character_is_followed_by_that_character(lead: list[str]) -> None:
    tokenizer = TOKENIZERS["Llama 2"]
    for inner in range(1, 4):
        lobster = ["<0xF0>", "<0x9F>", "<0xA6>", "<0x9E>"]
        assert streamed(tokenizer, named(*lobster[inner:], "m"), named(*lead, *lobster[:inner])) == "🦞m"


@pytest.mark.parametrize("lead", ["", "a ", "é", "\ufffd"])
def test_the_same_of_bytes_as_gpt2_writes_them(lead: str) -> None:
    tokenizer = TOKENIZERS["byte-level"]
    start = tokenizer.encode_documents([lead])[0]
    ids = [tokenizer.backend.token_to_id(character) for character in "ðŁ¦ŀ"]
    for inner in range(1, 4):
        assert streamed(tokenizer, ids[inner:], [*start, *ids[:inner]]) == "🦞"
    assert streamed(tokenizer, ids, start) == "🦞"


@pytest.mark.parametrize("name", ["byte-level", "Llama 2"])
@pytest.mark.parametrize("text", ["\n", "é", "\udca9", "é\udca9"])
def test_the_cost_of_a_long_run_of_bytes_is_linear(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    seen = []
    backend = tokenizer.backend

    class Counting:
        decoder, id_to_token = backend.decoder, backend.id_to_token
        get_added_tokens_decoder = backend.get_added_tokens_decoder

        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            seen.append(len(ids))
            return backend.decode(ids, skip_special_tokens=skip_special_tokens)

    raw = text.encode("utf-8", "surrogateescape") * 2000
    if name == "byte-level":
        letters = {"\n": "Ċ", "é": "Ã©", "\udca9": "©", "é\udca9": "Ã©©"}  # its bytes as GPT-2 writes them
        ids = [backend.token_to_id(letter) for letter in letters[text] * 2000]
    else:
        ids = [byte + 3 for byte in raw]
    stream = StreamDecoder(Counting())  # type: ignore[arg-type]
    joined = "".join([*map(stream.add, ids), stream.finish()])
    assert joined == tokenizer.decode(ids)
    assert sum(seen) <= 20 * len(ids)


def test_a_decoder_that_the_library_fails_on_is_one_sentence() -> None:
    with pytest.raises(CheckpointError, match="decoder fails"):
        TOKENIZERS["strips the end"].decode([])


def scripted(tokenizer: Tokenizer, script: list[int]) -> Generator:
    """A model that writes the tokens of a script, whatever it reads first."""
    model = tiny_model("gpt2", vocab_size=tokenizer.vocab_size, context_length=64)
    served = select_backend(model, "fp32")
    written = iter(script * 2)

    def step(tokens_B: torch.Tensor, memory: object) -> torch.Tensor:
        token = next(written)
        return torch.nn.functional.one_hot(torch.full_like(tokens_B, token), tokenizer.vocab_size).float() * 100

    served.decode = step  # type: ignore[method-assign]
    return Generator(served, tokenizer)


INVALID = ["<0xC3>", "<0xA9>", "<0xA9>", "m"]


def test_a_text_of_bytes_that_are_no_text_ends_neither_itself_nor_its_batch() -> None:
    tokenizer = TOKENIZERS["Llama 2"]
    options = SamplingOptions(max_tokens=4, temperature=0)
    assert "".join(scripted(tokenizer, named(*INVALID)).generate("m", options)) == "\ufffd" * 3 + "m"
    both = scripted(tokenizer, named(*INVALID)).generate_batch(["m", "mm"], options)
    assert [text.text for text in both] == ["\ufffd" * 3 + "m"] * 2


@pytest.mark.parametrize(
    ("stop", "text", "reason", "tokens"),
    [
        ("\n\n", "m", "stop_sequence", 3),  # at once, though the run of bytes goes on
        ("m\n\n", "", "stop_sequence", 3),
        ("\n\n\n\n", "m\n\n\n", "length", 4),
        ("", "m\n\n\n", "length", 4),
    ],
)
def test_a_stop_sequence_is_found_within_a_run_of_byte_tokens(stop: str, text: str, reason: str, tokens: int) -> None:
    model = scripted(TOKENIZERS["Llama 2"], named("m", "<0x0A>", "<0x0A>", "<0x0A>", "<0x0A>"))
    generation = model.generate("m", SamplingOptions(max_tokens=4, temperature=0, stop=(stop,) if stop else ()))
    assert "".join(generation) == text
    assert (generation.stop_reason, generation.completion_tokens) == (reason, tokens)
