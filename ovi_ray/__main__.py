"""`python -m ovi_ray` is `ovi-ray`; the program starts here, so that Ctrl-C ends it while it still imports."""

import json
import os
import signal
import sys
import traceback
from types import FrameType

from ovi_ray.answers import answer, keep_descriptor_for_answers
from ovi_ray.report_address import report_address

_INTERRUPTED, _FAULT = 130, 70  # ovi_ray.cli.common.ExitCode, which is not imported yet


def main() -> None:
    """Run `ovi-ray`."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # else it is ignored, as in a background job
        signal.signal(signal.SIGINT, _end)
    keep_descriptor_for_answers()
    try:
        from ovi_ray.cli import main as run
    except Exception as error:
        sys.exit(_cannot_start(error))
    signal.signal(signal.SIGINT, handler)
    run()


def _cannot_start(error: Exception) -> int:
    """Tell of an installation that lacks a package or has a broken one, with nothing but the standard library."""
    traceback.print_exception(error)
    what = f"{type(error).__name__}: {error}"
    print(
        f"ovi-ray cannot start ({what}): a package that it needs is missing or broken in {sys.prefix}. Install it anew, as"
        f" with `{sys.executable} -m pip install --force-reinstall ovi-ray`.\nIf that does not help, please report it to"
        f" {report_address()}, with the lines above.",
        file=sys.stderr,
    )
    if "--json" in sys.argv:
        fault = {"kind": "fault", "type": type(error).__name__, "message": str(error), "report_to": report_address()}
        answer(json.dumps({"error": fault}))
    return _FAULT


def _end(number: int, frame: FrameType | None) -> None:
    """At once: nothing was begun, and an exception might be caught by a module that tries an import."""
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
