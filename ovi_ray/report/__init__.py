"""What a job tells the user: the terminal display, the HTML report, timelines and decisions in words.

May import `ovi_ray.output`, `ovi_ray.protocol` and `ovi_ray.simulation`; neither torch nor ray.
"""
