"""Device memory: planning what fits (`plan`, no torch), releasing what is no longer used (`release`), and running blocks from host
memory (`block_stream`).

May import `ovi.config`, `ovi.errors`, `ovi.geometry`, `ovi.stages` and `ovi.weights.formats`.
"""
