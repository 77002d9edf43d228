"""A driver as `ovi-ray render` runs it, with short pauses. Its argument is a `Run` as JSON."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from ovi_ray.errors import JobStopped, OviRayError
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.prepare import prepare
from ovi_ray.render import RenderOptions, render
from ovi_ray.runtime import storage_pause as storage
from ovi_ray.runtime.shutdown import Stop, stop_on_signals
from tests.support.waiting import PATIENCE_S
from tests.support.worker_hooks import fail_writes


@dataclass(kw_only=True, slots=True, frozen=True)
class Run:
    """The settings of one driver."""

    prompts: str
    ckpt_dir: str
    out: str
    workers: int
    checkpoint_s: float
    silence_s: float
    address: str
    """Address of a Ray cluster; empty for a Ray on this machine alone."""


def main() -> int:
    run = Run(**json.loads(sys.argv[1]))
    storage.PROBE_S = 0.2  # repaired storage is noticed sooner, so that tests end sooner
    if seed := os.environ.get("HOOKS_FAILING_WRITES"):
        fail_writes(seed)
    stop = Stop()
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
    return 1 if result.failed else 0


def _render(run: Run, stop: Stop):
    job = JobSpec.from_options(
        prompts=Path(run.prompts),
        ckpt_dir=Path(run.ckpt_dir),
        output_dir=run.out,
        workers=run.workers,
        address=run.address or None,
        dtype="float32",
    )
    options = RenderOptions(checkpoint_s=run.checkpoint_s, silence_s=run.silence_s)
    return render(prepare(job), options=options, stop=stop, tell=lambda text: print(text, flush=True))


if __name__ == "__main__":
    sys.exit(main())
