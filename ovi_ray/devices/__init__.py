"""The devices of a node: what they are, which attention backends work on them, what fits in their memory.

May import torch, `ovi_ray.inputs` and `ovi_ray.weights`; never ray.
"""
