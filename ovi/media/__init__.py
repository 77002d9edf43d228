"""Image and video files: reading first frames, writing MP4 files, and inspecting them.

`probe` does not import torch. May import `ovi.config` and `ovi.errors`.
"""
