"""Checkpoint files: layout, download, validation, loading and quantization.

`layout`, `formats`, `hub` and `digest` do not import torch. May import `ovi.config`, `ovi.errors` and `ovi.models`.
"""
