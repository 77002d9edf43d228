"""Presentation of a job: the terminal display, the HTML report, timelines, actual times and decisions in words.

May import `ovi_ray.output`, `ovi_ray.protocol`, `ovi_ray.simulation` and the layers below them; neither torch nor ray.
"""
