"""The program as a user starts it: a process of its own."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.waiting import PATIENCE_S

ROOT = Path(__file__).parents[2]
OVI_RAY = (sys.executable, "-m", "ovi_ray")
WITHOUT_POSIX = (sys.executable, "-m", "tests.support.without_posix")


def ovi_ray(
    *arguments: object,
    code: int = 0,
    environment: Mapping[str, str] | None = None,
    program: Sequence[str] = OVI_RAY,
) -> subprocess.CompletedProcess[str]:
    """Run `ovi-ray` to its end and check its exit code."""
    result = subprocess.run(
        [*program, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200", **(environment or {})},
        timeout=PATIENCE_S,
        check=False,
    )
    assert result.returncode == code, result.stderr
    return result
