"""A job on a machine that is not as one would wish: as Slurm leaves it, with a terminal that is closed."""

import contextlib
import fcntl
import os
import re
import subprocess
import termios
from pathlib import Path

import pytest

from ovi_ray.cli.common import ExitCode
from tests.support.cli import OVI_RAY, ROOT
from tests.support.waiting import PATIENCE_S, wait_until
from tests.support.worker_hooks import hooked_environment

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_closed_terminal_saves_what_runs_and_long_names_of_temporary_folders_do_not_matter(tiny_dir, tmp_path):
    log, out = tmp_path / "log", tmp_path / "out"
    temporary = tmp_path / "scratch-local-slurm-user" / "scratch-local-slurm-user" / "scratch-local-slurm-user"
    temporary.mkdir(parents=True)
    environment = hooked_environment(log, step_s=0.1)
    (log / "hold.Denoise").touch()
    master, slave = os.openpty()
    driver = subprocess.Popen(
        [*OVI_RAY, "render", "A fox", "--ckpt-dir", tiny_dir, "--out", out, "--workers", "1", "--sample-steps", "200"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=ROOT,
        env={**os.environ, **environment, "TMPDIR": str(temporary), "RAY_ADDRESS": "no-such-host.invalid:6379"},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(slave)
    os.set_blocking(master, False)
    try:
        wait_until(lambda: read(master) or list(log.glob("*.held")), give_up=lambda: ended(driver))
        os.close(master)  # SIGHUP to the driver, to Ray and to the workers
        (log / "hold.Denoise").unlink()
        assert driver.wait(PATIENCE_S) == ExitCode.HUNG_UP
    finally:
        driver.kill()
        driver.wait()
    assert len(list((out / "checkpoints").iterdir())) == 1
    told = (out / "run.log").read_text()
    assert "RAY_ADDRESS" in told
    session = re.search(r"Ray's session is in (\S+), ", told)[1]
    assert not Path(session).exists()


def read(terminal):
    """Take what was written to a terminal, so that the writer does not wait for a reader."""
    with contextlib.suppress(BlockingIOError):
        os.read(terminal, 1 << 16)


def ended(driver):
    return "" if driver.poll() is None else f"the driver ended with {driver.returncode}"
