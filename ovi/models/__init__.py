"""The networks of the published model; `tests/parity` compares each with the published implementation's outputs.

May import `ovi.attention`, `ovi.config`, `ovi.errors` and `ovi.prompts`.
"""
