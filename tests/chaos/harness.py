"""A job that can be started, hurt and counted: real processes, a real Ray, the small golden checkpoint."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.hooks import born
from tests.chaos.output import Output
from tests.chaos.render_job import Run

ROOT = Path(__file__).parent.parent.parent
CKPTS = ROOT / "tests" / "data" / "tiny" / "ckpts"


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

    @property
    def are_right(self) -> bool:
        """Whether every clip was rendered once and is there."""
        return self.clips == self.rows == self.files and not self.duplicates + self.lost + self.undecodable


@dataclass(kw_only=True, slots=True)
class ChaosJob:
    """A list of clips and the drivers that render it, one after the other."""

    folder: Path
    """Of the prompts and the logs, on this machine."""
    clips: int
    out: str = ""
    """Where the job is written: a path or a URI. The folder `out` beside the prompts, where none is given."""
    steps: int = 6
    workers: int = 1
    checkpoint_s: float = 0.0
    """0: the state is saved after every step, so a lost worker costs one step."""
    silence_s: float = 60.0
    step_s: float = 0.05
    """A pause in each step, so that there is time to hurt it."""
    address: str = ""
    """Of the Ray cluster that drivers join; each starts one of its own where none is given."""
    hurts: dict[str, str] = field(default_factory=dict)
    """What else the processes of the next drivers do, as the environment tells `hooks`."""
    driver: subprocess.Popen[str] | None = None
    runs: int = 0

    def __post_init__(self) -> None:
        self.log.mkdir(parents=True, exist_ok=True)
        if "://" not in self.out:
            self.out = str(Path(self.out or self.folder / "out").absolute())
        size = {"video_frame_height_width": [64, 64], "sample_steps": self.steps, "slg_layer": 1}
        rows = [json.dumps({"text_prompt": f"clip {number}", "seed": number, **size}) for number in range(self.clips)]
        self.prompts.write_text("\n".join(rows), encoding="utf-8")

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def prompts(self) -> Path:
        return self.folder / "prompts.jsonl"

    @property
    def output(self) -> Output:
        """What lies in the output folder now."""
        return Output(self.out)

    # -- drivers ---------------------------------------------------------------------------------------------------

    def start(self) -> subprocess.Popen[str]:
        """Start a driver in a process group of its own."""
        for path in self.log.glob("*.stage"):
            path.unlink()
        self.runs += 1
        run = Run(
            prompts=str(self.prompts),
            ckpt_dir=str(CKPTS),
            out=self.out,
            workers=self.workers,
            checkpoint_s=self.checkpoint_s,
            silence_s=self.silence_s,
            address=self.address,
        )
        with self.output_path.open("w", encoding="utf-8") as output:
            self.driver = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("render_job.py")), json.dumps(asdict(run))],
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                env=self._environment(),
                start_new_session=True,
            )
        return self.driver

    def _environment(self) -> dict[str, str]:
        own = {"CHAOS_LOG": str(self.log), "CHAOS_STEP_S": str(self.step_s), "OMP_NUM_THREADS": "1"}
        return {**os.environ, "PYTHONPATH": str(ROOT), **own, **self.hurts}

    @property
    def output_path(self) -> Path:
        return self.folder / f"driver-{self.runs}.txt"

    @property
    def said(self) -> str:
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

    def stage_of(self, pid: int) -> str:
        """What a worker is at now (EncodeTexts, Denoise, Decode); empty when at nothing, or dead."""
        try:
            stage = (self.log / f"{pid}.stage").read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""
        return stage if self._is_alive(pid) else ""

    def worker_at(self, stage: str) -> int | None:
        """A worker that is at a stage now."""
        return next((pid for pid in self.worker_pids() if self.stage_of(pid) == stage), None)

    # -- figures ---------------------------------------------------------------------------------------------------

    def steps_done(self) -> int:
        """Denoising steps taken by all workers of all drivers."""
        return self._logged("steps")

    def writes_failed(self) -> int:
        """Writes that were made to fail, in all processes."""
        return self._logged("failed-writes")

    def _logged(self, what: str) -> int:
        return sum(path.stat().st_size for path in self.log.glob(f"*.{what}"))

    def figures(self) -> Figures:
        output = self.output
        rows = output.results().select(["clip_id", "status"]).to_pylist()
        videos = output.videos()
        done = {row["clip_id"] for row in rows if row["status"] == "done"}
        return Figures(
            clips=self.clips,
            rows=len(rows),
            files=len(videos),
            duplicates=len(rows) - len({row["clip_id"] for row in rows}),
            lost=self.clips - len(done),
            undecodable=sum(not output.decodes(video) for video in videos),
            denoise_steps_repeated=self.steps_done() - self.clips * self.steps,
        )


def assert_all_is_there(job: ChaosJob, *, steps_repeated: int) -> None:
    """Every clip was rendered once, nothing is left over, and no more than that was denoised twice."""
    figures = job.figures()
    assert figures.are_right, figures
    assert figures.denoise_steps_repeated <= steps_repeated
    assert not job.output.latents()
    assert not job.output.names("checkpoints")


def wait_until(condition: Callable[[], Any], timeout_s: float = 150) -> Any:
    """The first true value of `condition`. Raises TimeoutError."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.01)
    raise TimeoutError(f"not within {timeout_s} s")
