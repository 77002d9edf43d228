"""The durable results of a job: a Parquet dataset with a row for each clip, readable with any Parquet tool while it grows.

The row follows the file: a clip is done when its video is complete under its name, and then its row is written.
"""

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from ovi_ray.events import ClipStatus

RESULTS_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),  # of the prompt list, from 0
        pa.field("repeat", pa.int32(), nullable=False),  # from 0, of each_example_n_times
        pa.field("text_prompt", pa.string(), nullable=False),  # as given
        pa.field("prompt", pa.string(), nullable=False),  # as encoded
        pa.field("image_path", pa.string()),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("model_name", pa.string(), nullable=False),
        pa.field("sample_steps", pa.int32(), nullable=False),
        pa.field("solver_name", pa.string(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("status", pa.string(), nullable=False),  # done or failed
        pa.field("error", pa.string()),
        pa.field("video_path", pa.string()),  # relative to the output folder
        pa.field("num_frames", pa.int32()),
        pa.field("num_samples", pa.int32()),  # of sound, at 16 kHz
        pa.field("video_bytes", pa.int64()),
        pa.field("worker", pa.string()),  # that denoised it
        pa.field("decode_worker", pa.string()),
        pa.field("node", pa.string()),  # of `worker`
        pa.field("device", pa.string()),  # of `worker`
        pa.field("attention_backend", pa.string()),  # that ran
        pa.field("dtype", pa.string(), nullable=False),
        pa.field("attempts", pa.int32(), nullable=False),  # denoises begun, failed ones too
        pa.field("encode_s", pa.float64()),  # its share of its text's batch, and its first frame
        pa.field("denoise_s", pa.float64()),
        pa.field("decode_s", pa.float64()),
        pa.field("finished_at", pa.timestamp("ms", tz="UTC"), nullable=False),
    ]
)
RESULTS = "results"
VIDEOS = "videos"
POSTERS = "posters"
FLUSH_ROWS = 1000
FLUSH_S = 2.0


class Ledger:
    """A job's results in its output folder. One process writes at a time."""

    def __init__(self, output_dir: Path) -> None:
        self.output_dir = output_dir
        self.results = output_dir / RESULTS
        self.videos = output_dir / VIDEOS
        self.posters = output_dir / POSTERS
        for folder in (self.results, self.videos, self.posters):
            folder.mkdir(parents=True, exist_ok=True)
        self._rows: list[dict[str, Any]] = []
        self._flushed_at = time.monotonic()

    def video_path(self, clip_id: str) -> Path:
        """Where a clip's video lies."""
        return self.videos / f"{clip_id}.mp4"

    def poster_path(self, clip_id: str) -> Path:
        """Where a clip's still lies."""
        return self.posters / f"{clip_id}.jpg"

    def read(self) -> pa.Table:
        """All rows that are written, the last one of each clip."""
        table = pa.concat_tables(
            [RESULTS_SCHEMA.empty_table(), *(pa.parquet.read_table(path) for path in self._fragments())]
        )
        last = {clip_id: index for index, clip_id in enumerate(table.column("clip_id").to_pylist())}
        return table if len(last) == len(table) else table.take(pa.array(last.values(), pa.int64()))

    def resume(self) -> frozenset[str]:
        """Ids of the clips that are done already: their row says so and their video is there.

        All other rows are taken out, because their clips are rendered again if the job still asks for them.
        """
        fragments = self._fragments()
        if not fragments:
            return frozenset()
        table = self.read()
        videos = {path.stem for path in self.videos.glob("*.mp4")}
        columns = (table.column(name).to_pylist() for name in ("clip_id", "status"))
        keep = [status == ClipStatus.DONE and clip_id in videos for clip_id, status in zip(*columns, strict=True)]
        table = table.filter(pa.array(keep, pa.bool_()))
        self._write(table)
        for path in fragments:  # only now: a crash in between leaves rows twice, and `read` takes the last
            path.unlink()
        return frozenset(table.column("clip_id").to_pylist())

    def append(self, row: dict[str, Any]) -> None:
        """Add a clip's row; it is on disk after at most a few seconds of further appends, or `flush`."""
        self._rows.append(row)
        if len(self._rows) >= FLUSH_ROWS:
            self.flush()

    def flush_if_due(self) -> None:
        """Write what has waited for long enough."""
        if time.monotonic() - self._flushed_at >= FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write every row that was appended."""
        self._flushed_at = time.monotonic()
        if self._rows:
            self._write(pa.Table.from_pylist(self._rows, schema=RESULTS_SCHEMA))
            self._rows.clear()

    def _fragments(self) -> list[Path]:
        """Files of the dataset, oldest first."""
        return sorted(self.results.glob("part-*.parquet"))

    def _write(self, table: pa.Table) -> None:
        path = self.results / f"part-{time.time_ns():020d}.parquet"
        temporary = path.with_name(f".{path.name}.tmp")  # a dataset reader passes over hidden files
        pa.parquet.write_table(table, temporary)
        temporary.replace(path)
