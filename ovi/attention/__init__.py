"""Attention as one function with an explicit backend, and `auto`, which benchmarks the backends and picks the fastest.

types            backends, sites, shapes and plans (no torch)
target           the device that attention runs on
backends         one class per backend, their registry, and `attention` itself
benchmark        time and error of one backend on one shape
subprocess_trial the same in a child process, for backends that may hang or crash
autotune         `auto`: benchmark what is not cached, then pick the fastest accurate backend per site

May import `ovi.config` and `ovi.errors`.
"""

from ovi.attention.types import AttentionBackend, AttentionPlan, AttentionShape, Site

__all__ = ["AttentionBackend", "AttentionPlan", "AttentionShape", "Site"]
