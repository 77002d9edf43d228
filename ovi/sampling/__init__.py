"""Sampling: ODE solvers, classifier-free guidance and the denoising loop, as functions with explicit state.

May import `ovi.attention`, `ovi.config`, `ovi.errors`, `ovi.models`, `ovi.quality` and `ovi.types`.
"""
