"""Jobs that are rendered without Ray: their videos are real, and black.

`python -m tests.support.rendered_jobs OUT` is a driver whose second clip never ends.
"""

import contextlib
import functools
import json
import sys
from pathlib import Path

import numpy as np

from ovi.config import Architecture
from ovi.media.video import VideoWriter
from ovi.stages import Stage
from ovi.weights.digest import fingerprint
from ovi.weights.formats import WeightFormat
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.inputs.manifest import build_manifest
from ovi_ray.preparation import PreparedJob
from ovi_ray.rendering import RenderOptions, render
from ovi_ray.runtime.background_writer import WriteInterval
from ovi_ray.runtime.clock import SystemClock
from ovi_ray.storage.paths import atomic_write, to_location
from ovi_ray.weights.digests import cached_file_digest
from tests.support.fake_executor import HANGS, FakeExecutor
from tests.support.recording_observer import RecordingObserver

CKPTS = Path(__file__).parents[1] / "data" / "tiny" / "ckpts"
ALWAYS = WriteInterval(seconds=0.0, share=1.0)


class RenderingExecutor(FakeExecutor):
    """Its decodes write real videos."""

    def decode(self, work):
        with atomic_write(to_location(work.video_path)) as path:
            with VideoWriter(path, audio=np.zeros(6656, np.float32), parameters=work.parameters) as writer:
                writer.write(np.zeros((work.num_frames, 32, 32, 3), np.uint8))
            return {"num_frames": work.num_frames, "video_bytes": path.stat().st_size}

    def counts(self, kind):
        return len(self.works(kind))


class PlaceholderExecutor(FakeExecutor):
    """Its decodes write files that are no videos, which costs nothing and suffices while no run reads them."""

    def decode(self, work):
        with atomic_write(to_location(work.video_path)) as path:
            path.write_bytes(work.clip_id.encode())
        return {"num_frames": work.num_frames, "video_bytes": len(work.clip_id)}


def unchecked(job, ckpt_dir):
    """The result of `prepare`, without its check of every weight."""
    return PreparedJob(
        job=job,
        manifest=build_manifest(
            job, Architecture.read(ckpt_dir), weights=lambda name: weights_digest(ckpt_dir, name), numerics=job.numerics
        ),
    )


@functools.cache
def weights_digest(ckpt_dir, model_name):
    return fingerprint(ckpt_dir, model_name, cached_file_digest, WeightFormat.DTYPE)


def write_rows(folder, rows):
    """A prompt list of rows, each a text or a mapping."""
    path = Path(folder) / "prompts.jsonl"
    rows = ({"text_prompt": row} if isinstance(row, str) else row for row in rows)
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def render_job(out, prompts, *, ckpt_dir=CKPTS, executor=None, observer=None, options=None, **fields):
    """Render a list into `out` and return the result; `fields` are those of the job."""
    fields = {"sample_steps": 4, "dtype": "float32", **fields}
    job = JobSpec.from_options(prompts=prompts, ckpt_dir=ckpt_dir, output_dir=out, **fields)
    executor = executor or RenderingExecutor()
    return render(
        unchecked(job, ckpt_dir),
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
    render_job(to_location(out), write_rows(Path(out).parent, ["a fox", "a dog"]), executor=executor)


if __name__ == "__main__":
    _drive(sys.argv[1])
