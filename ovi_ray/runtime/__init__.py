"""The event loop of a job, between the scheduler and Ray.

May import every package but `ovi_ray.cli` and `ovi_ray.report`.
"""
