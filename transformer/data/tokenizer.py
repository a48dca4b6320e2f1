"""Text to token ids and back, on the `tokenizers` library."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from transformer.data import template_files
from transformer.data.stream_decoder import StreamDecoder, decode
from transformer.data.tokenizer_files import read_files, reported, token_of
from transformer.data.tokenizer_training import train_bpe
from transformer.errors import CheckpointError
from transformer.files import whole_file

END_OF_TEXT = "<|endoftext|>"
# What the end-of-text token is called in tokenizers that do not say so themselves.
_KNOWN_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
_MAX_HOLES = 100_000  # ids below the largest one that no token has; every one costs a row of the embedding
# Of another author's settings: code, and paths; the templates are written as they are now.
_NOT_KEPT = ("auto_map", "tokenizer_file", "name_or_path", "chat_template")


class Tokenizer:
    """A tokenizer with a named end-of-text token.

    Args:
        backend: the trained tokenizer of the `tokenizers` library.
        end_of_text: the token that separates documents, and with which a generated text ends.
        pad: the token that fills up rows; None if there is none.
        settings: what else its `tokenizer_config.json` says; `save` writes it again.
        chat_templates: how a conversation is written for the model, in Jinja, by name; see `chat_template`.
        end_ids: ids with which a text ends too, such as the end of a turn in a conversation.
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
            self._front: list[int] = backend.encode("").ids  # what it puts in front of a text
        front = backend.id_to_token(self._front[0]) if self._front else None
        self.bos = token_of(self._settings.get("bos_token")) or front or end_of_text

    @property
    def bos_id(self) -> int:
        """The token with which a text begins; the end-of-text token where there is none for that."""
        id = self.backend.token_to_id(self.bos)
        return self.end_of_text_id if id is None else id

    @property
    def special_tokens(self) -> dict[str, str]:
        """The named tokens by the names that a chat template knows them by."""
        named = {name: token_of(value) for name, value in self._settings.items() if name.endswith("_token")}
        unknown = (
            getattr(self.backend.model, "unk_token", None) or self.end_of_text
        )  # as GPT-2 has it: it is never used
        own = {"unk_token": unknown, "bos_token": self.bos, "eos_token": self.end_of_text, "pad_token": self.pad}
        return {name: token for name, token in (own | named).items() if token}

    @property
    def chat_template(self) -> str | None:
        """The template that is used unless another one is asked for; None if there is none of that name."""
        return self.chat_templates.get(template_files.DEFAULT)

    @chat_template.setter
    def chat_template(self, template: str | None) -> None:
        self.chat_templates = {} if template is None else {template_files.DEFAULT: template}

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

    def ids_without_token(self, vocab_size: int) -> list[int]:
        """The ids below `vocab_size` that no token has: a model may have a row of its embedding for such."""
        return sorted(set(range(vocab_size)).difference(self.backend.get_vocab().values()))

    @classmethod
    def load(cls, source: str | Path) -> Tokenizer:
        """Open a `tokenizer.json`, BERT's `vocab.txt` or GPT-2's `vocab.json` (with the `merges.txt` beside it), or a
        directory that holds one. `hub.resolve.fetch_tokenizer` downloads that of a model on the Hub.

        BERT's [CLS] and [SEP] are put around no text; [SEP] is the end of text.

        Raises:
            CheckpointError: if it is not there, or cannot be read.
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
        return cls(train_bpe(texts, vocab_size, end_of_text, pad, whole), end_of_text, pad)

    def save(self, directory: str | Path) -> None:
        """Write `tokenizer.json` and the `tokenizer_config.json` by which `transformers` opens it."""
        directory = Path(directory)
        with whole_file(directory / "tokenizer.json") as path:
            path.write_text(self.backend.to_str(pretty=True), encoding="utf-8")
        kept = {name: value for name, value in self._settings.items() if name not in _NOT_KEPT}
        names: dict[str, Any] = kept | self.special_tokens | {"tokenizer_class": "PreTrainedTokenizerFast"}
        if self.chat_templates:
            names["chat_template"] = template_files.to_setting(self.chat_templates)
        with whole_file(directory / "tokenizer_config.json") as path:
            path.write_text(json.dumps(names, indent=2) + "\n", encoding="utf-8")
        template_files.remove_files(directory)

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a prompt, with what the tokenizer puts in front; never empty: a text can start from nothing.

        Names of special tokens in the text mean those tokens, as chat templates need. A text that begins with the
        token that is put in front has it once.

        Raises:
            CheckpointError: if the rules of the tokenizer fail on this text.
        """
        with reported("this text cannot be tokenised"):
            ids: list[int] = self.backend.encode(_replace_surrogates(text)).ids or [self.bos_id]
        return ids[1:] if self._front and ids[:2] == self._front[:1] * 2 else ids

    def encode_chat(self, text: str) -> list[int]:
        """Token ids of a conversation that the chat template has written, which has its special tokens already.

        Raises:
            CheckpointError: as `encode_prompt`.
        """
        with reported("this conversation cannot be tokenised"):
            ids: list[int] = self.backend.encode(_replace_surrogates(text), add_special_tokens=False).ids
        return ids or [self.bos_id]

    def encode_documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text alone, in parallel; names of special tokens in a text are plain text."""
        self.backend.encode_special_tokens = True
        try:
            with reported("the text cannot be tokenised"):
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


def _replace_surrogates(text: str) -> str:
    """Half a UTF-16 pair, which JSON can carry and UTF-8 cannot, becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
