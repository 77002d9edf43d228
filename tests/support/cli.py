"""The program as a user starts it, in a process of its own; and in this one, without imports, for what starts no Ray."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from click.testing import Result
from typer.testing import CliRunner

from ovi_ray.cli import app
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


def ovi_ray_here(*arguments: object, code: int = 0) -> Result:
    """Run `ovi-ray` in this process, and check its exit code."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result
