"""The backend in PyTorch, for any device; on a GPU its decode step is one CUDA graph."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from transformer.inference.backend import InferenceBackend
from transformer.inference.quantization import bind_forward_methods, quantize
from transformer.inference.quantized_linear import PlainLinear, Precision
from transformer.model import KVCache, Transformer


class TorchBackend(InferenceBackend):
    """Runs the model that `quantize` returns.

    Args:
        precision: of the weights of linear layers; everything else is computed in fp32.
    """

    def __init__(self, model: Transformer, precision: Precision) -> None:
        super().__init__(model, precision)
        self.model = self._quantize(model)
        self.cache_dtype = torch.float32 if self.device.type == "cpu" or precision == "fp32" else torch.bfloat16

    def _quantize(self, model: Transformer) -> Transformer:
        quantized = quantize(model, self.precision)
        bind_forward_methods(quantized)
        return quantized

    @torch.inference_mode()
    def __call__(self, tokens_BT: Tensor) -> Tensor:
        return self.model(tokens_BT)

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        return self.model.new_cache(batch_size, capacity, self.cache_dtype)

    def prefill(self, tokens: Sequence[int], cache: KVCache, sequence: int) -> None:
        self.model.prefill(tokens, cache, sequence)

    def decode(self, tokens_B: Tensor, cache: KVCache) -> Tensor:
        return self.model.decode(tokens_B, cache)


class CompiledBackend(TorchBackend):
    """A `TorchBackend` whose decode step for a single sequence is compiled, on a GPU to one CUDA graph.

    A CUDA graph uses the addresses that it was recorded with, so caches are static and reused, and positions are
    tensors. A test runs it on a CPU, where `torch.compile` compiles the same step to C++. It has not been run on a GPU.
    """

    def __init__(self, model: Transformer, precision: Precision) -> None:
        super().__init__(model, precision)
        mode = "reduce-overhead" if self.device.type == "cuda" else None
        self._compiled_decode = torch.compile(self.model.decode_at, mode=mode, fullgraph=True, dynamic=False)
        self._free: list[KVCache] = []

    def _quantize(self, model: Transformer) -> Transformer:
        return quantize(model, self.precision, partial(PlainLinear, precision=self.precision))

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        if batch_size > 1:
            return super().new_cache(batch_size, capacity)
        kept = self._free.pop() if self._free else self._static_cache()
        cache = kept.emptied()
        weakref.finalize(cache, self._free.append, kept)
        return cache

    def _static_cache(self) -> KVCache:
        cache = super().new_cache(1, self.config.context_length)
        for tensor in cache.tensors():
            torch._dynamo.mark_static_address(tensor)  # or the graph would copy it in and out
        return cache

    @torch.inference_mode()
    def decode(self, tokens_B: Tensor, cache: KVCache) -> Tensor:
        if len(tokens_B) > 1:
            return super().decode(tokens_B, cache)
        positions = torch.tensor(cache.lengths, device=self.device)
        torch.compiler.cudagraph_mark_step_begin()
        logits = self._compiled_decode(tokens_B, positions, cache, self.config.context_length)
        cache.lengths = [length + 1 for length in cache.lengths]
        return logits
