"""Tokens to more tokens."""

from transformer.inference.generator import Generation, Generator, window_start
from transformer.inference.sampling import SamplingOptions

__all__ = ["Generation", "Generator", "SamplingOptions", "window_start"]
