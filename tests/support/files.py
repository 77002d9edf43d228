"""Snapshots of folders, for tests that nothing is written, and a file that cannot be read."""

from pathlib import Path

UNREADABLE = Path("/proc/self/mem")
"""A file that opens, and whose first byte cannot be read: EIO, for root too."""


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of the last change of everything in a folder: any file created, changed or removed shows."""
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in [folder, *folder.rglob("*")]}
