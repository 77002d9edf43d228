"""`python -m ovi_ray` is `ovi-ray`; the program starts here, so that Ctrl-C ends it while it still imports."""

import os
import signal
from types import FrameType

_INTERRUPTED = 130  # ovi_ray.cli.common.ExitCode, which is not imported yet


def main() -> None:
    """Run `ovi-ray`."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # else it is ignored, as in a background job
        signal.signal(signal.SIGINT, _end)
    from ovi_ray.cli import main as run

    signal.signal(signal.SIGINT, handler)
    run()


def _end(number: int, frame: FrameType | None) -> None:
    """At once: nothing was begun, and an exception might be caught by a module that tries an import."""
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
