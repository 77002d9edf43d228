"""Every error that `ovi` raises deliberately.

OviError
 ├── InvalidRequest          a parameter, prompt or image that cannot be rendered on any device (cause: the input)
 │    └── InvalidImage       a first frame that is missing, unreadable or too large
 ├── CheckpointError         the weights cannot be used                                         (cause: the installation)
 │    ├── CheckpointNotFound a file of the model is missing; the message says how to get it
 │    └── CheckpointMismatch missing, extra or misshapen tensors, or a truncated file
 ├── AttentionUnavailable    the requested attention backend cannot run on the device; `usable` has those that can
 ├── DeviceUnavailable       torch has no such device here; `usable` has those that it has
 ├── ShortcutUnavailable     a device or a form of weights has not what a lossy shortcut needs; the clip goes without it
 ├── ConvolutionsWrong       every way to run convolutions on the device gives wrong numbers
 ├── MemoryTooSmall          the memory budget is too small; `needed` has the smallest sufficient one
 ├── DenoiseStopped          the caller stopped a denoise; `state` continues it
 ├── PartnerUnavailable      the other device of a denoise on two is gone, or computes otherwise
 ├── NonFiniteError          a stage computed NaN or infinity                        (cause: weights, device or parameters)
 └── MediaError              a video could not be written or read back
"""

from pathlib import Path


def _message(found: str, expected: str, path: str | Path) -> str:
    return f"{path}: " * bool(path) + found + f"; expected {expected}" * bool(expected)


class OviError(Exception):
    """Base class of the errors that `ovi` raises deliberately."""


class InvalidRequest(OviError, ValueError):
    """A parameter, prompt or image that cannot be rendered on any device."""


class InvalidImage(InvalidRequest):
    """A first-frame image that is missing, unreadable or too large: what was found, and what was expected."""

    def __init__(self, found: str, *, expected: str = "", path: str | Path = "") -> None:
        super().__init__(_message(found, expected, path))
        self.found = found
        self.expected = expected


class CheckpointError(OviError):
    """The weights cannot be used: which file, what was found there and what was expected."""

    def __init__(self, found: str, *, expected: str = "", path: str | Path = "") -> None:
        super().__init__(_message(found, expected, path))
        self.path = str(path)
        self.found = found
        self.expected = expected


class CheckpointNotFound(CheckpointError, FileNotFoundError):
    """A file that the model needs does not exist."""


class CheckpointMismatch(CheckpointError):
    """A checkpoint file is unreadable or its tensors do not match the architecture."""

    def __init__(
        self,
        found: str,
        *,
        expected: str = "",
        path: str | Path = "",
        missing: tuple[str, ...] = (),
        extra: tuple[str, ...] = (),
        misshapen: tuple[str, ...] = (),
    ) -> None:
        super().__init__(found, expected=expected, path=path)
        self.missing = missing
        """Names of tensors that the file lacks."""
        self.extra = extra
        """Names of tensors that the architecture lacks."""
        self.misshapen = misshapen
        """Names of tensors of another shape."""


class AttentionUnavailable(OviError):
    """An attention backend cannot run on the device."""

    def __init__(self, message: str, *, reason: str = "", usable: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.reason = reason
        """Why it cannot run; empty if no backend can."""
        self.usable = usable
        """Names of the backends that can run."""


class DeviceUnavailable(OviError):
    """A device that is not there, or that this build of torch cannot use."""

    def __init__(self, device: str, reason: str, *, usable: tuple[str, ...]) -> None:
        super().__init__(f"device is {device!r}, {reason}; expected one of {', '.join(usable)}")
        self.usable = usable
        """Names of the devices of this machine."""


class ShortcutUnavailable(OviError):
    """A lossy shortcut of a denoise cannot be used: its name, and why."""

    def __init__(self, shortcut: str, reason: str) -> None:
        super().__init__(f"{shortcut} is left out: {reason}")
        self.shortcut = shortcut
        self.reason = reason


class ConvolutionsWrong(OviError):
    """Every way to run convolutions on a device gives wrong numbers; the message has the error of each."""


class MemoryTooSmall(OviError):
    """A memory budget is too small for the model."""

    def __init__(self, message: str, *, needed: int = 0) -> None:
        super().__init__(message)
        self.needed = needed
        """Bytes of the smallest sufficient budget."""


class DenoiseStopped(OviError):
    """The caller stopped a denoise. Passing `state` to `denoise` continues it bit for bit."""

    def __init__(self, state: object) -> None:
        super().__init__("the denoise was stopped by its caller")
        self.state = state


class PartnerUnavailable(OviError):
    """The other device of a denoise on two devices is gone, does not answer, or would compute other numbers."""


class NonFiniteError(OviError):
    """A stage computed numbers that are not finite: its result is worthless, and is neither stored nor shown."""

    def __init__(
        self, tensor: str, *, stage: str, first: str, causes: tuple[str, ...], step: int | None = None
    ) -> None:
        super().__init__(
            f"{stage}: the {tensor} are not finite numbers, first {first}; usual causes: {', '.join(causes)}"
        )
        self.tensor = tensor
        """Plural name of the tensor: "video latents", "frames", ..."""
        self.stage = stage
        """The stage (`ovi.stages.Stage`) that computed it."""
        self.first = first
        """The first place that was not finite, in words: a step, a frame, a text."""
        self.step = step
        """The first such denoising step or frame, from 1; None for another stage."""
        self.causes = causes


class MediaError(OviError):
    """A video file could not be written, or could not be read back."""
