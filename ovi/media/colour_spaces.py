"""Colour spaces that a file describes by numbers, as ICC profiles: a profile is what colour management understands."""

import struct
from dataclasses import dataclass

import numpy as np

_D50 = np.array([0.9642, 1.0, 0.8249])
"""XYZ of the white of every ICC profile."""
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_CURVE_POINTS = 4096
_DATE = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)  # profiles of equal spaces are equal

D65 = (0.3127, 0.3290)
SRGB_PRIMARIES = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))

Chromaticity = tuple[float, float]
"""CIE x and y."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Transfer:
    """Light by the stored value, both from 0 to 1: `((value + offset) / (1 + offset)) ** gamma`, and linear below `knee`."""

    gamma: float
    offset: float = 0.0
    knee: float = 0.0
    slope: float = 1.0
    """Stored value by light, below `knee`."""

    def light(self, values: np.ndarray) -> np.ndarray:
        """Light of stored values."""
        curve = ((values + self.offset) / (1 + self.offset)) ** self.gamma
        return np.where(values < self.knee, values / self.slope, curve)


SRGB_TRANSFER = Transfer(gamma=2.4, offset=0.055, knee=0.04045, slope=12.92)
BT709_TRANSFER = Transfer(gamma=1 / 0.45, offset=0.099, knee=0.081, slope=4.5)


def rgb_profile(
    name: str, *, primaries: tuple[Chromaticity, ...], white: Chromaticity, transfer: Transfer
) -> bytes | None:
    """An ICC profile (version 2.4) of a space with these red, green and blue; None where they span no space."""
    if min(y for _, y in (*primaries, white)) <= 0:
        return None
    colours = np.array([_xyz(point) for point in primaries]).T
    try:
        colours = colours * np.linalg.solve(colours, _xyz(white))
    except np.linalg.LinAlgError:
        return None
    cone = np.diag((_BRADFORD @ _D50) / (_BRADFORD @ _xyz(white)))
    adapted = np.linalg.inv(_BRADFORD) @ cone @ _BRADFORD @ colours
    if not np.isfinite(adapted).all() or np.abs(adapted).max() > 10:
        return None
    curve = np.rint(transfer.light(np.linspace(0, 1, _CURVE_POINTS)) * 65_535).astype(">u2")
    curve_tag = b"curv" + bytes(4) + struct.pack(">I", len(curve)) + curve.tobytes()
    tags = {b"desc": _text(name), b"wtpt": _xyz_tag(_D50), b"cprt": b"text" + bytes(4) + b"none\0"}
    tags |= {name: _xyz_tag(column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), adapted.T, strict=True)}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve_tag)
    return _file(tags)


def _xyz(point: Chromaticity) -> np.ndarray:
    x, y = point
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _xyz_tag(xyz: np.ndarray) -> bytes:
    return b"XYZ " + bytes(4) + _fixed(xyz)


def _fixed(values: np.ndarray) -> bytes:
    return np.rint(values * 65_536).astype(">i4").tobytes()


def _text(name: str) -> bytes:
    ascii_name = name.encode("ascii", "replace") + b"\0"
    return b"desc" + bytes(4) + struct.pack(">I", len(ascii_name)) + ascii_name + bytes(78)


def _file(tags: dict[bytes, bytes]) -> bytes:
    table, data = b"", b""
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    size = struct.pack(">I", start + len(data))
    header = size + bytes(4) + b"\x02\x40\0\0mntrRGB XYZ " + _DATE + b"acsp" + bytes(28) + _fixed(_D50)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data
