"""The row of a clip that is done or failed."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ovi.stages import TIME_GROUPS
from ovi_ray.inputs.columns import SIZE_COLUMN
from ovi_ray.inputs.params import PARAM_FIELDS, arrow_type
from ovi_ray.inputs.task_table import ClipTask
from ovi_ray.scheduling.task import ClipStatus

_PARAM_COLUMNS = tuple(name for name in PARAM_FIELDS if name != SIZE_COLUMN)
_FURTHER_PARAMS = tuple(name for name in _PARAM_COLUMNS if name not in ("seed", "sample_steps", "solver_name"))
LOSS_FIELDS = (  # null for exact clips
    pa.field("lossy_steps", pa.int32()),  # whose result shortcuts determined
    pa.field("shortcuts", pa.string()),  # such as "guidance_reuse 20, step_skipping 8": steps of each
    pa.field("left_out", pa.string()),  # shortcuts of the quality that the device has not, and why
    pa.field("passes", pa.int32()),  # of the transformer, audits included
    pa.field("audits", pa.int32()),  # steps on which the exact velocity was computed too
    pa.field("video_loss", pa.float64()),  # largest relative error that an audit found
    pa.field("audio_loss", pa.float64()),
    pa.field("exact_from_step", pa.int32()),  # from 1: a loss was beyond its bound, and the clip went on exactly
)
"""Measurements of a lossy clip."""
RESULTS_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),  # of the prompt list, from 1
        pa.field("line", pa.int64()),  # of the list's file, or row of its sheet, where the row starts
        pa.field("repeat", pa.int32(), nullable=False),  # from 0, of each_example_n_times
        pa.field("key", pa.string()),  # of the row, as the list gives it
        pa.field("text_prompt", pa.string(), nullable=False),  # as given
        pa.field("prompt", pa.string(), nullable=False),  # as encoded
        pa.field("image_path", pa.string()),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("model_name", pa.string(), nullable=False),
        pa.field("sample_steps", pa.int32(), nullable=False),
        pa.field("solver_name", pa.string(), nullable=False),
        *(pa.field(name, arrow_type(name)) for name in _FURTHER_PARAMS),
        pa.field("varies", pa.string()),  # names of the parameters that the job sweeps, separated by commas
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
        pa.field("paired_with", pa.string()),  # workers that computed half of its steps beside `worker`, by commas
        pa.field("node", pa.string()),  # of `worker`
        pa.field("device", pa.string()),  # of `worker`
        pa.field("attention_backend", pa.string()),  # that ran
        pa.field("memory_mode", pa.string()),  # of `worker`: resident, streamed resident, qint8 staged, ...
        pa.field("kernels", pa.string()),  # fused ones that `worker` used, eager for none, or compiled
        pa.field("convolutions", pa.string()),  # how `decode_worker` ran them: default, as_conv2d, ...
        pa.field("decode_kernels", pa.string()),  # fused ones and layout of `decode_worker`, or eager for none
        *LOSS_FIELDS,
        pa.field("dtype", pa.string(), nullable=False),
        pa.field("attempts", pa.int32(), nullable=False),  # denoises begun, failed ones too
        *(pa.field(f"{group}_s", pa.float64()) for group in TIME_GROUPS),  # encode_s: of its own text and first frame
        pa.field("finished_at", pa.timestamp("ms", tz="UTC"), nullable=False),
        pa.field("notes", pa.string()),  # such as one colour or silence throughout; separated by semicolons
        pa.field("traceback", pa.string()),  # of the failure that a failed clip ended with; its last part
        pa.field("current", pa.bool_()),  # whether the list of the last run asks for it
    ]
)
"""Columns of every result. The list's own `meta_` columns follow them, as text."""
VIDEOS = "videos"
FORMAT_WITH_ROWS_FROM_ONE = 3
FORMAT_WITH_CURRENT = 4
RENDERED = "rendered"  # in a video's metadata: how its clip was rendered

_CLIP_COLUMNS = (
    "clip_id",
    "row",
    "line",
    "repeat",
    "key",
    "varies",
    "text_prompt",
    "prompt",
    "image_path",
    "model_name",
    "height",
    "width",
)


def in_current_form(batch: pa.RecordBatch, version: int) -> pa.RecordBatch:
    """Results in the form of today, from those of an older format."""
    if version < FORMAT_WITH_ROWS_FROM_ONE and "row" in batch.schema.names:
        place = batch.schema.get_field_index("row")
        batch = batch.set_column(place, batch.schema.field(place), pc.add(batch.column(place), 1))
    if (
        version < FORMAT_WITH_CURRENT and "current" not in batch.schema.names
    ):  # until a run has compared them with its list
        batch = batch.append_column(RESULTS_SCHEMA.field("current"), pa.repeat(True, len(batch)))
    return batch


def result_row(
    clip: ClipTask, facts: Mapping[str, Any], *, status: ClipStatus, finished_at: datetime, error: str = ""
) -> dict[str, Any]:
    """The row of a clip. `facts` are its other columns, as far as known; keys that are no column are left out."""
    return {
        "attempts": 0,
        **{name: value for name, value in facts.items() if name in RESULTS_SCHEMA.names},
        **{name: getattr(clip, name) for name in _CLIP_COLUMNS},
        **{name: getattr(clip.params, name) for name in _PARAM_COLUMNS},
        **clip.meta,
        "status": str(status),
        "current": True,
        "error": error or None,
        "video_path": f"{VIDEOS}/{clip.clip_id}.mp4" if status is ClipStatus.DONE else None,
        "finished_at": finished_at,
    }
