"""BERT's tokenizer (Devlin et al., 2019), which the original project used, without [CLS] and [SEP] around texts."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

PAD = "[PAD]"
_UNKNOWN = "[UNK]"
_SPECIAL = (PAD, _UNKNOWN, "[CLS]", "[SEP]", "[MASK]")


def open_vocabulary(path: Path) -> Backend:
    """The tokenizer of a `vocab.txt` with one token per line; it is uncased if no token has a capital letter.

    Raises:
        Exception: if it cannot be read, or has no [UNK].
    """
    backend = Backend(WordPiece.from_file(str(path), unk_token=_UNKNOWN))
    vocabulary = backend.get_vocab()
    if _UNKNOWN not in vocabulary:
        raise ValueError(f"it has no {_UNKNOWN}")
    special = [token for token in _SPECIAL if token in vocabulary]
    lowercase = all(token == token.lower() for token in vocabulary if not token.startswith("["))
    backend.normalizer = BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = BertPreTokenizer()
    backend.decoder = WordPieceDecoder()
    backend.add_special_tokens(special)
    return backend


def remove_post_processor(backend: Backend) -> None:
    """Stop BERT's tokenizer from adding [CLS] and [SEP]: the end-of-text token must not follow a prompt."""
    if isinstance(backend.model, WordPiece):
        backend.post_processor = None
