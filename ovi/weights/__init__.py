"""Checkpoint files of the published layout: where they lie, how they are fetched, checked, loaded and quantized.

Imports torch; `layout`, `formats`, `hub` and `digest` do not. Never imports ray.
"""
