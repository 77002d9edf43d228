"""A driver as `ovi-ray render` runs it, with short pauses. Its argument is a `Run` as JSON."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from ovi_ray.errors import JobStopped, OviRayError
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.preparation import prepare
from ovi_ray.rendering import RenderOptions, render
from ovi_ray.runtime.driver import DriverConfig
from ovi_ray.runtime.ray_executor import ExecutorConfig
from ovi_ray.runtime.shutdown import StopRequest, stop_on_signals
from ovi_ray.runtime.storage_pause import StoragePauseConfig
from tests.support.recording_observer import PrintingObserver
from tests.support.waiting import PATIENCE_S
from tests.support.worker_hooks import fail_reads, fail_storage, fail_writes


@dataclass(kw_only=True, slots=True, frozen=True)
class Run:
    """The settings of one driver."""

    prompts: str
    ckpt_dir: str
    out: str
    workers: int
    checkpoint_s: float
    silence_s: float
    start_timeout_s: float
    address: str
    """Address of a Ray cluster; empty for a Ray on this machine alone."""
    verify: bool = False


def main() -> int:
    run = Run(**json.loads(sys.argv[1]))
    if seed := os.environ.get("HOOKS_FAILING_WRITES"):
        fail_writes(seed)
    if seed := os.environ.get("HOOKS_UNREADABLE"):
        fail_reads(seed)
    fail_storage()
    stop = StopRequest()
    try:
        with stop_on_signals(stop, grace_s=PATIENCE_S):
            result = _render(run, stop)
    except (JobStopped, KeyboardInterrupt):
        print("stopped", flush=True)
        return 130
    except OviRayError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        return 2
    print(f"ended: {result}", flush=True)
    return 1 if result.failed or result.unreadable else 0


def _render(run: Run, stop: StopRequest):
    job = JobSpec.from_options(
        prompts=Path(run.prompts),
        ckpt_dir=Path(run.ckpt_dir),
        output_dir=run.out,
        workers=run.workers,
        address=run.address or None,
        dtype="float32",
        checkpoint_s=run.checkpoint_s,
    )
    options = RenderOptions(
        verify=run.verify,
        executor=ExecutorConfig(unresponsive_after_s=run.silence_s, start_timeout_s=run.start_timeout_s),
        driver=DriverConfig(storage=StoragePauseConfig(probe_interval_s=0.2)),  # recovered storage is noticed sooner
    )
    return render(prepare(job), options=options, stop=stop, observer=PrintingObserver())


if __name__ == "__main__":
    sys.exit(main())
