"""The row of a clip that ended. Pure."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from ovi_ray.events import ClipStatus
from ovi_ray.ledger import RESULTS_SCHEMA, VIDEOS
from ovi_ray.plan import ClipTask

_CLIP_COLUMNS = ("clip_id", "row", "repeat", "text_prompt", "prompt", "image_path", "model_name", "height", "width")
_PARAM_COLUMNS = ("seed", "sample_steps", "solver_name")


def result_row(
    clip: ClipTask, facts: Mapping[str, Any], *, status: ClipStatus, finished_at: datetime, error: str = ""
) -> dict[str, Any]:
    """A row of the ledger. `facts` are its other columns, as far as they are known; what is no column is left out."""
    return {
        "attempts": 0,
        **{name: value for name, value in facts.items() if name in RESULTS_SCHEMA.names},
        **{name: getattr(clip, name) for name in _CLIP_COLUMNS},
        **{name: getattr(clip.params, name) for name in _PARAM_COLUMNS},
        "status": str(status),
        "error": error or None,
        "video_path": f"{VIDEOS}/{clip.clip_id}.mp4" if status is ClipStatus.DONE else None,
        "finished_at": finished_at,
    }
