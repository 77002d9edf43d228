"""`cluster/bare/rack` on machines that are folders, with a Python that starts no Ray; its ssh is up to the test."""

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.support.cli import ROOT

RACK = ROOT / "cluster" / "bare" / "rack"
VERSION = "ovi-ray 1.2.3 (Python 3.11.7)\n"
PYTHON = """\
#!/bin/bash
case $* in
"-m ovi_ray --version") cat "$HOME/version"; exit ;;
esac
echo "$* token=$(cat "$RAY_AUTH_TOKEN_PATH") mode=$RAY_AUTH_MODE version=$(python -m ovi_ray --version)" >>"$HOME/started"
if [ -e "$HOME/broken" ]; then printf '\\e[31mno GCS\\e[39m\\n' && exit 1; fi
exec -a "raylet $TMPDIR/ovi-rack/session" sleep 600
"""


class Rack:
    """Machines that are folders."""

    def __init__(self, folder: Path, *, machines: Iterable[str], hosts: str, ssh: str) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        for name, text in (("ssh", ssh), ("stub", PYTHON)):
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)
        for machine in machines:
            (folder / machine).mkdir()
            (folder / machine / "version").write_text(VERSION)
        (folder / "hosts.txt").write_text(hosts)

    def run(self, action: str) -> subprocess.CompletedProcess[str]:
        """Run `rack`, whatever its exit code."""
        environment = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "OVI_PYTHON": str(self.folder / "bin" / "stub"),
        }
        return subprocess.run(
            [RACK, action, self.folder / "hosts.txt"], capture_output=True, text=True, env=environment, check=False
        )

    def __call__(self, action: str, *, code: int = 0) -> dict[str, str]:
        """The words of `rack` on each machine."""
        done = self.run(action)
        assert done.returncode == code, done.stdout + done.stderr
        return dict(line.split(": ", 1) for line in (done.stdout + done.stderr).splitlines() if ": " in line)

    def starts(self, machine: str) -> list[str]:
        """The commands that were to start Ray on a machine."""
        path = self.folder / machine / "started"
        return path.read_text().splitlines() if path.exists() else []
