"""The output folder of a job: results, intermediate files, ownership, and recovery after a crash.

May import `ovi_ray.inputs` and `ovi_ray.storage`; neither torch nor ray.
"""
