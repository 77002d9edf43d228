"""User input turned into a checked JobSpec, Manifest and TaskTable; every problem is reported at once.

May import `ovi_ray.storage` and `ovi_ray.scheduling`; neither torch nor ray.
"""
