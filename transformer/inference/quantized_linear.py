"""Linear layers in fp32, bf16 or int8, for the few rows at a time that decoding multiplies.

Whatever the weights are kept in, rows (..., in) go in as fp32 and come out as fp32 (..., out): the rest of a model
need not know. The kernels are those of PyTorch's own libraries, and were chosen by measuring (see experiments/LOG.md):
a product with one row is limited by the memory that the weights are read from, and `nn.Linear` reads it at less than
half the speed.
"""

from __future__ import annotations

import warnings
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer.errors import ConfigError
from transformer.inference.finite import expect_finite

Precision = Literal["fp32", "bf16", "int8"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_TINY = torch.finfo(torch.float32).tiny  # in place of the scale of a row of zeros
_ROUNDED = 2**21  # weights that are rounded at a time
_FEW_ROWS = 8  # that PyTorch multiplies by a weight in bf16 faster than it converts the weight
_EXPECTED_ROWS = 8  # what oneDNN arranges a weight for; measured: it serves one row, and many, as well as its own would


def quantize_linear(weight: Tensor, bias: Tensor | None, precision: Precision) -> nn.Module:
    """The linear layer x W^T + b, with a copy of the weight in the layout of the fastest library here.

    Args:
        weight: (out, in). bias: (out,) or None.
        precision: what the weight is kept in. int8: a scale for each output, and rows quantised as they come.

    Raises:
        ConfigError: if int8 is asked for and the library for it is not part of this PyTorch, or the weight is not on
            a CPU.
    """
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    if precision == "int8":
        return Int8Linear(weight, bias)
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return PlainLinear(weight, bias, precision)
    if precision == "bf16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return WideningLinear(weight, bias, precision)
    return OneDnnLinear(weight.to(_DTYPES[precision]), bias)


class PlainLinear(nn.Module):
    """`F.linear` in fp32 or bf16, for devices whose library finds the best arrangement itself, and for compilers."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, precision: Precision) -> None:
        super().__init__()
        dtype = _DTYPES[precision]
        # Buffers, whose addresses a CUDA graph takes as fixed.
        self.register_buffer("weight", weight.detach().to(dtype), persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach().to(dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias).float()


class WideningLinear(PlainLinear):
    """bf16 on CPUs for which oneDNN has no bf16, such as those without AVX-512.

    PyTorch's own product in bf16 reads half the memory, so it is the fastest for one row. For many rows it is several
    times slower than converting the weight to fp32 (see experiments/LOG.md). Rows are rounded to bf16 in both cases.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() <= _FEW_ROWS * x.shape[-1]:
            return super().forward(x)
        bias = None if self.bias is None else self.bias.float()
        return F.linear(x.to(self.weight.dtype).float(), self.weight.float(), bias)


class OneDnnLinear(nn.Module):
    """fp32 or bf16, in the blocks that oneDNN would otherwise rearrange the weight into for every product."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.dtype, self.bias = weight.dtype, None if bias is None else bias.to(weight.dtype)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _EXPECTED_ROWS)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.weight, self.bias, "none", [], "").float()


class Int8Linear(nn.Module):
    """int8 weights with a scale for each output; rows become 8 bits too, by the range of the values in them.

    FBGEMM chooses one range for all rows of a product. They are divided by their largest values before, so that each
    keeps its own precision, whatever else stands in the batch.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        if weight.device.type != "cpu" or "fbgemm" not in torch.backends.quantized.supported_engines:
            raise ConfigError("int8 is computed by FBGEMM on x86 CPUs, which is not what there is here.")
        self.packed, self.bias = _fbgemm_pack(weight), bias
        # Without VNNI two products of 8 bits are summed in 16 and could overflow: rows then get 7 bits.
        self.seven_bits = not torch.cpu._is_vnni_supported()

    def forward(self, x: Tensor) -> Tensor:
        try:
            if x.numel() == x.shape[-1]:  # one row
                out = torch.ops.quantized.linear_dynamic(x, self.packed, self.seven_bits)
            else:
                largest = x.abs().amax(dim=-1, keepdim=True).clamp_(min=_TINY)
                out = torch.ops.quantized.linear_dynamic(x / largest, self.packed, self.seven_bits).mul_(largest)
        except RuntimeError:  # FBGEMM finds no range for NaN
            expect_finite(x)
            raise
        return out if self.bias is None else out.add_(self.bias)


def _fbgemm_pack(weight: Tensor) -> torch.ScriptObject:
    """FBGEMM's arrangement of a weight (out, in), rounded to 8 bits with a scale for each output."""
    scales = (torch.maximum(weight.amax(dim=1), -weight.amin(dim=1)).float() / 127).clamp(min=_TINY)  # (out,)
    engine = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"  # decides who packs; what was packed remembers it
    try:
        with warnings.catch_warnings():  # quantised tensors will leave PyTorch some day; its version is pinned
            warnings.simplefilter("ignore", UserWarning)
            rounded = torch._make_per_channel_quantized_tensor(
                _rounded(weight, scales), scales.double(), torch.zeros(len(scales), dtype=torch.long), 0
            )
            return torch.ops.quantized.linear_prepack(rounded, None)
    finally:
        torch.backends.quantized.engine = engine


def _rounded(weight: Tensor, scales: Tensor) -> Tensor:
    """Weights (out, in) in 8 bits. A few rows at a time, since all in fp32 might need more memory than the model."""
    rounded = torch.empty(weight.shape, dtype=torch.int8)
    size = max(1, _ROUNDED // weight.shape[1])
    zeros = torch.zeros(size, dtype=torch.long)
    for place, rows, scale in zip(rounded.split(size), weight.split(size), scales.split(size), strict=True):
        place.copy_(torch.quantize_per_channel(rows.float(), scale, zeros[: len(scale)], 0, torch.qint8).int_repr())
    return rounded
