"""A `Transformer` arranged for `kernel.c`: the same architecture once more, held equal to the others by tests.

Dimensions: B batch · T tokens · D d_model · K key-value heads · E width of a head
"""

from __future__ import annotations

import ctypes
import dataclasses
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer.device import processor_quota
from transformer.errors import ConfigError, ContextLengthError
from transformer.inference.backend import InferenceBackend
from transformer.inference.native import kernel as c
from transformer.inference.quantized_linear import Precision
from transformer.inference.weight_memory import give_back_freed_memory, mapped_again
from transformer.model import KVCache, ModelConfig, Transformer
from transformer.model.attention import MultiHeadAttention
from transformer.model.layers import DecoderLayer, FeedForward
from transformer.model.positions import Rotary

_LANES = 16  # columns of a block
_PIECE = 256  # tokens that are read at a time: what they need to be worked on stays in the cache
_ROUNDED = 2**21  # weights that are rounded at a time, in whole blocks: in fp32 they take a few times their size
_CACHE_DTYPES = {"fp32": torch.float32, "bf16": torch.float16, "int8": torch.int8}  # of keys and values
# Values of choices that kernel.c computes; and the other fields, of which it computes every value or none matters.
_SUPPORTED: dict[str, set] = {
    "positions": {"sinusoidal", "learned", "rotary"},
    "norm": {"layer", "rms"},
    "norm_placement": {"pre", "post"},
    "activation": set(c.ACTIVATIONS),
}
_COMPUTED = {
    *("vocab_size", "context_length", "d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_feed_forward"),
    *("rope_theta", "norm_eps", "qk_norm", "bias", "attention_output_bias", "feed_forward_bias", "head_bias"),
    *("scale_embeddings", "tie_embeddings", "dropout", "rope_scaling", "sliding_window", "sliding_window_layers"),
}
_KINDS = {torch.float32: "fp32", torch.float16: "fp16", torch.int8: "int8"}


class NativeBackend(InferenceBackend):
    """The model in C, on a CPU.

    Args:
        model: its embeddings and norms are shared, all other weights are copied.
        precision: of the weights. What they are multiplied by is in fp32, or in int8 if they are: each row is rounded
            by its own range. Keys and values are cached in fp32, in fp16 beside bf16, and in int8 beside int8, each
            head's with a scale of its own.

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
        self._run_tokens = kernel.read_tokens
        self.arrays: list[Tensor | ctypes.Array] = []  # what the kernel has the addresses of
        self.structure = self._arrange(model)
        self._max_threads = max(1, int(min(processor_quota(), 2**16)))  # more would wait for each other, awake

    @staticmethod
    def unsupported(config: ModelConfig) -> str | None:
        """What of an architecture this backend cannot compute; None: it can compute it."""
        if type(config) is not ModelConfig:
            return type(config).__name__
        for name, choices in _SUPPORTED.items():
            if getattr(config, name) not in choices:
                return f"{name} {getattr(config, name)!r}"
        if config.rope_scaling is not None and config.rope_scaling.kind == "dynamic":
            return "rotary positions that depend on the length of the text (dynamic scaling)"
        if config.rope_layers is not None:
            return "layers without rotary positions (rope_layers)"
        if config.has_window:
            return f"attention within a sliding_window of {config.sliding_window:,} tokens"
        for field in dataclasses.fields(config):
            if field.name not in _COMPUTED | _SUPPORTED.keys() and getattr(config, field.name) != field.default:
                return f"{field.name} {getattr(config, field.name)!r}"
        return None

    @torch.inference_mode()
    def __call__(self, tokens_BT: Tensor) -> Tensor:
        batch, length = tokens_BT.shape
        sequences = torch.arange(batch).repeat_interleave(length)
        positions = torch.arange(length).repeat(batch)
        logits = torch.empty(batch, length, _round_up(self.config.vocab_size))
        cache = self._new_cache(batch, length)
        self._read(cache, tokens_BT.flatten(), sequences, positions, logits.flatten(0, 1))
        return logits[..., : self.config.vocab_size]

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        return self._new_cache(batch_size, capacity)

    @torch.inference_mode()
    def prefill(self, tokens: Sequence[int], cache: KVCache, sequence: int) -> None:
        assert isinstance(cache, _NativeCache)
        cache.lengths[sequence] = length = len(tokens)
        sequences = torch.full((length,), sequence)
        self._read(cache, torch.tensor(tokens, dtype=torch.long), sequences, torch.arange(length))

    def decode(self, tokens_B: Tensor, cache: KVCache) -> Tensor:
        assert isinstance(cache, _NativeCache)
        batch = len(tokens_B)
        tokens_B = tokens_B.to(torch.long).contiguous()
        cache.positions[:batch] = [*cache.lengths]
        logits = torch.empty(batch, _round_up(self.config.vocab_size))
        self._run(cache, batch, [tokens_B.data_ptr(), cache.sequences, cache.positions], logits)
        cache.lengths = [length + 1 for length in cache.lengths]
        return logits[:, : self.config.vocab_size]

    def _read(
        self, cache: _NativeCache, tokens: Tensor, sequences: Tensor, positions: Tensor, logits: Tensor | None = None
    ) -> None:
        """Read tokens (N,) of one or several sequences. logits: (N, vocabulary in whole blocks), to be filled."""
        tokens = tokens.to(torch.long).contiguous()
        for start in range(0, len(tokens), _PIECE):
            piece = slice(start, start + _PIECE)
            addresses = [tensor[piece].data_ptr() for tensor in (tokens, sequences, positions)]
            self._run(cache, len(tokens[piece]), addresses, None if logits is None else logits[piece])

    def _run(self, cache: _NativeCache, count: int, addresses: Sequence, logits: Tensor | None) -> None:
        """addresses: of the tokens, their sequences and their positions."""
        out = None if logits is None else logits.data_ptr()
        threads = min(torch.get_num_threads(), self._max_threads)
        result = self._run_tokens(self.structure, cache.native, count, *addresses, out, threads)
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
        capacity, heads = _round_up(capacity), (batch_size, config.n_layers, config.kv_heads)
        key_width = config.key_dim + (-config.key_dim % 4 if dtype == torch.int8 else 0)
        keys = [torch.zeros(*heads, capacity * key_width, dtype=dtype)]
        values = [torch.zeros(*heads, capacity, _round_up(config.key_dim), dtype=dtype)]
        if dtype == torch.int8:
            keys.append(torch.zeros(*heads, capacity))
            values.append(torch.zeros(*heads, capacity))
        return _NativeCache(keys, values, capacity)

    # ---- a model in the kernel's structures ----

    def _arrange(self, model: Transformer) -> c.Model:
        config = self.config
        positions: object = model.position_embedding
        embedding = mapped_again(model.token_embedding.weight)
        layers: list[DecoderLayer] = list(model.layers)  # type: ignore[arg-type]
        arranged = c.Model(
            vocabulary=config.vocab_size,
            context=config.context_length,
            n_layers=config.n_layers,
            width=config.d_model,
            n_heads=config.n_heads,
            n_kv_heads=config.kv_heads,
            key_width=config.key_dim,
            value_width=config.key_dim,
            hidden=config.feed_forward_dim,
            norm_first=config.norm_placement == "pre",
            activation=c.ACTIVATIONS[config.activation],
            embedding_scale=math.sqrt(config.d_model) if config.scale_embeddings else 1.0,
            embedding=self._keep(embedding, embedding.dtype),
            embedding_kind=c.KINDS["bf16" if embedding.dtype == torch.bfloat16 else "fp32"],
            final_norm=self._norm(model.final_norm),
            head=self._product([model.head]),
        )
        if config.positions == "rotary":
            rotary = model.rotary
            assert isinstance(rotary, Rotary)
            arranged.cosine, arranged.sine = self._keep(rotary.cosine_CE), self._keep(rotary.sine_CE)
        else:
            table = positions.table_CD if config.positions == "sinusoidal" else positions.weight  # type: ignore[attr-defined]
            arranged.table = self._keep(table)
        array = (c.Layer * len(layers))(*[self._layer(layer) for layer in layers])
        self.arrays.append(array)
        arranged.layers = ctypes.addressof(array)
        return arranged

    def _layer(self, layer: DecoderLayer) -> c.Layer:
        attention: MultiHeadAttention = layer.attention
        feed_forward: FeedForward = layer.feed_forward
        ups = [feed_forward.gate, feed_forward.up] if feed_forward.is_gated else [feed_forward.up]
        arranged = c.Layer(
            attention_norm=self._norm(layer.attention_norm),
            feed_forward_norm=self._norm(layer.feed_forward_norm),
            project=self._product([attention.query, attention.key, attention.value]),
            up=self._product(ups, whole_blocks=True),
            down=self._product([feed_forward.down]),
            output=self._product([attention.output]),
        )
        if attention.qk_norm:
            arranged.query_norm, arranged.key_norm = self._norm(attention.query_norm), self._norm(attention.key_norm)
        return arranged

    def _norm(self, module: nn.Module) -> c.Norm:
        if isinstance(module, nn.LayerNorm):
            return c.Norm(self._keep(module.weight), self._keep(module.bias), c.LAYER_NORM, module.eps)
        if isinstance(module, nn.RMSNorm):
            eps = torch.finfo(torch.float32).eps if module.eps is None else module.eps
            return c.Norm(self._keep(module.weight), None, c.RMS_NORM, eps)
        if not isinstance(module, nn.Identity):
            raise ConfigError(f"the C backend computes LayerNorm and RMSNorm, not {type(module).__name__}.")
        return c.Norm()  # after post-norm layers the stream is normalised already

    def _product(self, parts: Sequence[nn.Linear], whole_blocks: bool = False) -> c.Product:
        """Linear layers of one input as one product, whose outputs stand one after the other.

        whole_blocks: each layer's begin with a block of their own.
        """
        multiple = _LANES if whole_blocks else 1
        weight = _joined([part.weight for part in parts], multiple)
        outputs, inputs = weight.shape
        product = c.Product(kind=c.KINDS[self.precision], inputs=inputs, outputs=outputs)
        if parts[0].bias is not None:
            bias = _joined([part.bias for part in parts], multiple)
            product.bias = self._keep(F.pad(bias, (0, -outputs % _LANES)))
        if self.precision == "int8":
            packed, scales, sums = _rounded_blocks(weight)
            product.inputs, product.scale, product.sum = 4 * packed.shape[1], self._keep(scales), self._keep(sums)
        else:
            packed = _blocks_of(weight, torch.float32 if self.precision == "fp32" else torch.bfloat16)
        product.weight = self._keep(packed, packed.dtype)
        give_back_freed_memory()  # or what rounding took would pile up from layer to layer
        return product

    def _keep(self, tensor: Tensor, dtype: torch.dtype = torch.float32) -> int:
        """The address of a tensor's numbers, which stay there as long as this model."""
        tensor = tensor.detach().to(dtype).contiguous()
        self.arrays.append(tensor)
        return tensor.data_ptr()


class _NativeCache(KVCache):
    """Keys and values in the kernel's layout, sequence by sequence."""

    def __init__(self, keys: list[Tensor], values: list[Tensor], capacity: int) -> None:
        super().__init__(keys, values, capacity)
        integers = ctypes.c_int64 * len(self.lengths)
        self.sequences, self.positions = integers(*range(len(self.lengths))), integers()  # of the tokens of `decode`
        addresses = {"keys": keys[0].data_ptr(), "values": values[0].data_ptr()}
        if len(keys) > 1:
            addresses |= {"key_scales": keys[1].data_ptr(), "value_scales": values[1].data_ptr()}
        self.native = c.Cache(**addresses, kind=c.KINDS[_KINDS[keys[0].dtype]], capacity=capacity)


def _round_up(n: int) -> int:
    """The least number of whole blocks' columns that is not less than n."""
    return n + -n % _LANES


def _joined(parts: Sequence[Tensor], multiple: int) -> Tensor:
    """One after the other, each but the last with zeros up to a multiple of this many rows."""
    padded = [F.pad(part, (0, 0) * (part.dim() - 1) + (0, -len(part) % multiple)) for part in parts[:-1]]
    return torch.cat([part.detach() for part in (*padded, parts[-1])]) if padded else parts[0].detach()


def _blocks_of(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """(out, in) -> (out / 16, in, 16), with zeros behind the outputs."""
    outputs, inputs = weight.shape
    packed = torch.zeros(_round_up(outputs) // _LANES, inputs, _LANES, dtype=dtype)
    whole = outputs // _LANES
    packed[:whole] = weight[: whole * _LANES].view(whole, _LANES, inputs).transpose(1, 2)
    if outputs % _LANES:
        packed[whole, :, : outputs % _LANES] = weight[whole * _LANES :].T
    return packed


def _rounded_blocks(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (out, in) in 8 bits, as (out / 16, in / 4, 16) integers of four each.

    Returns:
        Those, the scale of each output, and the sum of its weights, (out,) in whole blocks.
    """
    outputs, inputs = weight.shape
    packed = torch.empty(_round_up(outputs) // _LANES, -(-inputs // 4), _LANES, dtype=torch.int32)
    scales, sums = [], []
    # A few at a time, since all of them in fp32 might need more memory than the model.
    blocks = max(1, _ROUNDED // (inputs * _LANES))
    for place, rows in zip(packed.split(blocks), weight.split(blocks * _LANES), strict=True):
        rows = F.pad(rows.float(), (0, -rows.shape[1] % 4, 0, -len(rows) % _LANES))
        scale = (rows.abs().amax(dim=1) / 127).clamp_(min=torch.finfo(torch.float32).tiny)
        rounded = (rows / scale[:, None]).round_().to(torch.int8)
        place.copy_(_blocks_of(rounded.view(torch.int32), torch.int32))
        scales.append(scale)
        sums.append(rounded.sum(dim=1) * scale)
    return packed, torch.cat(scales), torch.cat(sums)
