"""Files by path or URI: one `Location` value over a `Store` for local disks, object stores and HDFS, with atomic writes.

May import `ovi.files` and `ovi_ray.errors`; neither torch nor ray.
"""
