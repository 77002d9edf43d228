"""`make chaos`: random kills during a long job with a worker that always runs out of memory at denoise, then the same command
until it is finished. The last line is JSON.

Exit code 1 when a clip is lost, doubled or undecodable, when a good video was set aside, or when more was denoised twice than
is documented.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from tests.chaos.harness import ChaosJob
from tests.chaos.nodes import Nodes
from tests.support.s3 import running_s3
from tests.support.waiting import under_load

T = TypeVar("T")

MAX_STEPS_BETWEEN = 30  # denoising steps of all workers, between two kills
MAX_WAIT_S = 60.0  # for these steps
MAX_QUIET_RUNS = 5  # without a kill, to finish the job: a clip that crashed three workers alone waits for the next run
START_S = 60.0  # without an answer, after which a worker that is being started is replaced
FROZEN_S = 20.0  # of silence, after which a frozen worker is replaced
AWAY_S = (1.0, 20.0)  # for which the output fails
AWAY = ("ENOENT", "EPERM", "EACCES", "ESTALE", "EIO", "ENOTCONN", "ETIMEDOUT", "EROFS", "EDQUOT", "ENOSPC")
LOCKS = (".driver.lock", ".driver.lock/lease.json")  # on a disk, in a store


class Chaos:
    """Injects random faults into a job and counts the denoising steps that they may cost."""

    def __init__(self, job: ChaosJob, nodes: Nodes | None, rng: random.Random) -> None:
        self._job = job
        self._nodes = nodes
        self._rng = rng
        self._ways: list[Callable[[], None]] = []
        self._errors: list[str] = []
        self.kills = 0
        self.steps_allowed = 0
        """Steps that may be denoised twice: one for each worker that dies, all of a clip for each file that is damaged.

        And those that were taken while the output was away, which could not be saved.
        """
        self.videos_damaged = 0

    def steps_until_next(self) -> int:
        """Denoising steps of all workers until the next fault."""
        return self._rng.randint(0, MAX_STEPS_BETWEEN)

    def inject_fault(self) -> None:
        """Inject one random fault, once the job has workers."""
        if not self._job.worker_pids():
            return
        way = self._drawn(self._ways, self._all_ways())
        way()
        self.tell(way.__name__.strip("_").replace("_", " "))

    def _drawn(self, deck: list[T], cards: Sequence[T]) -> T:
        """The next card of a deck, which is shuffled anew when it is empty: each card is drawn as often as the others."""
        if not deck:
            deck += self._rng.sample(cards, len(cards))
        return deck.pop()

    def _all_ways(self) -> list[Callable[[], None]]:
        ways = [self._kill_worker] * 12 + [
            self._freeze_worker,
            self._kill_driver,
            self._stop_driver,
            self._corrupt_file,
            self._let_output_fail,
            self._let_output_fail,
            self._move_output_away,
            self._remove_lock,
            self._verify_with_unreadable_videos,
        ]
        if self._nodes is not None:
            ways.append(self._replace_node)
        return ways

    def tell(self, what: str) -> None:
        """Print the time, the fault, and the progress of the job."""
        print(
            f"{time.strftime('%H:%M:%S')} {what}: {self.kills} kills, {len(self._job.output.videos())} videos,"
            f" {self.steps_allowed} steps may be repeated",
            flush=True,
        )

    def _kill_worker(self, how: int = signal.SIGKILL) -> None:
        pids = sorted(self._job.worker_pids())
        if pids:
            os.kill(self._rng.choice(pids), how)
            self._count(workers=1)

    def _freeze_worker(self) -> None:
        self._kill_worker(signal.SIGSTOP)

    def _replace_node(self) -> None:
        """Kill a whole node and add another one."""
        self._nodes.kill(self._rng.choice(self._nodes.all()), self._job)
        self._nodes.add()
        self._count(workers=1)

    def _kill_driver(self) -> None:
        os.killpg(self._job.driver.pid, signal.SIGKILL)
        self._job.finish()
        self._count(workers=self._job.workers)

    def _stop_driver(self) -> None:
        self._job.driver.send_signal(signal.SIGTERM)
        self._job.finish()
        self._count(workers=self._job.workers)

    def _corrupt_file(self) -> None:
        """Truncate a video, or corrupt latents, and kill the driver, so that the next one finds it."""
        self._kill_driver()
        output = self._job.output
        files = [*output.videos(), *output.latents()]
        if files:
            damaged = self._rng.choice(files)
            output.truncate(damaged)
            self.steps_allowed += self._job.steps
            self.videos_damaged += damaged.startswith("videos/")

    def _let_output_fail(self) -> None:
        """Everything that is asked of the output fails for a while: an unmounted share, an expired ticket, a full disk."""
        error = self._drawn(self._errors, AWAY)
        self.tell(f"the output fails with {error}")
        with self._output_away():
            self._job.let_output_fail(error)
            time.sleep(self._rng.uniform(*AWAY_S))
            self._job.let_output_work()

    def _move_output_away(self) -> None:
        """The output folder is not there for a while, and neither is anything in its place."""
        out = Path(self._job.out)
        if "://" in self._job.out or not out.is_dir():
            return
        with self._output_away():
            out.rename(out.with_name("away"))
            time.sleep(self._rng.uniform(*AWAY_S))
            out.with_name("away").rename(out)

    @contextmanager
    def _output_away(self) -> Iterator[None]:
        """The output is away for the time of the block, in which nothing is saved: a worker that dies may cost its steps."""
        before = self._job.steps_done()
        yield
        self.steps_allowed += self._job.steps_done() - before
        self._count(workers=0)

    def _remove_lock(self) -> None:
        for lock in LOCKS:
            with suppress(OSError):
                self._job.output.remove(lock)
        self._count(workers=0)

    def _verify_with_unreadable_videos(self) -> None:
        """Kill the driver; the next one reads every finished video, and cannot read half of them."""
        self._kill_driver()
        self._job.verify = True
        self._job.hooks["unreadable"] = self.kills
        self._job.start()
        self._job.verify = False
        del self._job.hooks["unreadable"]

    def _count(self, *, workers: int) -> None:
        self.kills += 1
        self.steps_allowed += workers


def main() -> int:
    options = _options()
    started = time.monotonic()
    with ExitStack() as ends:
        folder = ends.enter_context(tempfile.TemporaryDirectory(prefix="ovi-ray-chaos-"))
        out = _bucket(ends, Path(folder)) if options.store else options.out
        nodes = ends.enter_context(closing(Nodes(options.workers))) if options.nodes else None
        job = ChaosJob(
            folder=Path(folder),
            out=out,
            clips=options.clips,
            steps=options.steps,
            step_s=0.1,
            workers=options.workers,
            silence_s=FROZEN_S,
            start_timeout_s=under_load(START_S),
            address=nodes.address if nodes else "",
        )
        ends.enter_context(closing(job))
        chaos = Chaos(job, nodes, random.Random(options.seed))
        if options.out_of_memory:
            job.hooks["out_of_memory"] = "any"
        _run(job, chaos, options.kills)
        figures = job.figures()
    good_set_aside = max(0, figures.set_aside - chaos.videos_damaged)
    counts = {"kills": chaos.kills, **asdict(figures), "denoise_steps_allowed": chaos.steps_allowed}
    print(json.dumps({**counts, "good_videos_set_aside": good_set_aside, "seconds": round(time.monotonic() - started)}))
    is_right = figures.are_right and not good_set_aside
    return 0 if is_right and figures.denoise_steps_repeated <= chaos.steps_allowed else 1


def _bucket(ends: ExitStack, folder: Path) -> str:
    """An output location on an S3 server that this job starts."""
    server = ends.enter_context(running_s3(folder))
    os.environ.update(server.environment)  # for drivers, nodes and workers
    return f"{server.new_bucket()}/out"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=300)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--steps", type=int, default=40, help="of each clip's denoise")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the random faults")
    parser.add_argument(
        "--out", default="", help="where the job is written, a path or a URI; a temporary folder if not given"
    )
    parser.add_argument("--store", action="store_true", help="write to an S3 server that this command starts")
    parser.add_argument(
        "--nodes",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="each worker on a node of its own, which dies too; else each driver starts a Ray of one node",
    )
    parser.add_argument(
        "--out-of-memory",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="one worker runs out of memory in each of its tasks, so there must be two",
    )
    return parser.parse_args()


def _run(job: ChaosJob, chaos: Chaos, kills: int) -> None:
    job.start()
    while chaos.kills < kills and len(job.output.videos()) < job.clips:
        _let_work(job, chaos.steps_until_next())
        if job.driver.poll() is None:
            chaos.inject_fault()
        if job.driver.poll() is not None:
            chaos.tell(f"the driver ended with {job.driver.returncode}, the next one starts")
            job.start()
    for _ in range(MAX_QUIET_RUNS):
        chaos.tell("no more faults")
        if job.finish(3600) == 0:
            break
        job.start()


def _let_work(job: ChaosJob, steps: int) -> None:
    """Wait until the workers have taken some steps, or too long for them to have any left."""
    goal, deadline = job.steps_done() + steps, time.monotonic() + MAX_WAIT_S
    while job.steps_done() < goal and job.driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
