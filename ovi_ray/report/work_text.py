"""The work of a device in words, the same in every display."""

from ovi.stages import STAGES
from ovi_ray.protocol.progress import WorkDone


def work_text(work: WorkDone) -> str:
    """The items by stage, "texts 8, denoise 5, decode 7, assists 2"; empty where there are none."""
    parts = [f"{spec.label} {work.items[stage]:,}" for stage, spec in STAGES.items() if work.items.get(stage)]
    if work.assists:
        parts.append(f"assists {work.assists:,}")
    return ", ".join(parts)
