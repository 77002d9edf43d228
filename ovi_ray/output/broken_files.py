"""Damaged files of an output folder: they are moved to `OUT/broken`, never removed.

A file is damaged when it was read to its end and its content is wrong. One that cannot be read is left where it is.
"""

import itertools

from ovi_ray.storage.paths import Location

BROKEN = "broken"


def set_aside(path: Location) -> Location:
    """Move a damaged file of one of the output folder's folders to `OUT/broken`. Returns its new path. Raises OSError."""
    folder = path.parent.parent / BROKEN
    folder.mkdir()
    names = (f"{path.stem}-{number}{path.suffix}" for number in itertools.count(1))
    target = next(folder / name for name in itertools.chain([path.name], names) if not (folder / name).exists())
    return path.move(target)
