"""Logging of `ovi_ray`: a handler for the terminal and one for a run's log file.

Modules log to `logging.getLogger(__name__)`. Two loggers are for what the display shows anyway: `MESSAGES` never appears on
the terminal a second time, `JOB` (workers, failures, how the run ended) only with -v. Worker processes log to Ray's own files,
`/tmp/ray/session_latest/logs` on their node.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path

from ovi_ray.printing import Console

ROOT = "ovi_ray"
MESSAGES = "ovi_ray.messages"
JOB = "ovi_ray.job"
RUN_LOG = "run.log"
RUN_LOG_BYTES = 10_000_000
RUN_LOG_BACKUPS = 3
RUN_LOG_FILES = (RUN_LOG, *(f"{RUN_LOG}.{number}" for number in range(1, RUN_LOG_BACKUPS + 1)))


def configure_logging(level: int, console: Console) -> None:
    """Show log records of this level and above on a console. Replaces the handler of an earlier call."""
    root = logging.getLogger(ROOT)
    for handler in [handler for handler in root.handlers if isinstance(handler, _ConsoleHandler)]:
        root.removeHandler(handler)
    handler = _ConsoleHandler(console)
    handler.setLevel(level)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    root.addHandler(handler)
    root.setLevel(level)


@contextmanager
def run_log(folder: Path, on_problem: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Append log records of INFO and above to `folder/run.log`, for the time of the block. Raises OSError.

    The file is rotated at 10 MB; three older ones are kept. `on_problem` is told once if it cannot be written later on.
    """
    root = logging.getLogger(ROOT)
    level = root.level
    handler = _RunLogHandler(folder / RUN_LOG, on_problem)
    root.addHandler(handler)
    root.setLevel(min(logging.INFO, level) if level else logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        with suppress(OSError):  # from the last flush
            handler.close()


class _ConsoleHandler(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self.addFilter(self._is_new)

    def _is_new(self, record: logging.LogRecord) -> bool:
        """Whether the display does not show this anyway."""
        return record.name != MESSAGES and (record.name != JOB or self.level <= logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(self.format(record), style="dim", soft_wrap=True)


class _RunLogHandler(RotatingFileHandler):
    """Reports the first error of writing and ignores the others: a log must not fail or litter a job."""

    def __init__(self, path: Path, on_problem: Callable[[str], None]) -> None:
        super().__init__(path, maxBytes=RUN_LOG_BYTES, backupCount=RUN_LOG_BACKUPS, encoding="utf-8", errors="replace")
        self.setLevel(logging.INFO)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._on_problem: Callable[[str], None] | None = on_problem

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (the name is logging's)
        on_problem, self._on_problem = self._on_problem, None
        if on_problem is not None:
            on_problem("the run's log cannot be written; the job goes on")
