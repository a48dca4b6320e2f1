"""The model in C, for a CPU that has the instructions: a token costs little more than reading the weights.

`kernel.c` is one pass of the model, `kernel.py` compiles it, `arranged_model.py` lays a `Transformer` out for it, and
`native_backend.py` runs it.
"""

from transformer.inference.native.kernel import load_kernel
from transformer.inference.native.native_backend import NativeBackend

__all__ = ["NativeBackend", "load_kernel"]
