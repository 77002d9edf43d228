"""What the processes of a chaos job do beside their work: they log what they are at, and hurt themselves where asked.

The environment says what: CHAOS_LOG is the folder of the logs, CHAOS_STEP_S the pause in each step, CHAOS_FAILING_WRITES the
seed of the writes that fail, CHAOS_POISON the seed of the clip whose denoise kills.
"""

import errno
import os
import random
import signal
import time
from pathlib import Path

FAILING = 0.2  # of the writes, where writes fail


def born(pid: int) -> str:
    """When a process started, in the kernel's ticks: with its id it tells the process from every other; empty when dead."""
    return "" if _stat(pid)[0] == "Z" else _stat(pid)[19]


def parent(pid: int) -> int:
    """The process that started another; 0 when that is dead."""
    return int(_stat(pid)[1] or 0)


def _stat(pid: int) -> list[str]:
    """What the kernel says of a process, from its state on; nothing when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return [""] * 20
    return stat.rpartition(")")[2].split()


def install() -> None:
    """Run in each worker process before anything else."""
    _file("born").write_text(born(os.getpid()), encoding="utf-8")
    _count_steps()
    _tell_stages()
    if seed := os.environ.get("CHAOS_FAILING_WRITES"):
        fail_writes(seed)
    if seed := os.environ.get("CHAOS_POISON"):
        _poison(int(seed))


def fail_writes(seed: str) -> None:
    """Let one write in five fail, from now on in this process: all that lasts is written aside and put in place so."""
    rng, replace = random.Random(seed), Path.replace

    def failing_replace(self, target):
        if rng.random() < FAILING:
            _log("failed-writes", b".")
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(target))
        return replace(self, target)

    Path.replace = failing_replace


def _log(what: str, content: bytes) -> None:
    with _file(what).open("ab", buffering=0) as log:
        log.write(content)


def _file(what: str) -> Path:
    return Path(os.environ["CHAOS_LOG"]) / f"{os.getpid()}.{what}"


def _pause() -> None:
    time.sleep(float(os.environ["CHAOS_STEP_S"]))


def _count_steps() -> None:
    from ovi.pipeline import OviPipeline

    denoise = OviPipeline.denoise

    def counted_denoise(self, *args, on_step=None, **kwargs):
        def counted(done, total):
            _log("steps", b".")
            _pause()
            on_step(done, total)

        return denoise(self, *args, on_step=counted, **kwargs)

    OviPipeline.denoise = counted_denoise


def _tell_stages() -> None:
    from ovi_ray.workers.actor import Worker

    work = Worker._work

    def told_work(self, order, inputs):
        _file("stage").write_text(type(order.work).__name__, encoding="utf-8")
        try:
            _pause()
            return work(self, order, inputs)
        finally:
            _file("stage").unlink(missing_ok=True)

    Worker._work = told_work


def _poison(seed: int) -> None:
    from ovi_ray.protocol.messages import Denoise
    from ovi_ray.workers.actor import Worker

    work = Worker._work

    def deadly_work(self, order, inputs):
        if isinstance(order.work, Denoise) and order.work.params.seed == seed:
            os.kill(os.getpid(), signal.SIGKILL)
        return work(self, order, inputs)

    Worker._work = deadly_work
