"""A job for fault injection: real processes, a real Ray, the small golden checkpoint."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from tests.chaos.output import Output
from tests.chaos.render_job import Run
from tests.support.waiting import PATIENCE_S, under_load, wait_until
from tests.support.worker_hooks import born, hooked_environment

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
CKPTS = ROOT / "tests" / "data" / "tiny" / "ckpts"


@dataclass(kw_only=True, slots=True, frozen=True)
class Figures:
    """Counts of what a job left in its output folder."""

    clips: int
    rows: int
    files: int
    duplicates: int
    """Rows beyond the first of a clip."""
    lost: int
    """Clips without a row that says done."""
    undecodable: int
    denoise_steps_repeated: int
    set_aside: int = 0
    """Videos that were taken for damaged."""

    @property
    def are_right(self) -> bool:
        """Whether every clip was rendered once and is there."""
        return self.clips == self.rows == self.files and not self.duplicates + self.lost + self.undecodable


@dataclass(kw_only=True, slots=True)
class ChaosJob:
    """A list of clips and the drivers that render it, one after the other."""

    folder: Path
    """For the prompts and the logs, on this machine."""
    clips: int
    out: str = ""
    """The output location, a path or a URI; by default the folder `out` beside the prompts."""
    steps: int = 6
    workers: int = 1
    checkpoint_s: float = 0.0
    """0: the state is saved after every step, so a lost worker costs one step."""
    silence_s: float = field(default_factory=lambda: under_load(60.0))
    """Seconds without an answer after which a busy worker is replaced."""
    start_timeout_s: float = 300.0
    """Seconds without an answer after which a worker that is being started is replaced."""
    step_s: float = 0.05
    """Seconds to sleep in each step, so that there is time for a fault."""
    address: str = ""
    """Address of the Ray cluster that drivers join; by default each starts its own."""
    hooks: dict[str, object] = field(default_factory=dict)
    """More settings of `worker_hooks` for the next drivers."""
    verify: bool = False
    """Whether the next drivers read every finished video."""
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
        """The files in the output folder now."""
        return Output(self.out)

    # -- drivers ---------------------------------------------------------------------------------------------------

    def start(self) -> subprocess.Popen[str]:
        """Start a driver in a process group of its own."""
        self.runs += 1
        run = Run(
            prompts=str(self.prompts),
            ckpt_dir=str(CKPTS),
            out=self.out,
            workers=self.workers,
            checkpoint_s=self.checkpoint_s,
            silence_s=self.silence_s,
            start_timeout_s=self.start_timeout_s,
            address=self.address,
            verify=self.verify,
        )
        with self.output_path.open("w", encoding="utf-8") as output:
            self.driver = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("render_job.py")), json.dumps(asdict(run))],
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", **self._hook_environment()},
                start_new_session=True,
            )
        return self.driver

    def _hook_environment(self) -> dict[str, str]:
        return hooked_environment(self.log, step_s=self.step_s, **self.hooks)

    @property
    def output_path(self) -> Path:
        return self.folder / f"driver-{self.runs}.txt"

    @property
    def said(self) -> str:
        """Everything that the last driver printed."""
        return self.output_path.read_text(encoding="utf-8")

    def wait_until(self, condition: Callable[[], T]) -> T:
        """The first true value of `condition`, while the driver runs. Raises AssertionError when it has ended without."""
        return wait_until(condition, give_up=self._why_ended)

    def _why_ended(self) -> str:
        code = self.driver.poll()
        return "" if code is None else f"the driver has ended with exit code {code}: {self.said}"

    def finish(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for the driver to end; returns its exit code."""
        return self.driver.wait(timeout_s)

    def close(self) -> None:
        """Kill the last driver and every worker that is left."""
        if self.driver is not None and self.driver.poll() is None:
            os.killpg(self.driver.pid, signal.SIGKILL)
            self.driver.wait()
        for pid in self.worker_pids():
            os.kill(pid, signal.SIGKILL)

    # -- workers ---------------------------------------------------------------------------------------------------

    def worker_pids(self) -> set[int]:
        """Processes of workers, of any driver, that are alive."""
        return self._alive("born")

    def ready_pids(self) -> set[int]:
        """Those whose model is open."""
        return self._alive("ready")

    def _alive(self, what: str) -> set[int]:
        pids = {int(path.stem) for path in self.log.glob(f"*.{what}")}
        return {pid for pid in pids if self._is_alive(pid)}

    def _is_alive(self, pid: int) -> bool:
        """Whether this very process lives, and not another that has its id now."""
        return (self.log / f"{pid}.born").read_text(encoding="utf-8") == (born(pid) or "dead")

    # -- holding workers at a stage --------------------------------------------------------------------------------

    def hold(self, stage: str) -> None:
        """From now on, every worker waits at this stage (EncodeTexts, Denoise, Decode)."""
        self._hold_file(stage).touch()

    def release(self, stage: str) -> None:
        """Let every worker go on that waits at a stage, and hold no more there."""
        self._hold_file(stage).unlink()

    def let_go(self, pid: int) -> None:
        """Let one worker go on until it comes to a stage that is held."""
        (self.log / f"{pid}.held").unlink()

    def held_at(self, stage: str) -> set[int]:
        """The workers that wait at a stage."""
        return {pid for pid in self._alive("held") if self._held_stage(pid) == stage}

    def wait_for_held(self, stage: str) -> int:
        """A worker that waits at a stage, once there is one."""
        return min(self.wait_until(lambda: self.held_at(stage)))

    def _held_stage(self, pid: int) -> str:
        try:
            return (self.log / f"{pid}.held").read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""

    def _hold_file(self, stage: str) -> Path:
        return self.log / f"hold.{stage}"

    # -- storage that fails ----------------------------------------------------------------------------------------

    def let_output_fail(self, error: str) -> None:
        """From now on, everything that is asked of the output fails: `error` is the name of a number in `errno`."""
        aside = self.log / "output.away.aside"
        aside.write_text(f"{error}\n{self.out}", encoding="utf-8")
        aside.replace(self.log / "output.away")

    def let_output_work(self) -> None:
        """The output is back."""
        (self.log / "output.away").unlink(missing_ok=True)

    # -- figures ---------------------------------------------------------------------------------------------------

    def steps_done(self) -> int:
        """Denoising steps taken by all workers of all drivers."""
        return self._logged("steps")

    def writes_failed(self) -> int:
        """Writes that were made to fail, in all processes together."""
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
            set_aside=sum(name.endswith(".mp4") for name in output.names("broken")),
        )


def assert_all_is_there(job: ChaosJob, *, steps_repeated: int) -> None:
    """Every clip was rendered once, no intermediate is left, and at most `steps_repeated` steps were denoised twice."""
    figures = job.figures()
    assert figures.are_right, figures
    assert figures.denoise_steps_repeated <= steps_repeated
    assert not job.output.latents()
    assert not job.output.names("checkpoints")
