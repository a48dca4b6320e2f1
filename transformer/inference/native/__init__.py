"""The backend in C, for CPUs with AVX2, AVX-512 VNNI or NEON.

`kernel.c` is the forward pass, `kernel.py` loads it, `packed_model.py` packs the weights of a `Transformer` for it, and
`native_backend.py` runs it.
"""

from transformer.inference.native.kernel import load_kernel
from transformer.inference.native.native_backend import NativeBackend

__all__ = ["NativeBackend", "load_kernel"]
