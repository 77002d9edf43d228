"""A job that can be started, hurt and counted: real processes, a real local Ray, the small golden checkpoint."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import pyarrow.dataset

from tests.chaos.hooks import born

ROOT = Path(__file__).parent.parent.parent
CKPTS = ROOT / "tests" / "data" / "tiny" / "ckpts"
FRAMES = 9  # of a clip of the small checkpoint


@dataclass(kw_only=True, slots=True, frozen=True)
class Figures:
    """What a job left behind."""

    clips: int
    rows: int
    files: int
    duplicates: int
    """Rows beyond the first of a clip."""
    lost: int
    """Clips without a row that says done."""
    undecodable: int
    denoise_steps_repeated: int


@dataclass(kw_only=True, slots=True)
class ChaosJob:
    """A list of clips and the drivers that render it, one after the other."""

    folder: Path
    clips: int
    steps: int = 6
    workers: int = 1
    checkpoint_s: float = 0.0
    """0: the state is saved after every step, so a lost worker costs one step."""
    silence_s: float = 60.0
    step_s: float = 0.05
    """A pause in each step, so that there is time to hurt it."""
    driver: subprocess.Popen[str] | None = None
    runs: int = 0

    def __post_init__(self) -> None:
        self.log.mkdir(parents=True, exist_ok=True)
        size = {"video_frame_height_width": [64, 64], "sample_steps": self.steps, "slg_layer": 1}
        rows = [json.dumps({"text_prompt": f"clip {number}", "seed": number, **size}) for number in range(self.clips)]
        self.prompts.write_text("\n".join(rows), encoding="utf-8")

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def prompts(self) -> Path:
        return self.folder / "prompts.jsonl"

    # -- drivers ---------------------------------------------------------------------------------------------------

    def start(self) -> subprocess.Popen[str]:
        """Start a driver in a process group of its own."""
        for path in self.log.glob("*.stage"):
            path.unlink()
        self.runs += 1
        arguments = [self.prompts, CKPTS, self.out, self.workers, self.checkpoint_s, self.silence_s]
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "CHAOS_LOG": str(self.log),
            "CHAOS_STEP_S": str(self.step_s),
            "OMP_NUM_THREADS": "1",
        }
        with self.output_path.open("w", encoding="utf-8") as output:
            self.driver = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("render_job.py")), *map(str, arguments)],
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment,
                start_new_session=True,
            )
        return self.driver

    @property
    def output_path(self) -> Path:
        return self.folder / f"driver-{self.runs}.txt"

    @property
    def output(self) -> str:
        """What the last driver said."""
        return self.output_path.read_text(encoding="utf-8")

    def finish(self, timeout_s: float = 240) -> int:
        """Wait for the driver's end; gives its exit code."""
        return self.driver.wait(timeout_s)

    def close(self) -> None:
        """End what is left of the drivers and of their workers."""
        if self.driver is not None and self.driver.poll() is None:
            os.killpg(self.driver.pid, signal.SIGKILL)
            self.driver.wait()
        for pid in self.worker_pids():
            os.kill(pid, signal.SIGKILL)

    # -- workers ---------------------------------------------------------------------------------------------------

    def worker_pids(self) -> set[int]:
        """Processes of workers, of any driver, that are alive."""
        pids = {int(path.stem) for path in self.log.glob("*.born")}
        return {pid for pid in pids if self._is_alive(pid)}

    def _is_alive(self, pid: int) -> bool:
        """Whether this very process lives, and not another that has its id now."""
        return (self.log / f"{pid}.born").read_text(encoding="utf-8") == (born(pid) or "dead")

    def worker_at(self, stage: str) -> int | None:
        """A worker that is at a stage (EncodeTexts, Denoise, Decode) now."""
        for path in self.log.glob("*.stage"):
            try:
                if path.read_text(encoding="utf-8") == stage and self._is_alive(int(path.stem)):
                    return int(path.stem)
            except FileNotFoundError:
                continue
        return None

    def steps_done(self) -> int:
        """Denoising steps taken by all workers of all drivers."""
        return sum(path.stat().st_size for path in self.log.glob("*.steps"))

    def videos(self) -> list[Path]:
        return sorted((self.out / "videos").glob("*.mp4"))

    # -- figures ---------------------------------------------------------------------------------------------------

    def figures(self) -> Figures:
        rows = pyarrow.dataset.dataset(self.out / "results", format="parquet").to_table().to_pylist()
        done = {row["clip_id"] for row in rows if row["status"] == "done"}
        return Figures(
            clips=self.clips,
            rows=len(rows),
            files=len(self.videos()),
            duplicates=len(rows) - len({row["clip_id"] for row in rows}),
            lost=self.clips - len(done),
            undecodable=sum(not _decodes(path) for path in self.videos()),
            denoise_steps_repeated=self.steps_done() - self.clips * self.steps,
        )


def wait_until(condition: Callable[[], Any], timeout_s: float = 150) -> Any:
    """The first true value of `condition`. Raises TimeoutError."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.01)
    raise TimeoutError(f"not within {timeout_s} s")


def _decodes(path: Path) -> bool:
    try:
        with av.open(str(path)) as container:
            frames = sum(1 for _ in container.decode(video=0))
        with av.open(str(path)) as container:
            samples = sum(frame.samples for frame in container.decode(audio=0))
    except (av.FFmpegError, IndexError):
        return False
    return frames == FRAMES and samples > 0
