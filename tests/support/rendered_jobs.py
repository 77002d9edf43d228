"""Jobs that are rendered without Ray: their videos are real, and black."""

import contextlib
import functools

import numpy as np

from ovi.config import Architecture
from ovi.media.video import VideoWriter
from ovi.weights.digest import fingerprint
from ovi.weights.formats import WeightFormat
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.inputs.manifest import build_manifest
from ovi_ray.preparation import PreparedJob
from ovi_ray.rendering import RenderOptions, render
from ovi_ray.storage.paths import atomic_write, to_location
from ovi_ray.weights.digests import cached_file_digest
from tests.support.fake_executor import FakeExecutor


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


def render_job(prompts, ckpt_dir, output_dir, *, script=None, **options):
    """Render a list; `options` are fields of the job, `script` is that of FakeExecutor."""
    job = JobSpec.from_options(prompts=prompts, ckpt_dir=ckpt_dir, output_dir=output_dir, dtype="float32", **options)
    executor = RenderingExecutor(script=script)
    return render(
        unchecked(job, ckpt_dir),
        options=RenderOptions(),
        open_executor=lambda job, config: contextlib.nullcontext(executor),
        clock=executor.clock,
    )
