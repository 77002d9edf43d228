"""Attention as one function with an explicit backend, and the choice of the fastest exact one by measuring.

types            backends, sites, shapes and plans (no torch)
target           the device as a backend sees it
backends         the registry: a small class each, and `attention` itself
benchmark        one backend on one shape: seconds, and the error against a float32 reference
subprocess_trial the same in a process of its own, for backends that may hang or crash
autotune         `auto`: measure what is not in the cache, take the fastest that agrees
"""

from ovi.attention.types import AttentionBackend, AttentionPlan, AttentionShape, Site

__all__ = ["AttentionBackend", "AttentionPlan", "AttentionShape", "Site"]
