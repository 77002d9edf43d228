"""The preStop hooks of pods, run in a PID namespace whose first process, as in a pod, is a shell that passes no signal on."""

import os
import shutil
import subprocess

import pytest

from ovi_ray.submission.kubernetes_manifest import HEAD_PRE_STOP, WORKER_PRE_STOP

NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


def why_not() -> str:
    """Why there cannot be a pod here; "" if there can."""
    if missing := [program for program in ("unshare", "pgrep", "pkill") if shutil.which(program) is None]:
        return f"{', '.join(missing)} not installed"
    tried = subprocess.run([*NAMESPACE, "true"], capture_output=True, text=True, check=False)
    return f"no PID namespace can be made here: {tried.stderr.strip()}" if tried.returncode else ""


pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(why_not()), reason=why_not())]

POD = """\
bash -c 'exec -a "{title}" bash -c "trap \\"sleep 1; echo saved; exit\\" TERM; {child} sleep 600 & wait"' &
until pgrep -f '{title}' >/dev/null; do sleep 0.1; done
sleep 0.5
sh -c "$HOOK"
echo hook ended
kill -KILL -1
"""


def run_pod(script: str, hook: str) -> list[str]:
    """The lines that the processes of a pod print until its hook has ended."""
    done = subprocess.run(
        [*NAMESPACE, "bash", "-s"],
        input=script,  # not an argument, which the hook would find
        capture_output=True,
        text=True,
        env={**os.environ, "HOOK": hook},
        timeout=60,
        check=False,
    )
    return done.stdout.splitlines()


def test_a_head_that_must_end_waits_until_its_driver_has_saved():
    script = POD.format(title="python -m ovi_ray render job.yaml --address auto", child="")
    assert run_pod(script, HEAD_PRE_STOP) == ["saved", "hook ended"]


def test_a_worker_that_must_end_waits_until_its_ray_has_drained(tmp_path):
    shutil.copy("/bin/sleep", tmp_path / "raylet")
    script = POD.format(title="/usr/bin/python /usr/bin/ray start --block", child=f"exec {tmp_path}/raylet 3 & ")
    assert run_pod(script, WORKER_PRE_STOP) == ["saved", "hook ended"]


def test_a_hook_with_nothing_to_save_ends_at_once():
    assert run_pod('sh -c "$HOOK"; echo hook ended', WORKER_PRE_STOP) == ["hook ended"]
