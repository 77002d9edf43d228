"""Reading of whole files from storage that fails now and then."""

import time
from dataclasses import dataclass

from ovi_ray.storage.paths import Location


@dataclass(kw_only=True, slots=True, frozen=True)
class ReadConfig:
    """Repetition of reads that fail."""

    tries: int = 4
    pause_s: float = 0.5
    """Before the second try; doubled before each further one."""


def read_patiently(path: Location, config: ReadConfig) -> bytes:
    """The content of a file, tried again where that may help. Raises the OSError of the last try; FileNotFoundError at once."""
    pause_s = config.pause_s
    for _ in range(config.tries - 1):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise
        except OSError:
            time.sleep(pause_s)
        pause_s *= 2
    return path.read_bytes()
