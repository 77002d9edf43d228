"""Scheduling policies: an immutable snapshot goes in, a decision with its reason comes out.

May import `ovi_ray.scheduling.allocation_lp` and `ovi_ray.scheduling.task`.
"""
