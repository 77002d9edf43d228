"""Convolutions of the decoders: the ways to run them, and the choice of one that is right and fast on a device.

paths  the ways, and the block in which one is used
probe  a trial of a way on shapes of the decoders, also as a child process
choice the way for a device: tried, checked, cached

May import `ovi.attention.target`, `ovi.config`, `ovi.geometry` and the layers below them.
"""

from ovi.convolution.paths import ConvolutionPath

__all__ = ["ConvolutionPath"]
