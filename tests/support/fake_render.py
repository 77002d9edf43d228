"""Jobs without Ray: real videos in a real output folder, from an executor that renders nothing.

`python -m tests.support.fake_render OUT` is a driver whose second clip never ends.
"""

import contextlib
import json
import sys
from pathlib import Path

from ovi.config import Architecture
from ovi.stages import Stage
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.inputs.manifest import build_manifest
from ovi_ray.preparation import PreparedJob
from ovi_ray.rendering import RenderOptions, render
from ovi_ray.runtime.background_writer import WriteInterval
from ovi_ray.runtime.clock import SystemClock
from ovi_ray.storage.paths import to_location
from tests.support.fake_executor import HANGS
from tests.support.recording_observer import RecordingObserver
from tests.support.rendered_jobs import RenderingExecutor

CKPTS = Path(__file__).parents[1] / "data" / "tiny" / "ckpts"
ALWAYS = WriteInterval(seconds=0.0, share=1.0)


def prepared_job(out, rows, folder, **options):
    """A checked job of rows, each a text or a mapping; its list is written into `folder`."""
    path = Path(folder) / "prompts.jsonl"
    rows = ({"text_prompt": row} if isinstance(row, str) else row for row in rows)
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    job = JobSpec.from_options(
        prompts=path, ckpt_dir=CKPTS, output_dir=out, **{"sample_steps": 4, "dtype": "float32", **options}
    )
    manifest = build_manifest(job, Architecture.read(CKPTS), weights=lambda name: "weights", numerics=job.numerics)
    return PreparedJob(job=job, manifest=manifest)


def render_job(out, rows, folder, *, executor=None, observer=None, options=None, **job_options):
    """Render rows into `out`; returns the result."""
    executor = executor or RenderingExecutor()
    return render(
        prepared_job(out, rows, folder, **job_options),
        options=options or RenderOptions(progress=ALWAYS),
        observer=observer or RecordingObserver(),
        open_executor=lambda job, config: contextlib.nullcontext(executor),
        clock=executor.clock,
    )


def _drive(out):
    def script(worker, task, tries):
        return HANGS if task.stage is Stage.DENOISE and task.items == (1,) else None

    Path(out).mkdir(parents=True, exist_ok=True)
    executor = RenderingExecutor(("w0", "w1"), script=script, clock=SystemClock())
    render_job(to_location(out), ["a fox", "a dog"], Path(out).parent, executor=executor)


if __name__ == "__main__":
    _drive(sys.argv[1])
