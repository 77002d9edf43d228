"""Counts the memory of live tensors by following every allocation. Works on the meta device, so at any size."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Bytes of the tensors that were made on a device while the mode is active: `now`, and the maximum, `peak`."""

    def __init__(self, device="meta"):
        super().__init__()
        self.device = device
        self.now = 0
        self.peak = 0
        self._alive = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == self.device:
                self._add(tensor.untyped_storage(), given)
        return out

    def _add(self, storage, given):
        key = storage._cdata
        if key in self._alive or key in given:
            return
        self._alive.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, storage.nbytes())

    def _free(self, key, size):
        self._alive.discard(key)
        self.now -= size
