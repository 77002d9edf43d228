"""Values that travel between the driver, its workers and the display.

May import `ovi_ray.scheduling`; neither torch nor ray.
"""
