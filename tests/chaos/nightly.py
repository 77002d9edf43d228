"""`make chaos`: random kills over a long job, then the same command until it is finished. The last line is JSON.

Exit code 1 when a clip is lost, doubled or undecodable, or when more was denoised twice than is documented.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from tests.chaos.harness import ChaosJob, Figures

MAX_STEPS_BETWEEN = 30  # denoising steps of all workers, between two kills
MAX_WAIT_S = 60.0  # for these steps
MAX_QUIET_RUNS = 5  # without a kill, to finish the job: a clip that was alone with three crashes waits for the next run
FROZEN_S = 20.0  # after which a frozen worker is replaced


class Chaos:
    """Hurts a job at random and keeps count of what that may cost."""

    def __init__(self, job: ChaosJob, rng: random.Random) -> None:
        self._job = job
        self._rng = rng
        self.kills = 0
        self.steps_allowed = 0
        """Steps that may be denoised twice: one for each worker that dies, a whole clip for each file that is damaged."""

    def hurt(self) -> None:
        """Do one random thing to the job, once it has workers."""
        if not self._job.worker_pids():
            return
        ways = [self._kill_worker] * 12 + [self._freeze_worker, self._kill_driver, self._stop_driver, self._damage]
        self._rng.choice(ways)()

    def _kill_worker(self, how: int = signal.SIGKILL) -> None:
        pids = sorted(self._job.worker_pids())
        if pids:
            os.kill(self._rng.choice(pids), how)
            self._count(workers=1)

    def _freeze_worker(self) -> None:
        self._kill_worker(signal.SIGSTOP)

    def _kill_driver(self) -> None:
        os.killpg(self._job.driver.pid, signal.SIGKILL)
        self._job.finish()
        self._count(workers=self._job.workers)

    def _stop_driver(self) -> None:
        self._job.driver.send_signal(signal.SIGTERM)
        self._job.finish(120)
        self._count(workers=self._job.workers)

    def _damage(self) -> None:
        """Truncate a video, or corrupt latents, and kill the driver, so that the next one finds it."""
        self._kill_driver()
        files = [*self._job.videos(), *(self._job.out / "latents").glob("*.safetensors")]
        if files:
            os.truncate(self._rng.choice(files), 500)
            self.steps_allowed += self._job.steps

    def _count(self, *, workers: int) -> None:
        self.kills += 1
        self.steps_allowed += workers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=300)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ovi-ray-chaos-") as folder:
        job = ChaosJob(
            folder=Path(folder),
            clips=options.clips,
            steps=options.steps,
            step_s=0.1,
            workers=2,
            silence_s=FROZEN_S,
        )
        try:
            chaos = _run(job, random.Random(options.seed), options.kills)
            figures = job.figures()
        finally:
            job.close()
    print(json.dumps({"kills": chaos.kills, **asdict(figures), "seconds": round(time.monotonic() - started)}))
    return 0 if _is_right(figures) and figures.denoise_steps_repeated <= chaos.steps_allowed else 1


def _run(job: ChaosJob, rng: random.Random, kills: int) -> Chaos:
    chaos = Chaos(job, rng)
    job.start()
    while chaos.kills < kills:
        _let_work(job, rng.randint(0, MAX_STEPS_BETWEEN))
        if job.driver.poll() is None:
            chaos.hurt()
        if job.driver.poll() is not None:
            print(
                f"{chaos.kills} kills, {len(job.videos())} videos; a driver ended and the next one starts", flush=True
            )
            job.start()
        if len(job.videos()) == job.clips:
            break
    for _ in range(MAX_QUIET_RUNS):
        if job.finish(3600) == 0:
            break
        job.start()
    return chaos


def _let_work(job: ChaosJob, steps: int) -> None:
    """Wait until the workers have taken some steps, or seem to have none left to take."""
    goal, deadline = job.steps_done() + steps, time.monotonic() + MAX_WAIT_S
    while job.steps_done() < goal and job.driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)


def _is_right(figures: Figures) -> bool:
    wrong = figures.duplicates + figures.lost + figures.undecodable
    return not wrong and figures.clips == figures.rows == figures.files


if __name__ == "__main__":
    sys.exit(main())
