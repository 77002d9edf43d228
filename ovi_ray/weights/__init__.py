"""Checkpoint folders on this machine: cached copies of remote ones, file digests, and checks before a job starts.

May import `ovi_ray.storage`, and torch through `ovi.weights`; never ray.
"""
