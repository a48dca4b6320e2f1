"""Text to token ids and back, on the `tokenizers` library."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

from transformer.checksum import cached_checksum, is_intact
from transformer.credentials import check_login, scrub
from transformer.data import gpt2_tokenizer, prefix_space, tokenizer_safety, wordpiece
from transformer.data.stream_decoder import StreamDecoder, decode
from transformer.errors import CheckpointError, ConfigError
from transformer.files import read_json, whole_file

END_OF_TEXT = "<|endoftext|>"
# What the end-of-text token is called in tokenizers that do not say so themselves.
_KNOWN_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
_FILES = ("tokenizer.json", "vocab.txt", "vocab.json")  # the first that a directory has
_MAX_BYTES = 33 * 2**20  # of a file: the largest known, of 262,144 tokens, has 32
_MAX_HOLES = 100_000  # ids below the largest one that no token has; every one costs a row of the embedding
_TEMPLATE_FILE = "chat_template.jinja"
_MAX_TEMPLATE_BYTES = 2**20
_NOT_KEPT = ("auto_map", "tokenizer_file", "name_or_path")  # of somebody's settings: code, and places of his
_LONGEST_RUN = 256  # characters between white space, or of it, that are one word of the training of a vocabulary
_LONG_RUN = re.compile(rf"\S{{{_LONGEST_RUN + 1},}}|\s{{{_LONGEST_RUN + 1},}}")
_MOST_TOKENS = 2**22  # of a vocabulary that is trained; the trainer makes room for them all before it begins
_TRAINING_CHARACTERS = 2**24  # more text takes more memory and time, and hardly gives another vocabulary


class Tokenizer:
    """A tokenizer with a named end-of-text token.

    Args:
        backend: the trained tokenizer of the `tokenizers` library.
        end_of_text: the token that separates documents, and with which a generated text ends.
        pad: the token that fills up rows; None if there is none.
        settings: what else its `tokenizer_config.json` says; `save` writes it again.
        chat_template: how a conversation is written for the model, in Jinja; None if it says nothing of that.
        end_ids: ids with which a text ends too, such as the end of a turn in a conversation.
    """

    def __init__(
        self,
        backend: Backend,
        end_of_text: str | None = None,
        pad: str | None = None,
        settings: Mapping[str, Any] | None = None,
        chat_template: str | None = None,
        end_ids: Iterable[int] = (),
    ) -> None:
        self.backend = backend
        if end_of_text is None:
            end_of_text = next((name for name in _KNOWN_ENDS if backend.token_to_id(name) is not None), None)
        end_of_text_id = backend.token_to_id(end_of_text) if end_of_text is not None else None
        if end_of_text is None or end_of_text_id is None:
            raise CheckpointError(
                f"the tokenizer has no end-of-text token (looked for {end_of_text or ', '.join(_KNOWN_ENDS)})."
            )
        self.end_of_text, self.end_of_text_id = end_of_text, end_of_text_id
        self.end_ids = frozenset({end_of_text_id, *end_ids})
        self.pad = pad
        self.pad_id: int | None = backend.token_to_id(pad) if pad else None
        self.chat_template = chat_template
        self._settings = dict(settings or {})
        with _reported("the tokenizer fails on an empty text"):
            self._front: list[int] = backend.encode("").ids  # what it puts in front of a text
        front = backend.id_to_token(self._front[0]) if self._front else None
        self.bos = _token(self._settings.get("bos_token")) or front or end_of_text

    @property
    def bos_id(self) -> int:
        """The token with which a text begins; the end-of-text token where there is none for that."""
        id = self.backend.token_to_id(self.bos)
        return self.end_of_text_id if id is None else id

    @property
    def special_tokens(self) -> dict[str, str]:
        """The named tokens by the names that a chat template knows them by."""
        named = {name: _token(value) for name, value in self._settings.items() if name.endswith("_token")}
        unknown = (
            getattr(self.backend.model, "unk_token", None) or self.end_of_text
        )  # as GPT-2 has it: it is never used
        own = {"unk_token": unknown, "bos_token": self.bos, "eos_token": self.end_of_text, "pad_token": self.pad}
        return {name: token for name, token in (own | named).items() if token}

    @property
    def chat_template_names(self) -> list[str]:
        """The names of the chat templates, where there are several; the one called "default" is `chat_template`."""
        return sorted(_templates(self._settings.get("chat_template")))

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id.

        Raises:
            CheckpointError: if most ids below it have no token, so that a model of that size would be absurd.
        """
        size = max(self.backend.get_vocab().values()) + 1
        if size > 2 * self.backend.get_vocab_size() + _MAX_HOLES:
            raise CheckpointError(
                f"the tokenizer has {self.backend.get_vocab_size():,} tokens, but ids up to {size:,}."
            )
        return size

    @classmethod
    def load(cls, source: str | Path) -> Tokenizer:
        """Open a `tokenizer.json`, BERT's `vocab.txt` or GPT-2's `vocab.json` (with the `merges.txt` beside it), a
        directory that holds one, or that of a model on the Hub.

        BERT's [CLS] and [SEP] are put around no text; [SEP] is the end of text.

        Raises:
            CheckpointError: if it is not there, or cannot be read.
        """
        path = Path(source)
        if path.is_dir():
            path = next((path / name for name in _FILES if (path / name).exists()), path / _FILES[0])
        elif not path.exists():
            path = _download(str(source))
        settings = _optional_json(path.with_name("tokenizer_config.json"))
        config = _optional_json(path.with_name("config.json"))
        with _reported(f"{path} is not a tokenizer that can be read"):
            backend = _open(path, settings, config)
            fault = tokenizer_safety.fault(backend)
        if fault:
            raise CheckpointError(f"{path} is refused: {fault}.")
        backend.no_truncation()  # what a file says of these is how somebody else used it once
        backend.no_padding()
        wordpiece.leave_texts_bare(backend)
        prefix_space.apply_setting(backend, settings, config)
        ends = _end_ids(path.parent)
        pad = _token(settings.get("pad_token"))
        if pad is None and backend.token_to_id(wordpiece.PAD) is not None:
            pad = wordpiece.PAD
        end = _token(settings.get("eos_token")) or next(filter(None, map(backend.id_to_token, ends)), None)
        return cls(backend, end, pad, settings, _chat_template(path.parent, settings), ends)

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
        are learned from: half of them, a quarter and so on. Memory does not grow with the texts. Of a run of more than
        256 characters without white space, or of white space, each 256 are learned from as a text of their own: the
        training takes a time that grows with the square of a word's length.

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
        if vocab_size > _MOST_TOKENS:
            raise ConfigError(
                f"a vocabulary of {vocab_size:,} tokens is too large: at most {_MOST_TOKENS:,} are trained."
            )
        backend = Backend(BPE())
        backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
        backend.decoder = ByteLevelDecoder()
        trainer = BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=named,
            initial_alphabet=ByteLevel.alphabet(),
            show_progress=False,
        )
        lines = (part for text in texts for line in io.StringIO(text) for part in _cut_runs(line))  # with their ends
        backend.train_from_iterator(_evenly(lines, _TRAINING_CHARACTERS), trainer)
        backend.post_processor = TemplateProcessing(
            single=f"{end_of_text} $A", special_tokens=[(end_of_text, backend.token_to_id(end_of_text))]
        )
        return cls(_as_text(backend, whole), end_of_text=end_of_text, pad=pad)

    def save(self, directory: str | Path) -> None:
        """Write `tokenizer.json` and the `tokenizer_config.json` by which `transformers` opens it."""
        directory = Path(directory)
        with whole_file(directory / "tokenizer.json") as path:
            path.write_text(self.backend.to_str(pretty=True), encoding="utf-8")
        kept = {name: value for name, value in self._settings.items() if name not in _NOT_KEPT}
        names = kept | self.special_tokens | {"tokenizer_class": "PreTrainedTokenizerFast"}
        if self.chat_template is not None:
            names["chat_template"] = self.chat_template
        with whole_file(directory / "tokenizer_config.json") as path:
            path.write_text(json.dumps(names, indent=2) + "\n", encoding="utf-8")
        (directory / _TEMPLATE_FILE).unlink(missing_ok=True)  # it would come before what is written here

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a prompt, with what the tokenizer puts in front; never empty: a text can start from nothing.

        Names of special tokens in the text mean those tokens, as chat templates need. A text that begins with the
        token that is put in front has it once.

        Raises:
            CheckpointError: if the rules of the tokenizer fail on this text.
        """
        with _reported("this text cannot be tokenised"):
            ids: list[int] = self.backend.encode(_replace_surrogates(text)).ids or [self.bos_id]
        return ids[1:] if self._front and ids[:2] == self._front[:1] * 2 else ids

    def encode_chat(self, text: str) -> list[int]:
        """Token ids of a conversation that the chat template has written, which has its special tokens already.

        Raises:
            CheckpointError: as `encode_prompt`.
        """
        with _reported("this conversation cannot be tokenised"):
            ids: list[int] = self.backend.encode(_replace_surrogates(text), add_special_tokens=False).ids
        return ids or [self.bos_id]

    def encode_documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text alone, in parallel; names of special tokens in a text are plain text."""
        self.backend.encode_special_tokens = True
        try:
            with _reported("the text cannot be tokenised"):
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
        return decode(self.backend, ids, skip_special)

    def stream(self, before: Sequence[int] = ()) -> StreamDecoder:
        """A decoder for ids that arrive one at a time, after the ids `before`."""
        return StreamDecoder(self.backend, before)


def _download(hub_id: str) -> Path:
    """The `tokenizer.json` of the Hub model `user/name` or `user/name@revision`."""
    from huggingface_hub.errors import EntryNotFoundError

    name, _, revision = hub_id.partition("@")
    try:
        check_login()
        with suppress(EntryNotFoundError):  # not every model has one
            _download_file(name, "tokenizer_config.json", revision or None)
        return _download_file(name, "tokenizer.json", revision or None)
    except Exception as error:  # the client lets through those of the libraries that it uses
        raise CheckpointError(f"{hub_id} is no file, no folder, and no tokenizer on the Hub: {error}") from scrub(error)


def _download_file(name: str, file: str, revision: str | None) -> Path:
    """A file in the Hub's cache, fetched if it is not there, or is damaged."""
    from huggingface_hub import hf_hub_download  # imported late: a local tokenizer needs no network client

    for again in (False, True):
        path = Path(hf_hub_download(name, file, revision=revision, force_download=again))
        digest = cached_checksum(path)
        if digest is None or is_intact(path, digest):
            return path
    raise CheckpointError(f"{file} has not the checksum that the Hub says it has.")


def _open(path: Path, settings: Mapping[str, Any], config: Mapping[str, Any]) -> Backend:
    """The tokenizer of a file, whose name says of what kind it is.

    Raises:
        CheckpointError: if it is not there, is too large, or is part of a tokenizer of another kind.
        Exception: if it cannot be read.
    """
    merges = path.with_name("merges.txt")
    pair = path.name == "vocab.json"
    if not path.exists() or (pair and prefix_space.tokenizer_class(settings, config) != "GPT2Tokenizer"):
        raise CheckpointError(
            f'{path.parent} has no tokenizer.json. Make one: python -c "from transformers import AutoTokenizer as A; '
            f"A.from_pretrained('{path.parent}').save_pretrained('{path.parent}')\""
        )
    if pair and not merges.exists():
        raise CheckpointError(f"{path.parent} has a vocab.json without its merges.txt.")
    for file in (path, merges) if pair else (path,):
        if file.is_file() and file.stat().st_size > _MAX_BYTES:
            raise CheckpointError(f"{file} has {file.stat().st_size:,} bytes, more than any tokenizer needs.")
    if pair:
        return gpt2_tokenizer.open_vocabulary(path, merges, settings)
    return wordpiece.open_vocabulary(path) if path.suffix == ".txt" else Backend.from_buffer(path.read_bytes())


@contextmanager
def _reported(failure: str) -> Iterator[None]:
    """What the library raises, as our error that begins with `failure`: bare Exception, or a panic, which is none."""
    try:
        yield
    except CheckpointError:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise CheckpointError(
                f"{failure}: {str(error).splitlines()[0] if str(error) else 'no reason given'}."
            ) from error
        raise


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _token(value: Any) -> str | None:
    """A token of a `tokenizer_config.json`: a string, or an object whose "content" is one."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) and value else None


def _end_ids(directory: Path) -> list[int]:
    """The ids with which a generated text ends, as `generate()` of transformers has them; none if nothing is said."""
    for name in ("generation_config.json", "config.json"):
        said = _optional_json(directory / name).get("eos_token_id")
        ids = [id for id in (said if isinstance(said, list) else [said]) if type(id) is int and 0 <= id < 2**32]
        if ids:
            return ids
    return []


def _chat_template(directory: Path, settings: Mapping[str, Any]) -> str | None:
    """The template in a file of its own or in `tokenizer_config.json`; of several, the one called "default"."""
    path = directory / _TEMPLATE_FILE
    if path.exists():
        if path.stat().st_size > _MAX_TEMPLATE_BYTES:
            raise CheckpointError(f"{path} has {path.stat().st_size:,} bytes, more than any chat template needs.")
        try:
            return path.read_text(encoding="utf-8")
        except ValueError as error:
            raise CheckpointError(f"{path} is no text: {error}.") from error
    said = settings.get("chat_template")
    said = _templates(said).get("default", said)
    return said if isinstance(said, str) else None


def _cut_runs(line: str) -> Iterator[str]:
    """The line, cut where a run of characters without white space, or of white space, is longer than a word may be."""
    start = 0
    for run in _LONG_RUN.finditer(line):
        for stop in range(run.start() + _LONGEST_RUN, run.end(), _LONGEST_RUN):
            yield line[start:stop]
            start = stop
    yield line[start:]


def _templates(said: Any) -> dict[str, Any]:
    """Several chat templates by their names."""
    if not isinstance(said, list):
        return {}
    return {str(one.get("name")): one.get("template") for one in said if isinstance(one, dict)}


def _evenly(lines: Iterable[str], characters: int) -> list[str]:
    """Every line, or every 2nd, 4th, 8th … so that they have at most this many characters together."""
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
