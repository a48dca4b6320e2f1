"""Tokens to more tokens."""

from transformer.inference.chat import answer, messages_of
from transformer.inference.decoder import window_start
from transformer.inference.generator import Completion, Generation, Generator
from transformer.inference.packed import PackedTransformer
from transformer.inference.packing import pack
from transformer.inference.sampling import SamplingOptions
from transformer.inference.stopping import stops_of

__all__ = [
    "Completion",
    "Generation",
    "Generator",
    "PackedTransformer",
    "SamplingOptions",
    "answer",
    "messages_of",
    "pack",
    "stops_of",
    "window_start",
]
