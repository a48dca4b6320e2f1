"""Text to token ids and back, on the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from transformer.data import template_files
from transformer.data.document import replace_surrogates
from transformer.data.stream_decoder import StreamDecoder, decode
from transformer.data.tokenizer_files import read_files, reported, token_of
from transformer.data.tokenizer_training import train_bpe
from transformer.errors import CheckpointError
from transformer.files import atomic_write, write_json

END_OF_TEXT = "<|endoftext|>"
# The end-of-text token of tokenizers whose settings do not name it.
_KNOWN_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
_MAX_UNUSED_IDS = 100_000  # ids below the largest one without a token, each with a row of the embedding
# Settings that are not saved: code, paths, and the original templates.
_NOT_KEPT = ("auto_map", "tokenizer_file", "name_or_path", "chat_template")


class Tokenizer:
    """A tokenizer with a named end-of-text token.

    Args:
        backend: the trained tokenizer of the `tokenizers` library.
        end_of_text: the token that separates documents and ends a generated text; None: a known one in the vocabulary.
        pad: the padding token; None: there is none.
        settings: of its `tokenizer_config.json`, which `save` writes again.
        chat_templates: Jinja templates by name; see `chat_template`.
        end_ids: ids of other tokens that end a generated text, such as the end of a turn in a conversation.

    Raises:
        CheckpointError: if the tokenizer has no end-of-text token.
    """

    def __init__(
        self,
        backend: Backend,
        end_of_text: str | None = None,
        pad: str | None = None,
        settings: Mapping[str, Any] | None = None,
        chat_templates: Mapping[str, str] | None = None,
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
        self.chat_templates = dict(chat_templates or {})
        self._settings = dict(settings or {})
        with reported("the tokenizer fails on an empty text"):
            self._prefix: list[int] = backend.encode("").ids  # the tokens that it adds before a text
        prefix = backend.id_to_token(self._prefix[0]) if self._prefix else None
        self.bos = token_of(self._settings.get("bos_token")) or prefix or end_of_text

    @property
    def bos_id(self) -> int:
        """The id of the beginning-of-text token, or of the end-of-text token if there is none."""
        id = self.backend.token_to_id(self.bos)
        return self.end_of_text_id if id is None else id

    @property
    def padding_id(self) -> int:
        """The token to pad rows with: the padding token, or the end-of-text token if there is none."""
        return self.end_of_text_id if self.pad_id is None else self.pad_id

    @property
    def special_tokens(self) -> dict[str, str]:
        """The special tokens by their names in chat templates, such as `bos_token`."""
        named = {name: token_of(value) for name, value in self._settings.items() if name.endswith("_token")}
        unknown = getattr(self.backend.model, "unk_token", None) or self.end_of_text  # as GPT-2, which never uses it
        own = {"unk_token": unknown, "bos_token": self.bos, "eos_token": self.end_of_text, "pad_token": self.pad}
        return {name: token for name, token in (own | named).items() if token}

    @property
    def chat_template(self) -> str | None:
        """The default template; None: there is none."""
        return self.chat_templates.get(template_files.DEFAULT)

    @chat_template.setter
    def chat_template(self, template: str | None) -> None:
        self.chat_templates = {} if template is None else {template_files.DEFAULT: template}

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id.

        Raises:
            CheckpointError: if too many ids below it have no token.
        """
        size = max(self.backend.get_vocab().values()) + 1
        if size > 2 * self.backend.get_vocab_size() + _MAX_UNUSED_IDS:
            raise CheckpointError(
                f"the tokenizer has {self.backend.get_vocab_size():,} tokens, but ids up to {size:,}."
            )
        return size

    def ids_without_token(self, vocab_size: int) -> list[int]:
        """The ids below `vocab_size` without a token; the embedding of a model may have rows for them."""
        return sorted(set(range(vocab_size)).difference(self.backend.get_vocab().values()))

    @classmethod
    def load(cls, source: str | Path) -> Tokenizer:
        """Open a `tokenizer.json`, BERT's `vocab.txt`, GPT-2's `vocab.json` with its `merges.txt`, or their folder.

        `hub.resolve.fetch_tokenizer` downloads the tokenizer of a model on the Hub. BERT's [CLS] and [SEP] are not
        added to texts; [SEP] is the end-of-text token.

        Raises:
            CheckpointError: if it does not exist or cannot be read.
        """
        read = read_files(Path(source))
        return cls(read.backend, read.end_of_text, read.pad, read.settings, read.chat_templates, read.end_ids)

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

        Every string can be encoded, and is unchanged when it is decoded. Encoding a prompt adds the end-of-text token
        before it, as before a document.

        Of more than 16 million characters only every 2nd (4th, 8th …) line is used, so that memory and time do not grow
        with the texts. Runs of more than 256 characters without white space, or of white space, are split, since the
        time of training grows with the square of the length of a word.

        Args:
            texts: documents, or pieces of them.
            vocab_size: total number of tokens, including special ones.
            end_of_text, pad: the special tokens; pad may be None.
            whole: strings that become one token each, such as WikiText's "<unk>".

        Raises:
            ConfigError: if `vocab_size` is too small for the 256 bytes and the special tokens, or too large to train.
        """
        return cls(train_bpe(texts, vocab_size, end_of_text, pad, whole), end_of_text, pad)

    def save(self, directory: str | Path) -> None:
        """Write `tokenizer.json`, and a `tokenizer_config.json` for `transformers`.

        Raises:
            WriteError: if they cannot be written.
        """
        directory = Path(directory)
        with atomic_write(directory / "tokenizer.json") as path:
            path.write_text(self.backend.to_str(pretty=True), encoding="utf-8")
        kept = {name: value for name, value in self._settings.items() if name not in _NOT_KEPT}
        names: dict[str, Any] = kept | self.special_tokens | {"tokenizer_class": "PreTrainedTokenizerFast"}
        if self.chat_templates:
            names["chat_template"] = template_files.to_setting(self.chat_templates)
        write_json(directory / "tokenizer_config.json", names)
        template_files.remove_files(directory)

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a prompt, with the tokens that the tokenizer adds before a text; at least one token.

        Special tokens in the text are encoded as such, as chat templates need. If the text starts with the token that
        is added, it is not added again.

        Raises:
            CheckpointError: if the tokenizer fails on this text.
        """
        with reported("this text cannot be tokenised"):
            ids: list[int] = self.backend.encode(replace_surrogates(text)).ids or [self.bos_id]
        return ids[1:] if self._prefix and ids[:2] == self._prefix[:1] * 2 else ids

    def encode_chat(self, text: str) -> list[int]:
        """Token ids of the output of a chat template, which has its special tokens already.

        Raises:
            CheckpointError: as `encode_prompt`.
        """
        with reported("this conversation cannot be tokenised"):
            ids: list[int] = self.backend.encode(replace_surrogates(text), add_special_tokens=False).ids
        return ids or [self.bos_id]

    def encode_documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without added tokens; special tokens in a text are encoded as plain text.

        Raises:
            CheckpointError: if the tokenizer fails on a text.
        """
        with reported("the text cannot be tokenised"), self._special_tokens_as_text():
            encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def pieces(self, text: str) -> list[tuple[int, str]]:
        """The token ids of a text, as by `encode_documents`, each with its piece of the text.

        The pieces, joined, are the text. If several tokens share a character, it belongs to the first one.
        """
        text, pieces, reached = replace_surrogates(text), [], 0
        with self._special_tokens_as_text():
            encoding = self.backend.encode(text, add_special_tokens=False)
        for token, (_, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            pieces.append((token, text[reached:stop]))  # from the end of the last one: offsets may skip white space
            reached = max(reached, stop)
        if pieces and reached < len(text):
            pieces[-1] = (pieces[-1][0], pieces[-1][1] + text[reached:])
        return pieces

    @contextmanager
    def _special_tokens_as_text(self) -> Iterator[None]:
        """A context in which special tokens in a text are encoded as any other text."""
        self.backend.encode_special_tokens = True
        try:
            yield
        finally:
            self.backend.encode_special_tokens = False

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of token ids. skip_special: without special tokens."""
        return decode(self.backend, ids, skip_special)

    def stream(self, before: Sequence[int] = ()) -> StreamDecoder:
        """An incremental decoder of ids that follow the ids `before`."""
        return StreamDecoder(self.backend, before)
