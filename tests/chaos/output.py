"""The output location of a chaos job, on a disk or in a store: what the suite reads and damages there."""

import io
from pathlib import Path

import av
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
from pyarrow.fs import FileSelector, FileSystem

from tests.support.jobs import NUM_FRAMES


class Output:
    """Files by their names in the folder: `videos/<clip_id>.mp4`."""

    def __init__(self, out: str) -> None:
        """`out` is a path from the root, or a URI that pyarrow can open."""
        self._files, self._root = FileSystem.from_uri(out)

    def names(self, folder: str) -> list[str]:
        """The complete files of a folder."""
        found = self._files.get_file_info(FileSelector(f"{self._root}/{folder}", allow_not_found=True))
        return sorted(f"{folder}/{file.base_name}" for file in found if not file.base_name.startswith("."))

    def videos(self) -> list[str]:
        return [name for name in self.names("videos") if Path(name).suffix == ".mp4"]

    def latents(self) -> list[str]:
        return self.names("latents")

    def results(self) -> pa.Table:
        """Every row of the results."""
        return pyarrow.dataset.dataset(f"{self._root}/results", filesystem=self._files, format="parquet").to_table()

    def table(self, name: str) -> pa.Table:
        return pyarrow.parquet.read_table(f"{self._root}/{name}", filesystem=self._files)

    def decodes(self, video: str) -> bool:
        """Whether a video can be read to its end and has every frame, and sound."""
        content = self._read(video)
        try:
            with av.open(io.BytesIO(content)) as container:
                frames = sum(1 for _ in container.decode(video=0))
            with av.open(io.BytesIO(content)) as container:
                samples = sum(frame.samples for frame in container.decode(audio=0))
        except (av.FFmpegError, IndexError):
            return False
        return frames == NUM_FRAMES and samples > 0

    def remove(self, name: str) -> None:
        self._files.delete_file(f"{self._root}/{name}")

    def truncate(self, name: str, size: int = 500) -> None:
        self._write(name, self._read(name)[:size])

    def flip_a_byte(self, name: str) -> None:
        content = bytearray(self._read(name))
        content[-50] ^= 1
        self._write(name, bytes(content))

    def _read(self, name: str) -> bytes:
        with self._files.open_input_file(f"{self._root}/{name}") as file:
            return file.read()

    def _write(self, name: str, content: bytes) -> None:
        with self._files.open_output_stream(f"{self._root}/{name}") as file:
            file.write(content)
