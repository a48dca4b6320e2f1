"""The backend in C: runs a model with `kernel.c`.

Dimensions: B batch · T tokens · N tokens of all sequences
"""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from transformer.device import processor_quota
from transformer.errors import ConfigError, ContextLengthError
from transformer.inference.backend import InferenceBackend
from transformer.inference.native import kernel as c
from transformer.inference.native.packed_model import PackedModel, round_up
from transformer.inference.quantized_linear import Precision
from transformer.model import KVCache, ModelConfig, Transformer

_CHUNK = 256  # tokens of one forward pass in prefill: their activations fit in the processor's cache
_CACHE_DTYPES = {"fp32": torch.float32, "bf16": torch.float16, "int8": torch.int8}  # of keys and values
# What kernel.c computes: these values of choices, and every value of these fields.
_SUPPORTED: dict[str, set] = {
    "positions": {"sinusoidal", "learned", "rotary"},
    "norm": {"layer", "rms"},
    "norm_placement": {"pre", "post", "reordered", "sandwich"},
    "activation": set(c.ACTIVATIONS),
}
_COMPUTED = {
    *("vocab_size", "context_length", "d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_feed_forward"),
    *("rope_theta", "rope_scaling", "rope_layers", "rope_local_theta", "sliding_window", "sliding_window_layers"),
    *("norm_eps", "qk_norm", "joint_qk_norm", "query_pre_attn_scalar"),
    *("bias", "attention_output_bias", "feed_forward_bias", "head_bias"),
    *("scale_embeddings", "tie_embeddings", "dropout"),
}
_DTYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.int8: "int8"}


class NativeBackend(InferenceBackend):
    """The model in C, on a CPU.

    Args:
        model: its embeddings and norms are shared, all other weights are copied.
        precision: of the weights. Activations are in fp32; beside int8 weights each row is quantized to int8 by its
            range. Keys and values are cached in fp32, with bf16 weights in fp16, and with int8 weights in int8 with
            one scale for each head and position.

    Raises:
        ConfigError: if there is no kernel for this machine, the model is not on the CPU, or it is not supported.
    """

    def __init__(self, model: Transformer, precision: Precision) -> None:
        super().__init__(model, precision)
        kernel = c.load_kernel()
        if kernel is None or self.device.type != "cpu":
            raise ConfigError(
                "the kernel in C is for a CPU with AVX2 or with NEON and dot products, and needs a C compiler."
            )
        if reason := self.unsupported(model.config):
            raise ConfigError(f"the C backend does not support {reason}; the PyTorch backend does.")
        self._kernel_forward = kernel.forward
        self.packed = PackedModel(model, precision)
        self._max_threads = max(1, int(min(processor_quota(), 2**16)))  # more would only spin

    @staticmethod
    def unsupported(config: ModelConfig) -> str | None:
        """The part of an architecture that this backend cannot compute; None if there is none."""
        if type(config) is not ModelConfig:
            return type(config).__name__
        for name, choices in _SUPPORTED.items():
            if getattr(config, name) not in choices:
                return f"{name} {getattr(config, name)!r}"
        for field in dataclasses.fields(config):
            if field.name not in _COMPUTED | _SUPPORTED.keys() and getattr(config, field.name) != field.default:
                return f"{field.name} {getattr(config, field.name)!r}"
        return None

    @torch.inference_mode()
    def __call__(self, tokens_BT: Tensor) -> Tensor:
        batch, length = tokens_BT.shape
        sequences = torch.arange(batch).repeat_interleave(length)
        positions = torch.arange(length).repeat(batch)
        logits = torch.empty(batch, length, round_up(self.config.vocab_size))
        cache = self._new_cache(batch, length)
        self._forward(cache, tokens_BT.flatten(), sequences, positions, length, logits.flatten(0, 1))
        return logits[..., : self.config.vocab_size]

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        return self._new_cache(batch_size, capacity)

    @torch.inference_mode()
    def prefill(self, tokens: Sequence[int], cache: KVCache, sequence: int) -> None:
        assert isinstance(cache, _NativeCache)
        cache.lengths[sequence] = length = len(tokens)
        sequences = torch.full((length,), sequence)
        self._forward(cache, torch.tensor(tokens, dtype=torch.long), sequences, torch.arange(length), length)

    def decode(self, tokens_B: Tensor, cache: KVCache) -> Tensor:
        assert isinstance(cache, _NativeCache)
        batch = len(tokens_B)
        tokens_B = tokens_B.to(torch.long).contiguous()
        cache.positions[:batch] = [*cache.lengths]
        logits = torch.empty(batch, round_up(self.config.vocab_size))
        addresses = [tokens_B.data_ptr(), cache.sequences, cache.positions]
        self._run(self.packed.structure, cache, batch, addresses, logits)
        cache.lengths = [length + 1 for length in cache.lengths]
        return logits[:, : self.config.vocab_size]

    def _forward(
        self,
        cache: _NativeCache,
        tokens: Tensor,
        sequences: Tensor,
        positions: Tensor,
        length: int,
        logits: Tensor | None = None,
    ) -> None:
        """Forward pass over all tokens (N,) of one or several sequences of this length.

        logits: (N, vocab_size rounded up to whole blocks), to be filled.
        """
        structure, _kept = self.packed.structure_for(length)
        tokens = tokens.to(torch.long).contiguous()
        for start in range(0, len(tokens), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            addresses = [tensor[chunk].data_ptr() for tensor in (tokens, sequences, positions)]
            self._run(structure, cache, len(tokens[chunk]), addresses, None if logits is None else logits[chunk])

    def _run(
        self, structure: c.Model, cache: _NativeCache, count: int, addresses: Sequence, logits: Tensor | None
    ) -> None:
        """addresses: of tokens, sequences and positions."""
        out = None if logits is None else logits.data_ptr()
        threads = min(torch.get_num_threads(), self._max_threads)
        result = self._kernel_forward(structure, cache.native, count, *addresses, out, threads)
        if result == c.NO_SUCH_TOKEN:
            raise IndexError(f"a token is not one of the {self.config.vocab_size:,} that the model knows.")
        if result == c.SEQUENCE_TOO_LONG:
            raise ContextLengthError("a sequence has no place left in its cache, or in the model's context.")
        if result == c.OUT_OF_MEMORY:
            raise MemoryError(f"there is no memory to read {count} tokens with.")
        if result != c.DONE:
            raise RuntimeError(f"the C backend returned {result}: the model has a choice that kernel.c does not know.")

    def _new_cache(self, batch_size: int, capacity: int) -> _NativeCache:
        config, dtype = self.config, _CACHE_DTYPES[self.precision]
        capacity, heads = round_up(capacity), (batch_size, config.n_layers, config.kv_heads)
        key_width = config.key_dim + (-config.key_dim % 4 if dtype == torch.int8 else 0)
        keys = [torch.zeros(*heads, capacity * key_width, dtype=dtype)]
        values = [torch.zeros(*heads, capacity, round_up(config.key_dim), dtype=dtype)]
        if dtype == torch.int8:
            keys.append(torch.zeros(*heads, capacity))
            values.append(torch.zeros(*heads, capacity))
        return _NativeCache(keys, values, capacity)


class _NativeCache(KVCache):
    """Keys and values in the kernel's layout, sequence by sequence."""

    def __init__(self, keys: list[Tensor], values: list[Tensor], capacity: int) -> None:
        super().__init__(keys, values, capacity)
        integers = ctypes.c_int64 * len(self.lengths)
        self.sequences, self.positions = integers(*range(len(self.lengths))), integers()  # of the tokens of `decode`
        addresses = {"keys": keys[0].data_ptr(), "values": values[0].data_ptr()}
        if len(keys) > 1:
            addresses |= {"key_scales": keys[1].data_ptr(), "value_scales": values[1].data_ptr()}
        self.native = c.Cache(**addresses, dtype=c.DTYPES[_DTYPES[keys[0].dtype]], capacity=capacity)
