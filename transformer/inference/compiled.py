"""The decode step for a GPU: compiled once, and replayed for every token as one CUDA graph.

What is particular to a device stands in this file alone. A test runs it on a CPU, where `torch.compile` makes C++ of
the same step; on a GPU and on MPS it has not been run.
"""

from __future__ import annotations

import weakref
from functools import partial

import torch
from torch import Tensor

from transformer.data.tokenizer import Tokenizer
from transformer.device import serving_precision
from transformer.inference.generator import Generator
from transformer.inference.linear import PlainProduct, Precision
from transformer.inference.memory import Memory
from transformer.inference.packed import PackedTransformer
from transformer.inference.sampling import SamplingOptions
from transformer.model import Transformer


def serve(model: Transformer, tokenizer: Tokenizer, precision: str = "auto") -> Generator:
    """A generator for a process that stays: on CUDA its step is compiled, and it has made a first text.

    On a CPU the library kernels alone are faster than what the compiler makes, and there is nothing to wait for; MPS
    is treated alike. Errors are those of `Generator`.
    """
    device = model.token_embedding.weight.device
    if device.type != "cuda":
        return Generator(model, tokenizer, precision)
    generator = Generator(CompiledTransformer(model, serving_precision(device, precision)), tokenizer)
    "".join(generator.generate("", SamplingOptions(max_tokens=4, min_tokens=4)))
    return generator


class CompiledTransformer(PackedTransformer):
    """A `PackedTransformer` whose step for a single text is compiled; several texts are read as before.

    A graph reads and writes memory at the addresses it was recorded with, so the memory that a text has done with is
    kept for the next one; and nothing that changes from token to token is a number in Python.
    """

    def __init__(self, model: Transformer, precision: Precision) -> None:
        super().__init__(model, precision, partial(PlainProduct, precision=precision))
        mode = "reduce-overhead" if self.device.type == "cuda" else None
        self._compiled_step = torch.compile(self.uneven_step, mode=mode, fullgraph=True, dynamic=False)
        self._free: list[Memory] = []

    def remember(self, batch_size: int, capacity: int) -> Memory:
        if batch_size > 1:
            return super().remember(batch_size, capacity)
        kept = self._free.pop() if self._free else self._static_memory()
        memory = Memory(kept.keys, kept.values, kept.real)
        weakref.finalize(memory, self._free.append, kept)
        return memory

    def _static_memory(self) -> Memory:
        memory = super().remember(1, self.config.context_length)
        for tensor in (*memory.keys, *memory.values):
            torch._dynamo.mark_static_address(tensor)  # or the graph would copy it in and out
        return memory

    @torch.inference_mode()
    def step(self, tokens_B: Tensor, memory: Memory) -> Tensor:
        if len(tokens_B) > 1:
            return super().step(tokens_B, memory)
        positions = torch.tensor(memory.lengths, device=self.device)
        torch.compiler.cudagraph_mark_step_begin()
        logits = self._compiled_step(tokens_B, positions, memory, self.config.context_length)
        memory.lengths = [length + 1 for length in memory.lengths]
        return logits
