"""Images and videos as files: reading first frames, writing MP4, probing what a video holds.

May import `ovi.config` and `ovi.errors`; `probe` imports no torch.
"""
