"""An output folder with a report, as a job of many clips leaves it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from ovi.media.video import VideoWriter
from ovi_ray.inputs.manifest import MANIFEST_SCHEMA
from ovi_ray.output.result_row import RESULTS_SCHEMA
from ovi_ray.output.results import Results
from ovi_ray.protocol.progress import WorkerTime
from ovi_ray.report.html import ReportSummary, write_report
from ovi_ray.report.run_charts import Lane, RunCharts, StagePlan
from ovi_ray.storage.paths import to_location

START = datetime(2026, 3, 1, 22, 0, tzinfo=UTC)
SEEDS, SCALES = (0, 1, 2, 3), (3.0, 4.0, 5.0)
FAILED_EVERY, WITH_FILES = 97, 60
HOSTILE = "<script>document.title = 'broken'</script><img src=x onerror=\"document.title='broken'\">"


def write_job(folder: Path, clips: int, *, superseded: int = 0) -> None:
    """Rows, a report, and the files of the first clips: every prompt has a take for each of `SEEDS` and `SCALES`.

    Superseded clips are numbered after those of the list.
    """
    out = to_location(folder)
    results = Results(out)
    rows = [{**_row(number), "current": number < clips} for number in range(clips + superseded)]
    schema = pa.schema([*RESULTS_SCHEMA, pa.field("meta_shot", pa.string())])
    table = pa.Table.from_pylist(rows, schema=schema)
    results._log.append(table)
    for row in rows[:WITH_FILES]:
        if row["status"] == "done":
            _write_files(folder, row["clip_id"], row["row"])
    charts = RunCharts(
        lanes=tuple(_lane(number) for number in range(4)),
        finished=((0.0, 0), (1800.0, clips // 2), (3600.0, clips)),
        clips=clips,
        planned_s=3000.0,
        stages=(StagePlan(device_class="h200", stage="denoise", tasks=clips, planned_s=50.0, actual_s=60.0),),
    )
    failed = sum(row["status"] == "failed" for row in rows[:clips])
    workers = (WorkerTime(worker="gpu-0", node="node-a", device="NVIDIA H200", held_s=3600.0, denoise_s=3000.0),)
    summary = ReportSummary(clips=clips, finished_before=0, started_at=START, seconds=3600.0, workers=workers)
    assert failed == len(range(FAILED_EVERY - 1, clips, FAILED_EVERY))
    write_report(
        out,
        results.batches,
        title="generated",
        summary=summary,
        manifest=_manifest(table.slice(0, clips)),
        meta_columns=["meta_shot"],
        charts=charts,
        key="generated",
    )


def _row(number: int) -> dict[str, object]:
    takes = len(SEEDS) * len(SCALES)
    prompt, take = divmod(number, takes)
    is_failed = number % FAILED_EVERY == FAILED_EVERY - 1
    clip_id = f"{number:020x}"
    animal = ("fox", "dog", "heron", "whale")[prompt % 4]
    text = HOSTILE if prompt == 2 else f"A {animal} in scene {prompt}, seen from afar. Audio: wind in the trees"
    return {
        "clip_id": clip_id,
        "row": prompt + 1,
        "repeat": take,
        "text_prompt": text,
        "prompt": text,
        "seed": SEEDS[take % len(SEEDS)],
        "model_name": "720x720_5s" if prompt % 2 else "960x960_10s",
        "sample_steps": 50,
        "solver_name": "unipc",
        "height": 704,
        "width": 1280,
        "status": "failed" if is_failed else "done",
        "error": "CUDA out of memory" if is_failed else None,
        "video_path": None if is_failed else f"videos/{clip_id}.mp4",
        "video_bytes": 2_500_000,
        "worker": "gpu-0",
        "decode_worker": "gpu-0",
        "node": "node-a",
        "device": "NVIDIA H200" if prompt % 3 else "AMD MI300X",
        "attention_backend": "fa3",
        "dtype": "bfloat16",
        "attempts": 1,
        "encode_s": 0.5,
        "denoise_s": 60.0,
        "decode_s": 7.5,
        "finished_at": START + timedelta(seconds=number),
        "meta_shot": f"shot-{prompt % 25:02d}",
    }


def _manifest(rows: pa.Table) -> pa.Table:
    """The manifest of the rows; the guidance scale is the parameter that results do not hold."""
    repeats = rows.column("repeat").to_pylist()
    scales = pa.array(
        [SCALES[repeat // len(SEEDS)] for repeat in repeats], MANIFEST_SCHEMA.field("video_guidance_scale").type
    )
    return pa.table(
        {name: rows.column(name) for name in ("clip_id", "row", "repeat", "text_prompt", "seed")}
    ).append_column("video_guidance_scale", scales)


def _write_files(folder: Path, clip_id: str, shade: int) -> None:
    frames = np.full((96, 36, 64, 3), shade * 9 % 256, np.uint8)
    with VideoWriter(folder / "videos" / f"{clip_id}.mp4", audio=np.zeros(64_000, np.float32), parameters={}) as writer:
        writer.write(frames)
    Image.fromarray(frames[0]).save(folder / "posters" / f"{clip_id}.jpg")


def _lane(number: int) -> Lane:
    bars = [
        (kind, 60.0 * i + start, 60.0 * i + end, 1)
        for i in range(60)
        for kind, start, end in (("load", 0.0, 2.0), ("denoise", 2.0, 50.0), ("decode", 50.0, 58.0))
    ]
    return Lane(worker=f"gpu-{number}", node="node-a", device="NVIDIA H200", bars=tuple(bars))
