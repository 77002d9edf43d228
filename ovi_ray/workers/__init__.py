"""The Ray actor that runs one pipeline on one device, and its helpers: checkpoints, out-of-memory fallbacks, transport.

May import torch, ray, `ovi_ray.devices`, `ovi_ray.protocol` and the layers below them.
"""
