"""Device memory: planning what fits (`plan`, no torch) and releasing what is no longer used (`release`).

May import `ovi.config`, `ovi.errors`, `ovi.geometry`, `ovi.stages` and `ovi.weights.formats`.
"""
