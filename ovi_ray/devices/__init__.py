"""The devices of a node: detection, usable attention backends, memory planning, and the report of `ovi-ray doctor`.

May import torch, `ovi`, `ovi_ray.inputs`, `ovi_ray.weights` and the layers below them; never ray.
"""
