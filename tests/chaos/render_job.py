"""A driver as `ovi-ray render` runs it, with workers that log what they do. Its argument is a `Run` as JSON."""

import functools
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import ray

from ovi_ray.errors import JobStopped, OviRayError
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.preparation import prepare
from ovi_ray.protocol.observer import MessageObserver
from ovi_ray.rendering import RenderOptions, render
from ovi_ray.runtime.driver import DriverConfig
from ovi_ray.runtime.ray_executor import ExecutorConfig
from ovi_ray.runtime.shutdown import StopRequest, stop_on_signals
from ovi_ray.runtime.storage_pause import StoragePauseConfig
from tests.chaos.hooks import fail_writes


@dataclass(kw_only=True, slots=True, frozen=True)
class Run:
    """What one driver is started with."""

    prompts: str
    ckpt_dir: str
    out: str
    workers: int
    checkpoint_s: float
    silence_s: float
    address: str
    """Of a Ray cluster; empty for a Ray on this machine alone."""


def main() -> int:
    run = Run(**json.loads(sys.argv[1]))
    if seed := os.environ.get("CHAOS_FAILING_WRITES"):
        fail_writes(seed)
    stop = StopRequest()
    try:
        with stop_on_signals(stop, grace_s=10.0):
            result = _render(run, stop)
    except (JobStopped, KeyboardInterrupt):
        print("stopped", flush=True)
        return 130
    except OviRayError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        return 2
    print(f"ended: {result}", flush=True)
    return 1 if result.failed else 0


def _render(run: Run, stop: StopRequest):
    ray.init = functools.partial(ray.init, runtime_env=_worker_environment())
    job = JobSpec.from_options(
        prompts=Path(run.prompts),
        ckpt_dir=Path(run.ckpt_dir),
        output_dir=run.out,
        workers=run.workers,
        address=run.address or None,
        dtype="float32",
    )
    options = RenderOptions(
        checkpoint_s=run.checkpoint_s,
        executor=ExecutorConfig(unresponsive_after_s=run.silence_s),
        driver=DriverConfig(storage=StoragePauseConfig(probe_interval_s=0.2)),  # recovered storage is noticed sooner
    )
    observer = MessageObserver(lambda text: print(text, flush=True))
    return render(prepare(job), options=options, stop=stop, observer=observer)


def _worker_environment() -> dict[str, object]:
    """Workers on the nodes of a cluster have the environment of their node, not of this process."""
    wanted = {name: value for name, value in os.environ.items() if name.startswith(("CHAOS_", "PYTHONPATH", "OMP_"))}
    return {"worker_process_setup_hook": "tests.chaos.hooks.install", "env_vars": wanted}


if __name__ == "__main__":
    sys.exit(main())
