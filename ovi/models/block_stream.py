"""Blocks whose weights stay in host memory: two buffers on the device hold the block that runs and the next one.

The copy of the next block goes on beside the work of this one, on a second stream. The numbers are those of resident blocks.
"""

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

BUFFERS = 2
_ALIGNMENT = 256  # bytes, of each tensor in a buffer

Pair = tuple[nn.Module, nn.Module]
"""The blocks of both modalities that run together."""


class StreamEdge(Protocol):
    """The device's two streams: the one that computes, and the one that copies."""

    def pinned(self, size: int) -> Tensor:
        """`size` bytes of host memory that the device reads by itself."""
        ...

    def mark(self) -> Any:
        """An event after what the computing stream has been given so far."""
        ...

    def copy(self, target: Tensor, source: Tensor, after: Any) -> Any:
        """Begin to copy on the other stream, once an event has happened. Returns the event of its end."""
        ...

    def wait(self, event: Any) -> None:
        """Let the computing stream wait for an event; the caller goes on."""
        ...


class CudaEdge:
    """The streams of a CUDA or ROCm device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device)

    def pinned(self, size: int) -> Tensor:
        """See StreamEdge."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def mark(self) -> Any:
        """See StreamEdge."""
        return torch.cuda.current_stream(self._device).record_event()

    def copy(self, target: Tensor, source: Tensor, after: Any) -> Any:
        """See StreamEdge."""
        self._copies.wait_event(after)
        with torch.cuda.stream(self._copies):
            target.copy_(source, non_blocking=True)
        return self._copies.record_event()

    def wait(self, event: Any) -> None:
        """See StreamEdge."""
        torch.cuda.current_stream(self._device).wait_event(event)


class HostEdge:
    """A device that is the host: copies are done at once."""

    def pinned(self, size: int) -> Tensor:
        """See StreamEdge."""
        return torch.empty(size, dtype=torch.uint8)

    def mark(self) -> Any:
        """See StreamEdge."""

    def copy(self, target: Tensor, source: Tensor, after: Any) -> Any:
        """See StreamEdge."""
        target.copy_(source)

    def wait(self, event: Any) -> None:
        """See StreamEdge."""


def stream_edge(device: torch.device) -> StreamEdge:
    """The streams of a device."""
    return CudaEdge(device) if device.type == "cuda" else HostEdge()


@dataclass(kw_only=True, slots=True, frozen=True)
class _Buffer:
    """Device memory for one pair of blocks, and modules whose parameters lie in it."""

    memory: Tensor
    pair: Pair


@dataclass(kw_only=True, slots=True, frozen=True)
class _Ahead:
    """A pair that is in a buffer, or on its way there."""

    index: int
    buffer: _Buffer
    copied: Any


class BlockStream:
    """Runs pairs of equal blocks from host memory. Their parameters are moved there, and stay those of the modules given."""

    def __init__(self, pairs: Sequence[Pair], device: torch.device, edge: StreamEdge | None = None) -> None:
        self._device = device
        self._edge = edge or stream_edge(device)
        self._model = pairs[0]
        self._host = [_packed(pair, self._edge.pinned(pair_bytes(pair))) for pair in pairs]
        self._free: deque[_Buffer] = deque()
        self._ahead: deque[_Ahead] = deque()

    def release(self) -> None:
        """Give the device's memory back; the next run takes it again."""
        self._free.clear()
        self._ahead.clear()

    def run(self, order: Sequence[int]) -> Iterator[tuple[int, Pair]]:
        """The pairs in an order, each to be used before the next one is asked for. The last ones are followed by the first."""
        if not self._free and not self._ahead:
            self._free.extend(self._buffer() for _ in range(BUFFERS))
        self._expect(order)
        for position, index in enumerate(order):
            current = self._ahead.popleft()
            self._edge.wait(current.copied)
            yield index, current.buffer.pair
            self._free.append(current.buffer)
            self._fetch(order[(position + BUFFERS) % len(order)])

    def _expect(self, order: Sequence[int]) -> None:
        """Have the first pairs of an order on their way, unless they are already."""
        wanted = [order[position % len(order)] for position in range(BUFFERS)]
        if [ahead.index for ahead in self._ahead] != wanted:
            self._free.extend(ahead.buffer for ahead in self._ahead)
            self._ahead.clear()
            if len(self._free) < BUFFERS:  # a run was not finished, and has the other
                self._free.extend(self._buffer() for _ in range(BUFFERS - len(self._free)))
            for index in wanted:
                self._fetch(index)

    def _fetch(self, index: int) -> None:
        """Copy a pair into a free buffer, once what was computed with it has ended."""
        buffer = self._free.popleft()
        copied = self._edge.copy(buffer.memory, self._host[index], self._edge.mark())
        self._ahead.append(_Ahead(index=index, buffer=buffer, copied=copied))

    def _buffer(self) -> _Buffer:
        memory = torch.empty(pair_bytes(self._model), dtype=torch.uint8, device=self._device)
        first, second = (copy.deepcopy(module) for module in self._model)
        return _Buffer(memory=memory, pair=_laid_in((first, second), memory))


def pair_bytes(pair: Pair) -> int:
    """Bytes of a pair of blocks in a buffer."""
    return sum(_aligned(parameter.nbytes) for module in pair for parameter in module.parameters())


def pinned_bytes(size: int) -> int:
    """Bytes that torch's allocator takes for `size` bytes of pinned memory: the next power of two."""
    return 1 << max(0, size - 1).bit_length()


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _packed(pair: Pair, memory: Tensor) -> Tensor:
    """Move the parameters of a pair into one piece of host memory."""
    values = [[parameter.data for parameter in module.parameters()] for module in pair]
    _laid_in(pair, memory)
    for module, before in zip(pair, values, strict=True):
        for parameter, value in zip(module.parameters(), before, strict=True):
            parameter.data.copy_(value)
    return memory


def _laid_in(pair: Pair, memory: Tensor) -> Pair:
    """Let the parameters of a pair be parts of a piece of memory, whatever it holds."""
    start = 0
    for module in pair:
        for parameter in module.parameters():
            part = memory[start : start + parameter.nbytes].view(parameter.dtype).view(parameter.shape)
            parameter.data, start = part, start + _aligned(parameter.nbytes)
    return pair
