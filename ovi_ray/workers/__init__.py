"""The Ray actor that holds one pipeline on one device, and what it needs to run its tasks.

May import torch, ray, `ovi_ray.devices`, `ovi_ray.protocol` and what these import.
"""
