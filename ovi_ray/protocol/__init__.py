"""Values that travel between the driver, its workers and whoever watches a job, and the observer interface.

May import `ovi_ray.scheduling`; neither torch nor ray.
"""
