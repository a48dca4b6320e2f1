"""Tokens to more tokens."""

from transformer.inference.chat import answer, messages_of
from transformer.inference.generator import Generation, Generator, window_start
from transformer.inference.sampling import SamplingOptions

__all__ = ["Generation", "Generator", "SamplingOptions", "answer", "messages_of", "window_start"]
