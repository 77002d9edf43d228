"""Attention as one function with an explicit backend, and the choice of the fastest exact one by measuring.

names      the backends and the places in the model where attention runs (pure: no torch)
plan       which backend runs where (pure)
target     what a backend must know of the device
backends   the registry: a small class each, and `attention` itself
measure    one backend on one shape: seconds, and the error against a float32 reference
isolation  the same in a process of its own, for backends that may hang or crash
choose     `auto`: measure what is not in the cache, take the fastest that agrees
"""

from ovi.attention.names import AttentionBackend, Site
from ovi.attention.plan import AttentionPlan, AttentionShape

__all__ = ["AttentionBackend", "AttentionPlan", "AttentionShape", "Site"]
