"""Logging of `ovi_ray` to the terminal."""

import logging

from rich.console import Console


def configure_logging(level: int, console: Console) -> None:
    """Print the records of `ovi` and `ovi_ray` from `level` on to the console, a line each."""
    handler = logging.StreamHandler(console.file)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    for name in ("ovi", "ovi_ray"):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.handlers = [handler]
