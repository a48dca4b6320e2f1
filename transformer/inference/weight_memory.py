"""What the weights of a model take of memory: parts of mapped files, as safetensors opens them, and freed memory."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

_MAPS = Path("/proc/self/maps")  # of Linux


def mapped_again(tensor: Tensor) -> Tensor:
    """The tensor with a mapping of its own if it is a part of a mapped file; any other tensor as it is.

    Of a mapping only the pages that were read take memory, but they stay as long as any tensor in it does. An
    embedding, of which few rows are used, would keep all weights that were read to be packed.
    """
    tensor = tensor.detach()
    found = _file_of(tensor.data_ptr()) if tensor.device.type == "cpu" and tensor.is_contiguous() else None
    if found is None:
        return tensor
    path, start = found
    storage = torch.UntypedStorage.from_file(path, shared=False, nbytes=start + tensor.nbytes)
    again = torch.empty(0, dtype=tensor.dtype)
    return again.set_(storage, start // tensor.element_size(), tensor.shape, tensor.stride())  # type: ignore[arg-type]


def give_back_freed_memory() -> None:
    """Give the system what the C library keeps of freed memory: after weights were packed, as much as some layers."""
    with suppress(OSError, AttributeError):  # another C library than GNU's
        ctypes.CDLL(None).malloc_trim(0)


def _file_of(address: int) -> tuple[str, int] | None:
    """The file that is mapped at an address and the place in it; None: no file that is still there."""
    if not _MAPS.exists():
        return None
    for line in _MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
        # begin-end permissions offset device inode path
        fields = line.split(maxsplit=5)
        begin, end = (int(number, 16) for number in fields[0].split("-"))
        if begin <= address < end:
            if len(fields) < 6 or not (path := Path(fields[5])).is_file() or path.stat().st_ino != int(fields[4]):
                return None
            return str(path), int(fields[2], 16) + address - begin
    return None
