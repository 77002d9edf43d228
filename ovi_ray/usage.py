"""What workers did with their time. Pure."""

from dataclasses import dataclass

from ovi.stages import Stage


@dataclass(kw_only=True, slots=True)
class WorkerTime:
    """What a worker did with its time in a run, in seconds."""

    worker: str
    node: str
    device: str
    held_s: float = 0.0
    """From when it was ready until it was lost or the run ended."""
    encode_s: float = 0.0
    denoise_s: float = 0.0
    decode_s: float = 0.0
    load_s: float = 0.0
    """Moving components in and out."""

    @property
    def busy_s(self) -> float:
        """Seconds that it was given work for."""
        return self.encode_s + self.denoise_s + self.decode_s + self.load_s

    def add(self, stage: Stage, seconds: float, load_seconds: float) -> None:
        """Add a task."""
        self.load_s += load_seconds
        match stage:
            case Stage.ENCODE_TEXT | Stage.ENCODE_FIRST_FRAME:
                self.encode_s += seconds
            case Stage.DENOISE:
                self.denoise_s += seconds
            case Stage.DECODE:
                self.decode_s += seconds
