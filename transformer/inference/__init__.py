"""Tokens to more tokens."""

from transformer.inference.backend import InferenceBackend
from transformer.inference.chat import answer, messages_of
from transformer.inference.decoder import window_start
from transformer.inference.generator import Completion, Generation, Generator, serve
from transformer.inference.native import NativeBackend
from transformer.inference.quantization import quantize
from transformer.inference.sampling import DEFAULT_SAMPLING, SamplingOptions, combine_settings
from transformer.inference.select_backend import select_backend
from transformer.inference.stopping import stops_of
from transformer.inference.torch_backend import CompiledBackend, TorchBackend

__all__ = [
    "DEFAULT_SAMPLING",
    "CompiledBackend",
    "Completion",
    "Generation",
    "Generator",
    "InferenceBackend",
    "NativeBackend",
    "SamplingOptions",
    "TorchBackend",
    "answer",
    "combine_settings",
    "messages_of",
    "quantize",
    "select_backend",
    "serve",
    "stops_of",
    "window_start",
]
