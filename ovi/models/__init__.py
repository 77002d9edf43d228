"""The networks of the published model, each proven against its outputs.

May import `ovi.attention`, `ovi.config` and `ovi.errors`.
"""
