"""Memory of a device: a plan of what fits (`plan`, without torch) and giving memory back (`release`).

May import `ovi.config`, `ovi.geometry`, `ovi.stages` and `ovi.weights.formats`.
"""
