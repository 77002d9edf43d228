"""Attention as one function with an explicit backend."""

from ovi.attention.backends import AttentionBackend, attention

__all__ = ["AttentionBackend", "attention"]
