"""Packs the weights of a `Transformer` in the layout of `kernel.c`, and fills its structures.

Dimensions: E width of a head's queries and keys
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer.errors import ConfigError
from transformer.inference.native import kernel as c
from transformer.inference.quantized_linear import Precision
from transformer.inference.weight_memory import HugePageMemory, UnchangedMappings, give_back_freed_memory, mapped_again
from transformer.model import Transformer
from transformer.model.attention import MultiHeadAttention
from transformer.model.layers import DecoderLayer, FeedForward
from transformer.model.positions import DynamicRotary, Rotary

_LANES = 16  # columns of a block
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}  # of packed weights
_QUANTIZED_AT_ONCE = 2**21  # weights; their fp32 copies take a few times their memory


class PackedModel:
    """A model in the layout of the kernel.

    Args:
        model: its embeddings and norms are shared, all other weights are copied.
        precision: of the weights.

    Attributes:
        structure: the `Model` that the kernel takes.
        arrays: the memory that its pointers refer to.
    """

    def __init__(self, model: Transformer, precision: Precision) -> None:
        self.config, self.precision = model.config, precision
        self.arrays: list[Tensor | ctypes.Array] = []
        self._files = UnchangedMappings(model.parameters())
        self._memory = HugePageMemory(_packed_size(model, precision))
        self.structure = self._pack(model)
        self._rotary = model.rotary
        self._tables = (0, 0) if model.rotary is None else self._keep_tables(model.rotary)
        self._layers = self._pack_layers(model)
        self.arrays.append(self._layers)
        self.structure.layers = ctypes.addressof(self._layers)

    def structure_for(self, length: int) -> tuple[c.Model, list]:
        """The structure for the prefill of a sequence of this length, and the objects that must outlive its use.

        With dynamic RoPE scaling, sequences beyond the original context are rotated by the frequencies of their own
        length; the tables of `structure` are for decoding, where each position is the last one.
        """
        if not isinstance(self._rotary, DynamicRotary) or length <= self._rotary.original:
            return self.structure, []
        cosine, sine = self._rotary(slice(length))
        layers = type(self._layers).from_buffer_copy(self._layers)
        for layer in layers:
            if layer.cosine == self._tables[0]:
                layer.cosine, layer.sine = cosine.data_ptr(), sine.data_ptr()
        structure = c.Model.from_buffer_copy(self.structure)
        structure.layers = ctypes.addressof(layers)
        return structure, [cosine, sine, layers]

    def _pack(self, model: Transformer) -> c.Model:
        config = self.config
        positions: object = model.position_embedding
        embedding = mapped_again(model.token_embedding.weight)
        if embedding.dtype == torch.float16:
            embedding = embedding.float()  # kernel.c reads bf16 and fp32; bf16 would round it
        packed = c.Model(
            vocab_size=config.vocab_size,
            context_length=config.context_length,
            n_layers=config.n_layers,
            d_model=config.d_model,
            n_heads=config.n_heads,
            n_kv_heads=config.kv_heads,
            head_dim=config.key_dim,
            d_feed_forward=config.feed_forward_dim,
            normalize_sums=config.norm_placement == "post",
            activation=c.ACTIVATIONS[config.activation],
            embedding_scale=math.sqrt(config.d_model) if config.scale_embeddings else 1.0,
            score_scale=1 / math.sqrt(config.query_pre_attn_scalar or config.key_dim),
            embedding=self._keep(embedding, embedding.dtype),
            embedding_dtype=c.DTYPES["bf16" if embedding.dtype == torch.bfloat16 else "fp32"],
            final_norm=self._norm(model.final_norm),
            head=self._linear([model.head]),
        )
        if config.positions != "rotary":
            table = positions.table_CD if config.positions == "sinusoidal" else positions.weight  # type: ignore[attr-defined]
            packed.position_embedding = self._keep(table)
        return packed

    def _pack_layers(self, model: Transformer) -> ctypes.Array:
        config = self.config
        layers = (c.Layer * config.n_layers)(*[self._layer(layer) for layer in model.layers])  # type: ignore[arg-type]
        local_tables = self._tables if model.local_rotary is None else self._keep_tables(model.local_rotary)
        for number, layer in enumerate(layers):
            layer.window = config.window_of(number) or config.context_length
            if config.rotates(number):
                layer.cosine, layer.sine = local_tables if config.is_local(number) else self._tables
        return layers

    def _layer(self, layer: DecoderLayer) -> c.Layer:
        attention: MultiHeadAttention = layer.attention
        feed_forward: FeedForward = layer.feed_forward
        ups = [feed_forward.gate, feed_forward.up] if feed_forward.is_gated else [feed_forward.up]
        return c.Layer(
            **self._norms(layer),
            qkv=self._linear([attention.query, attention.key, attention.value]),
            up=self._linear(ups, whole_blocks=True),
            down=self._linear([feed_forward.down]),
            output=self._linear([attention.output]),
        )

    def _norms(self, layer: DecoderLayer) -> dict[str, c.Norm]:
        """The norms of a layer by the names of the fields of `Layer`."""
        attention, placement, norms = layer.attention, self.config.norm_placement, {}
        for name in ("attention", "feed_forward"):
            norm = self._norm(getattr(layer, f"{name}_norm"))
            if placement in ("pre", "sandwich"):
                norms[f"{name}_norm"] = norm
            if placement == "sandwich":
                norm = self._norm(getattr(layer, f"{name}_output_norm"))
            if placement != "pre":
                norms[f"{name}_output_norm"] = norm
        if attention.qk_norm:
            joint = "joint_" if self.config.joint_qk_norm else ""
            norms[f"{joint}query_norm"] = self._norm(attention.query_norm)
            norms[f"{joint}key_norm"] = self._norm(attention.key_norm)
        return norms

    def _keep_tables(self, rotary: Rotary | DynamicRotary) -> tuple[int, int]:
        """The addresses of cosine and sine, (context_length, E) each."""
        if isinstance(rotary, Rotary):
            return self._keep(rotary.cosine_CE), self._keep(rotary.sine_CE)
        each_alone = torch.arange(self.config.context_length)[:, None]  # each as the last token of its sequence
        cosine, sine = (table.flatten(0, 2) for table in rotary(each_alone))  # (context, 1, 1, E) -> (context, E)
        return self._keep(cosine), self._keep(sine)

    def _norm(self, module: nn.Module) -> c.Norm:
        if isinstance(module, nn.LayerNorm):
            return c.Norm(self._keep(module.weight), self._keep(module.bias), c.LAYER_NORM, module.eps)
        if isinstance(module, nn.RMSNorm):
            eps = torch.finfo(torch.float32).eps if module.eps is None else module.eps
            return c.Norm(self._keep(module.weight), None, c.RMS_NORM, eps)
        if not isinstance(module, nn.Identity):
            raise ConfigError(f"the C backend computes LayerNorm and RMSNorm, not {type(module).__name__}.")
        return c.Norm()  # post-norm: the last layer has normalized already

    def _linear(self, parts: Sequence[nn.Linear], whole_blocks: bool = False) -> c.Linear:
        """Linear layers of one input as one linear layer, with their outputs concatenated.

        whole_blocks: the outputs of each layer start at a block of their own.
        """
        multiple = _LANES if whole_blocks else 1
        weight = _joined([part.weight for part in parts], multiple)
        outputs, inputs = weight.shape
        linear = c.Linear(dtype=c.DTYPES[self.precision], inputs=inputs, outputs=outputs)
        if parts[0].bias is not None:
            bias = _joined([part.bias for part in parts], multiple)
            linear.bias = self._keep(F.pad(bias, (0, -outputs % _LANES)))
        if self.precision == "int8":
            packed, scales, sums = quantized_blocks(weight, self._memory.zeros)
            linear.inputs, linear.scale, linear.sum = 4 * packed.shape[1], self._keep(scales), self._keep(sums)
        else:
            packed = _blocks_of(weight, _DTYPES[self.precision], self._memory.zeros)
        linear.weight = self._keep(packed, packed.dtype)
        for part in parts:
            self._files.give_back(part.weight)
        give_back_freed_memory()  # or the temporaries of quantization would add up from layer to layer
        return linear

    def _keep(self, tensor: Tensor, dtype: torch.dtype = torch.float32) -> int:
        """The address of a tensor's data, which is kept as long as this model."""
        tensor = tensor.detach().to(dtype).contiguous()
        self.arrays.append(tensor)
        return tensor.data_ptr()


def round_up(n: int) -> int:
    """n rounded up to whole blocks of columns."""
    return n + -n % _LANES


def _joined(parts: Sequence[Tensor], multiple: int) -> Tensor:
    """Concatenated, each but the last padded with zeros to a multiple of this many rows."""
    padded = [F.pad(part, (0, 0) * (part.dim() - 1) + (0, -len(part) % multiple)) for part in parts[:-1]]
    return torch.cat([part.detach() for part in (*padded, parts[-1])]) if padded else parts[0].detach()


def _packed_size(model: Transformer, precision: Precision) -> int:
    """Bytes that the packed linear layers of a model take at most: each may be padded to whole blocks."""
    sizes = [module.weight.shape for module in model.modules() if isinstance(module, nn.Linear)]
    padded = sum((outputs + 2 * _LANES) * (inputs + 4) + _LANES for outputs, inputs in sizes)
    return padded * _DTYPES[precision].itemsize


def _blocks_of(weight: Tensor, dtype: torch.dtype, zeros: Callable[..., Tensor]) -> Tensor:
    """(out, in) -> (out / 16, in, 16), with out padded with zeros."""
    outputs, inputs = weight.shape
    packed = zeros(round_up(outputs) // _LANES, inputs, _LANES, dtype=dtype)
    whole = outputs // _LANES
    packed[:whole] = weight[: whole * _LANES].view(whole, _LANES, inputs).transpose(1, 2)
    if outputs % _LANES:
        packed[whole, :, : outputs % _LANES] = weight[whole * _LANES :].T
    return packed


def quantized_blocks(weight: Tensor, zeros: Callable[..., Tensor] = torch.zeros) -> tuple[Tensor, Tensor, Tensor]:
    """Quantizes weights (out, in) to 8 bits, symmetrically for each output.

    Args:
        zeros: allocates the packed weights.

    Returns:
        The packed weights, (out / 16, in / 4, 16) int32 of four weights each; the scale and the sum of the weights of
        each output, (out,) rounded up to whole blocks.
    """
    outputs, inputs = weight.shape
    packed = zeros(round_up(outputs) // _LANES, -(-inputs // 4), _LANES, dtype=torch.int32)
    scales, sums = torch.empty(2, round_up(outputs))
    # In pieces, since an fp32 copy of all weights may take more memory than the model, and in the same buffers, since
    # buffers freed between allocations that stay would fragment the heap.
    size = min(max(1, _QUANTIZED_AT_ONCE // (inputs * _LANES)), len(packed)) * _LANES
    floats, integers = (torch.zeros(size, 4 * packed.shape[1], dtype=dtype) for dtype in (torch.float32, torch.int8))
    pieces = zip(packed.split(size // _LANES), weight.split(size), scales.split(size), sums.split(size), strict=True)
    for place, rows, scale, total in pieces:
        rounded = floats[: len(scale)]
        rounded[: len(rows), :inputs], rounded[len(rows) :] = rows, 0.0
        largest = torch.maximum(rounded.amax(dim=1), -rounded.amin(dim=1))
        torch.clamp(largest / 127, min=torch.finfo(torch.float32).tiny, out=scale)
        rounded.div_(scale[:, None]).round_()
        torch.mul(rounded.sum(dim=1), scale, out=total)
        of_four = integers[: len(scale)].copy_(rounded).view(torch.int32)
        place.copy_(of_four.unflatten(0, (-1, _LANES)).transpose(1, 2))
    return packed, scales, sums
