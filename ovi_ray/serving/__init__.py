"""The report of a job over HTTP, live: `ovi-ray serve`.

May import `ovi_ray.report`, `ovi_ray.output` and the layers below them; neither torch nor ray.
"""
