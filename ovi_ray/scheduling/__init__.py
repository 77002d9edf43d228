"""The deterministic scheduler of a job: events and the time go in, actions come out. No clock, randomness or I/O.

May import `ovi.config` and `ovi.stages`; neither torch nor ray, and no other package of `ovi_ray`.
"""
