"""Releasing memory."""

import gc
import weakref

import torch

from ovi.memory import release as memory
from ovi.memory.release import release_memory


class Node:
    """An object in a reference cycle, which only the garbage collector frees."""

    def __init__(self):
        self.me = self


def test_on_a_cpu_garbage_is_collected_and_cuda_is_not_used(monkeypatch):
    monkeypatch.setattr(memory.torch, "cuda", None)
    gc.disable()
    gone = weakref.ref(Node())
    release_memory(torch.device("cpu"))
    gc.enable()
    assert gone() is None


def test_a_gpu_is_synchronised_before_its_cache_is_emptied(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("empty_cache"))
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: calls.append("ipc_collect"))
    release_memory(torch.device("cuda", 0))
    assert calls == ["synchronize", "empty_cache", "ipc_collect"]
