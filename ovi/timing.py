"""Seconds of work on a device, without what the host takes to start it."""

import time
from collections.abc import Callable

import torch

_SHORT_S = 0.01  # a call this short on a GPU is timed many at a time, so that starting it is hidden by the others
_MANY = 10


def seconds_per_call(
    call: Callable[[], object], device: torch.device, *, max_calls: int = 10, budget_s: float = 0.3
) -> float:
    """Seconds of the fastest of several calls, as disturbances only slow calls down; at least one is made.

    The caller has warmed up. No further call is made after `budget_s` seconds. On a GPU events are timed, not the host.
    """
    best, spent, calls = float("inf"), 0.0, 0
    while calls < max_calls and (not calls or spent < budget_s):
        started = time.perf_counter()
        best = min(best, _on_gpu(call, device) if device.type == "cuda" else _on_host(call))
        spent, calls = spent + time.perf_counter() - started, calls + 1
    return best


def _on_host(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _on_gpu(call: Callable[[], object], device: torch.device) -> float:
    seconds = _between_events(call, device, 1)
    return seconds if seconds > _SHORT_S else _between_events(call, device, _MANY) / _MANY


def _between_events(call: Callable[[], object], device: torch.device, calls: int) -> float:
    stream = torch.cuda.current_stream(device)
    began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    began.record(stream)
    for _ in range(calls):
        call()
    ended.record(stream)
    ended.synchronize()
    return began.elapsed_time(ended) / 1000
