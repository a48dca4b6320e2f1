"""Text to token ids and back, on the `tokenizers` library."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.decoders import DecodeStream
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

from transformer.errors import CheckpointError, ConfigError
from transformer.files import whole_file
from transformer.text import wordpiece

END_OF_TEXT = "<|endoftext|>"
# What the end-of-text token is called in tokenizers that do not say so themselves.
_KNOWN_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
_MAX_BYTES = 64 * 2**20  # of a file: the largest known, of 256,000 tokens, has half of it
_TRAINING_CHARACTERS = 2**24  # more text takes more memory and time, and hardly gives another vocabulary


class Tokenizer:
    """A tokenizer with a named end-of-text token.

    Args:
        backend: the trained tokenizer of the `tokenizers` library.
        end_of_text: the token that separates documents, and with which a generated text ends.
        pad: the token that fills up rows; None if there is none.
    """

    def __init__(self, backend: Backend, end_of_text: str | None = None, pad: str | None = None) -> None:
        self.backend = backend
        if end_of_text is None:
            end_of_text = next((name for name in _KNOWN_ENDS if backend.token_to_id(name) is not None), None)
        end_of_text_id = backend.token_to_id(end_of_text) if end_of_text is not None else None
        if end_of_text is None or end_of_text_id is None:
            raise CheckpointError(
                f"the tokenizer has no end-of-text token (looked for {end_of_text or ', '.join(_KNOWN_ENDS)})."
            )
        self.end_of_text, self.end_of_text_id = end_of_text, end_of_text_id
        self.pad = pad
        self.pad_id: int | None = backend.token_to_id(pad) if pad else None

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id."""
        return max(self.backend.get_vocab().values()) + 1

    @classmethod
    def load(cls, source: str | Path) -> Tokenizer:
        """Open a `tokenizer.json` or BERT's `vocab.txt`, a directory that holds one, or that of a model on the Hub.

        BERT's [CLS] and [SEP] are put around no text; [SEP] is the end of text.

        Raises:
            CheckpointError: if it is not there, or cannot be read.
        """
        path = Path(source)
        if path.is_dir():
            path = next((path / name for name in ("tokenizer.json", "vocab.txt") if (path / name).exists()), path)
        elif not path.exists():
            path = _download(str(source))
        if path.is_file() and path.stat().st_size > _MAX_BYTES:
            raise CheckpointError(f"{path} has {path.stat().st_size:,} bytes, more than any tokenizer needs.")
        try:
            backend = wordpiece.open_vocabulary(path) if path.suffix == ".txt" else Backend.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{path} is not a tokenizer that can be read: {error}.") from error
        wordpiece.leave_texts_bare(backend)
        names = _special_names(path.with_name("tokenizer_config.json"))
        pad = names.get("pad_token") or (wordpiece.PAD if backend.token_to_id(wordpiece.PAD) is not None else None)
        return cls(backend, end_of_text=names.get("eos_token"), pad=pad)

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        end_of_text: str = END_OF_TEXT,
        pad: str | None = None,
        whole: Sequence[str] = (),
    ) -> Tokenizer:
        """Train a byte-level BPE (Sennrich et al., 2016; Radford et al., 2019) on the lines of `texts`.

        Every string can be encoded, and decoding gives it back unchanged. Encoding puts the end-of-text token in
        front, as where a document begins. Of more than 16 million characters, lines spread evenly over the texts
        are learned from: half of them, a quarter and so on. Memory does not grow with the texts.

        Args:
            texts: documents, or pieces of them.
            vocab_size: all tokens together, the named ones included.
            whole: strings of the text that are one token each, such as WikiText's "<unk>".

        Raises:
            ConfigError: if `vocab_size` has no room for the 256 bytes and the named tokens.
        """
        named = [end_of_text, *([pad] if pad else []), *whole]
        least = 256 + len(named)
        if vocab_size < least:
            raise ConfigError(f"a byte-level vocabulary needs at least {least} tokens, not {vocab_size}.")
        backend = Backend(BPE())
        backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
        backend.decoder = ByteLevelDecoder()
        trainer = BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=named,
            initial_alphabet=ByteLevel.alphabet(),
            show_progress=False,
        )
        lines = (line for text in texts for line in io.StringIO(text))  # with their ends, and at "\n" alone
        backend.train_from_iterator(_evenly(lines, _TRAINING_CHARACTERS), trainer)
        backend.post_processor = TemplateProcessing(
            single=f"{end_of_text} $A", special_tokens=[(end_of_text, backend.token_to_id(end_of_text))]
        )
        return cls(_as_text(backend, whole), end_of_text=end_of_text, pad=pad)

    def save(self, directory: str | Path) -> None:
        """Write `tokenizer.json` and the `tokenizer_config.json` by which `transformers` opens it."""
        directory = Path(directory)
        with whole_file(directory / "tokenizer.json") as path:
            self.backend.save(str(path))
        names = {"tokenizer_class": "PreTrainedTokenizerFast"}
        names["bos_token"] = names["eos_token"] = self.end_of_text
        if self.pad:
            names["pad_token"] = self.pad
        with whole_file(directory / "tokenizer_config.json") as path:
            path.write_text(json.dumps(names, indent=2) + "\n")

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a prompt, with what the tokenizer puts in front; never empty: a text can start from nothing.

        Names of special tokens in the text mean those tokens, as chat templates need.
        """
        return self.backend.encode(_replace_surrogates(text)).ids or [self.end_of_text_id]

    def encode_documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text alone, in parallel; names of special tokens in a text are plain text."""
        self.backend.encode_special_tokens = True
        try:
            encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        finally:
            self.backend.encode_special_tokens = False
        return [encoding.ids for encoding in encodings]

    def pieces(self, text: str) -> list[tuple[int, str]]:
        """The token ids of a text alone, as `encode_documents` gives them, each with its piece of the text.

        The pieces together are the text. Of the tokens that share a character, the first has it and the others "".
        """
        text, pieces, reached = _replace_surrogates(text), [], 0
        self.backend.encode_special_tokens = True
        try:
            encoding = self.backend.encode(text, add_special_tokens=False)
        finally:
            self.backend.encode_special_tokens = False
        for token, (_, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            pieces.append((token, text[reached:stop]))  # from where the last one ended: some leave out white space
            reached = max(reached, stop)
        if pieces and reached < len(text):
            pieces[-1] = (pieces[-1][0], pieces[-1][1] + text[reached:])
        return pieces

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of `ids`."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special)

    def stream(self) -> StreamDecoder:
        """A decoder for ids that arrive one at a time."""
        return StreamDecoder(self)


class StreamDecoder:
    """Text pieces from token ids that arrive one at a time; a piece never ends within a UTF-8 character.

    Bytes that are no character become U+FFFD, as in `Tokenizer.decode`. A character that is not complete when the
    ids end is not shown.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._backend = tokenizer.backend
        self._stream = DecodeStream(skip_special_tokens=True)

    def add(self, token_id: int) -> str:
        """The text that `token_id` completes; often empty within a character of several tokens."""
        return self._stream.step(self._backend, token_id) or ""


def _download(hub_id: str) -> Path:
    """The `tokenizer.json` of the Hub model `user/name` or `user/name@revision`."""
    from huggingface_hub import hf_hub_download  # imported late: a local tokenizer needs no network client
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = hub_id.partition("@")
    try:
        with suppress(LocalEntryNotFoundError):  # not every model has one
            hf_hub_download(name, "tokenizer_config.json", revision=revision or None)
        return Path(hf_hub_download(name, "tokenizer.json", revision=revision or None))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise CheckpointError(f"{hub_id} is no file, no folder, and no tokenizer on the Hub: {error}") from error


def _special_names(config: Path) -> dict[str, str]:
    """The special tokens that a `tokenizer_config.json` names; none if there is no such file."""
    if not config.exists():
        return {}
    try:
        fields = json.loads(config.read_text())
    except ValueError as error:
        raise CheckpointError(f"{config} is not valid JSON: {error}.") from error
    # A token is a string, or an object whose "content" is one.
    names = {key: fields.get(key) for key in ("eos_token", "pad_token")}
    return {key: name["content"] if isinstance(name, dict) else name for key, name in names.items() if name}


def _evenly(lines: Iterable[str], characters: int) -> list[str]:
    """Every line, or every 2nd, 4th, 8th … so that they have at most so many characters together."""
    kept: list[str] = []
    length, step = 0, 1
    for number, line in enumerate(lines):
        if number % step:
            continue
        kept.append(line)
        length += len(line)
        while length > characters and len(kept) > 1:
            kept, step = kept[::2], 2 * step
            length = sum(map(len, kept))
    return kept


def _as_text(backend: Backend, whole: Sequence[str]) -> Backend:
    """The trainer makes every named token special, which decoding leaves out; these are text."""
    fields = json.loads(backend.to_str())
    for token in fields["added_tokens"]:
        token["special"] = token["content"] not in whole
    return Backend.from_str(json.dumps(fields))


def _replace_surrogates(text: str) -> str:
    """Half a UTF-16 pair, which JSON can carry and UTF-8 cannot, becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
