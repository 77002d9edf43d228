"""Measurements of a lossy clip, as columns of its row and in words."""

from ovi.quality import ShortcutName
from ovi.types import LossReport


def loss_facts(loss: LossReport) -> dict[str, object]:
    """The columns `ovi_ray.output.result_row.LOSS_FIELDS` of a clip."""
    return {
        "lossy_steps": loss.lossy_steps,
        "shortcuts": ", ".join(f"{_named(name, loss)} {count}" for name, count in loss.shortcuts.items()) or None,
        "left_out": "; ".join(f"{name}: {reason}" for name, reason in loss.left_out.items()) or None,
        "passes": loss.passes,
        "audits": loss.audits,
        "video_loss": loss.video_loss,
        "audio_loss": loss.audio_loss,
        "exact_from_step": loss.exact_from_step,
    }


def _named(shortcut: str, loss: LossReport) -> str:
    """A shortcut, with the backend that it used if there are several."""
    return f"{shortcut} ({loss.low_bit_attention})" if shortcut == ShortcutName.LOW_BIT_ATTENTION else shortcut


def measured_loss(loss: LossReport) -> str:
    """The largest measured errors, in words."""
    return f"a relative error of {loss.video_loss or 0:.2g} in video and {loss.audio_loss or 0:.2g} in audio"
