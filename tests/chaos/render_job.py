"""A driver as `ovi-ray render` runs it, with workers that log what they do: LIST CKPTS OUT WORKERS CHECKPOINT_S SILENCE_S."""

import functools
import sys
from pathlib import Path

import ray

from ovi_ray.errors import JobStopped, OviRayError
from ovi_ray.job import JobSpec
from ovi_ray.preflight import prepare
from ovi_ray.render import RenderOptions, render
from ovi_ray.stopping import Stop, stop_on_signals


def main() -> int:
    prompts, ckpt_dir, out, workers, checkpoint_s, silence_s = sys.argv[1:]
    ray.init = functools.partial(ray.init, runtime_env={"worker_process_setup_hook": "tests.chaos.hooks.install"})
    job = JobSpec.from_options(
        prompts=Path(prompts), ckpt_dir=Path(ckpt_dir), output_dir=Path(out), workers=int(workers), dtype="float32"
    )
    options = RenderOptions(checkpoint_s=float(checkpoint_s), silence_s=float(silence_s))
    stop = Stop()
    try:
        with stop_on_signals(stop, grace_s=10.0):
            result = render(prepare(job), options=options, stop=stop, tell=lambda text: print(text, flush=True))
    except (JobStopped, KeyboardInterrupt):
        print("stopped", flush=True)
        return 130
    except OviRayError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        return 2
    print(f"ended: {result}", flush=True)
    return 1 if result.failed else 0


if __name__ == "__main__":
    sys.exit(main())
