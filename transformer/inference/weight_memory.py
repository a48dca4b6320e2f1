"""What the weights of a model take of memory: parts of mapped files, as safetensors opens them, and freed memory."""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

_MAPS = Path("/proc/self/maps")  # of Linux
_SMAPS = Path("/proc/self/smaps")  # the same with the memory that each mapping takes
_MADV_DONTNEED = 4
_HUGE_PAGE = 2**21
_ALIGNMENT = 64
_WORTH_THE_TIME = 2**26  # bytes


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


class UnchangedMappings:
    """The mapped files of this process of which no page was written to, when this object is created.

    Their pages that were read can be given back to the system: they are read from the file again if they are needed.

    Args:
        tensors: those that will be given back. For fewer than 64 MB nothing is done, since finding the
            files takes 16 ms.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._ranges: list[tuple[int, int]] = []  # addresses: begin and end
        if not _SMAPS.exists() or sum(tensor.nbytes for tensor in tensors) < _WORTH_THE_TIME:
            return
        first_line = ""
        for line in _SMAPS.read_text(encoding="utf-8", errors="replace").splitlines():
            name, *fields = line.split()
            if not name.endswith(":"):
                first_line = line
            elif name == "Anonymous:" and fields[0] == "0" and (mapping := _file_mapping(first_line)):  # unchanged
                self._ranges.append((mapping.begin, mapping.end))

    def give_back(self, tensor: Tensor) -> None:
        """Give the system the pages of a tensor that is a part of one of the files; others are left alone.

        While weights are packed, those that were packed would otherwise take as much memory as their file.
        """
        if tensor.device.type != "cpu" or not tensor.is_contiguous():
            return
        begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages: at its ends are other tensors
        size = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - begin
        if size > 0 and any(first <= begin and begin + size <= last for first, last in self._ranges):
            with suppress(OSError, AttributeError):
                ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(size), _MADV_DONTNEED)


class HugePageMemory:
    """Memory for tensors in pages of 2 MB, where the system has them: reading all weights then has fewer TLB misses.

    Args:
        size: bytes at most; what no tensor uses takes no memory.
    """

    def __init__(self, size: int) -> None:
        self._memory = mmap.mmap(-1, size + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._used = 0
        with suppress(OSError, AttributeError):  # of Linux
            self._memory.madvise(mmap.MADV_HUGEPAGE)

    def zeros(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """A tensor of zeros, which keeps the memory alive."""
        begin = -(-self._used // _ALIGNMENT) * _ALIGNMENT
        count = math.prod(shape)
        self._used = begin + count * dtype.itemsize
        return torch.frombuffer(self._memory, dtype=dtype, count=count, offset=begin).view(shape)


def give_back_freed_memory() -> None:
    """Give the system what the C library keeps of freed memory: after weights were packed, as much as some layers."""
    with suppress(OSError, AttributeError):  # another C library than GNU's
        ctypes.CDLL(None).malloc_trim(0)


@dataclass(frozen=True)
class _FileMapping:
    """Addresses of a mapping, begin and end, and what is mapped there: a file from an offset on."""

    begin: int
    end: int
    path: str
    offset: int


def _file_mapping(line: str) -> _FileMapping | None:
    """The mapping of a line of /proc/self/maps; None: of no file that is still there.

    Huge pages without a file have the name of one as well.
    """
    # begin-end permissions offset device inode path
    fields = line.split(maxsplit=5)
    if len(fields) < 6 or not (path := Path(fields[5])).is_file() or path.stat().st_ino != int(fields[4]):
        return None
    begin, end = (int(number, 16) for number in fields[0].split("-"))
    return _FileMapping(begin, end, str(path), int(fields[2], 16))


def _file_of(address: int) -> tuple[str, int] | None:
    """The file that is mapped at an address and the place in it; None: no file that is still there."""
    if not _MAPS.exists():
        return None
    for line in _MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
        begin, end = (int(number, 16) for number in line.split(maxsplit=1)[0].split("-"))
        if begin <= address < end:
            mapping = _file_mapping(line)
            return None if mapping is None else (mapping.path, mapping.offset + address - begin)
    return None
