"""The event loop between the scheduler and an executor, the executor on Ray, and the record that a run leaves.

May import ray, `ovi_ray.workers` and the layers below it.
"""
