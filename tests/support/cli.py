"""The program as a user starts it: a process of its own."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support.waiting import PATIENCE_S

ROOT = Path(__file__).parents[2]
OVI_RAY = (sys.executable, "-c", "from ovi_ray.cli import main; main()")


def ovi_ray(
    *arguments: object, code: int = 0, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `ovi-ray` to its end and check its exit code."""
    result = subprocess.run(
        [*OVI_RAY, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200", **(environment or {})},
        timeout=PATIENCE_S,
        check=False,
    )
    assert result.returncode == code, result.stderr
    return result
