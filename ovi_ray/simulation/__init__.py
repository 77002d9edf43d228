"""A virtual cluster that runs the production scheduler, and the forecasts and bounds made with it.

May import `ovi_ray.inputs` and `ovi_ray.scheduling`; neither torch nor ray.
"""
