"""From noise to latents: solvers, guidance and the denoising loop, as free functions with explicit state.

May import `ovi.models`, `ovi.attention`, `ovi.config` and `ovi.types`.
"""
