"""The console for messages."""

import contextlib
import io
import os
import sys
from typing import IO, TextIO, cast

from ovi_ray.printing import Console


def message_console() -> Console:
    """A console on standard error that drops what cannot be written: a job goes on when its terminal is closed."""
    return Console(stderr=True, file=cast(IO[str], _Forgiving(sys.stderr)))


class _Forgiving(io.TextIOBase):
    """Writes to a stream until that fails or it is closed; from then on nothing is written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """See TextIOBase."""
        return self._stream.encoding

    def isatty(self) -> bool:
        """See TextIOBase."""
        return not self._stream.closed and self._stream.isatty()

    def fileno(self) -> int:
        """See TextIOBase."""
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """See TextIOBase."""
        try:
            if not self._stream.closed:
                self._stream.write(text)
        except OSError:
            self._give_up()
        return len(text)

    def flush(self) -> None:
        """See TextIOBase."""
        try:
            if not self._stream.closed:
                self._stream.flush()
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        """Send the rest nowhere, so that Python does not fail on it as it ends."""
        with contextlib.suppress(OSError):
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, self._stream.fileno())
            os.close(devnull)
