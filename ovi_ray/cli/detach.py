"""`ovi-ray render --detach`: the driver in a session of its own, which a closed terminal or connection does not end."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from ovi_ray.errors import OutputError
from ovi_ray.output.lease import last_owner
from ovi_ray.storage.paths import Location

OPTION = "--detach"
INPUTS_CHECKED = "inputs checked: "
"""Begins the line that `ovi-ray render` prints before it starts Ray."""
DRIVER_LOG = "driver.log"
"""In the output folder: what the driver prints. For an output in a store, it is in the user's folder for state."""
_LOOK_S = 0.1
_TAIL_LINES = 20


@dataclass(kw_only=True, slots=True, frozen=True)
class DetachedDriver:
    """A driver that goes on without this process."""

    pid: int
    log: Path
    exit_code: int | None
    """The exit code if it has ended already; None while it renders."""

    @property
    def last_lines(self) -> str:
        """The end of its log, without the checks of the input, which this process has told of already."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        checked = [number for number, line in enumerate(lines, 1) if line.startswith(INPUTS_CHECKED)]
        return "\n".join(lines[max(checked, default=0) :][-_TAIL_LINES:])


def start_detached(arguments: Sequence[str], output_dir: Location) -> DetachedDriver:
    """Start `ovi-ray` with the arguments, less `--detach`, and wait until it has the output folder or has ended.

    Raises OutputError where its log cannot be written.
    """
    log = _log_of(output_dir)
    command = [sys.executable, "-P", "-m", "ovi_ray", *(word for word in arguments if word != OPTION)]
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as written:
            driver = subprocess.Popen(  # noqa: S603 - the command that the user typed
                command,
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
    except OSError as error:
        raise OutputError(f"{log} cannot be written: {error.strerror or error}") from error
    while driver.poll() is None and not _has(driver.pid, output_dir):
        time.sleep(_LOOK_S)
    return DetachedDriver(pid=driver.pid, log=log, exit_code=driver.poll())


def _has(pid: int, output_dir: Location) -> bool:
    """Whether a process of this machine has the output folder."""
    try:
        found = last_owner(output_dir)
    except OSError:
        return False
    return found is not None and found[0].is_here and found[0].pid == pid


def _log_of(output_dir: Location) -> Path:
    if (local := output_dir.local_path) is not None:
        return local / DRIVER_LOG
    return Path(platformdirs.user_state_path("ovi-ray")) / "drivers" / f"{output_dir.name}.log"
