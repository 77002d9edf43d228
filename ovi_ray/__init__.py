"""Distributed batch rendering for Ovi 1.1: prompt lists in, videos with sound out."""

from ovi import __version__

__all__ = ["__version__"]
