"""What the workers of a chaos job do beside their work: they log each step and say what they are at."""

import os
import time
from pathlib import Path


def born(pid: int) -> str:
    """When a process started, in the kernel's ticks: with its id it tells the process from every other; empty when dead."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    state, *fields = stat.rpartition(")")[2].split()
    return "" if state == "Z" else fields[18]


def install() -> None:
    """Run in each worker process before anything else: from then on its steps are counted and its stage is known."""
    from ovi.pipeline import OviPipeline
    from ovi_ray.worker import Worker

    folder, step_s = Path(os.environ["CHAOS_LOG"]), float(os.environ["CHAOS_STEP_S"])
    (folder / f"{os.getpid()}.born").write_text(born(os.getpid()), encoding="utf-8")
    denoise, work = OviPipeline.denoise, Worker._work

    def counted_denoise(self, *args, on_step=None, **kwargs):
        def counted(done, total):
            with (folder / f"{os.getpid()}.steps").open("ab", buffering=0) as log:
                log.write(b".")
            time.sleep(step_s)
            on_step(done, total)

        return denoise(self, *args, on_step=counted, **kwargs)

    def told_work(self, order, inputs):
        stage = folder / f"{os.getpid()}.stage"
        stage.write_text(type(order.work).__name__, encoding="utf-8")
        try:
            time.sleep(step_s)
            return work(self, order, inputs)
        finally:
            stage.unlink(missing_ok=True)

    OviPipeline.denoise, Worker._work = counted_denoise, told_work
