"""Files by path or URI: reading, atomic writes, listing, and why an operation failed.

May import `ovi_ray.errors`; neither torch nor ray.
"""
