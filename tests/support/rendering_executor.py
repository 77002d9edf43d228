"""An executor without Ray whose decodes write real videos: what a job leaves in its folder is as it should be."""

import numpy as np

from ovi.media.video import VideoWriter
from ovi_ray.storage.paths import atomic_write, to_location
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
