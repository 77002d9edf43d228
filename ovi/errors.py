"""Every failure that `ovi` raises on purpose.

OviError
 ├── InvalidRequest          a parameter, prompt or image that can never work            (the clip's fault)
 │    └── InvalidImage       a first frame that is missing, unreadable or absurdly large
 ├── CheckpointError         the weights cannot be used                                  (the installation's fault)
 │    ├── CheckpointNotFound a file of the model is missing; says how to get it
 │    └── CheckpointMismatch tensors missing, extra, misshapen, or the file is truncated
 ├── AttentionUnavailable    the attention backend that is asked for cannot run on the device
 ├── MemoryTooSmall          a memory budget too small for what is asked; names the smallest that would do
 ├── DenoiseStopped          the caller asked `denoise` to stop; carries the state to continue from
 └── MediaError              a video could not be written or read back
"""

from pathlib import Path


class OviError(Exception):
    """Base of every error that `ovi` raises on purpose."""


class InvalidRequest(OviError, ValueError):
    """A parameter, prompt or image that can never be rendered, whatever the device."""


class InvalidImage(InvalidRequest):
    """A first-frame image that is missing, unreadable or too large."""


class CheckpointError(OviError):
    """The weights cannot be used: the file, what was found, and what would be right."""

    def __init__(self, found: str, *, expected: str = "", path: str | Path = "") -> None:
        where, remedy = (f"{path}: " if path else ""), (f"; expected {expected}" if expected else "")
        super().__init__(f"{where}{found}{remedy}")
        self.path = str(path)
        self.found = found
        self.expected = expected


class CheckpointNotFound(CheckpointError, FileNotFoundError):
    """A file that the model needs is missing."""


class CheckpointMismatch(CheckpointError):
    """A checkpoint holds other tensors than the architecture, or cannot be read."""


class AttentionUnavailable(OviError):
    """An attention backend cannot run on the device; the message has the reason and names what can."""


class MemoryTooSmall(OviError):
    """A device or a memory budget is too small for what is asked; the message names the smallest that would do."""


class DenoiseStopped(OviError):
    """The caller asked `denoise` to stop. `state` continues the clip where it stood."""

    def __init__(self, state: object) -> None:
        super().__init__("the denoise was asked to stop")
        self.state = state


class MediaError(OviError):
    """A video file could not be written or read back."""
