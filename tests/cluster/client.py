"""A user who submits small jobs: a prompt list, a job file, and a home of their own."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.support.cli import ROOT, ovi_ray
from tests.support.jobs import result_rows, write_prompts
from tests.support.worker_hooks import hooked_environment

CKPTS = ROOT / "tests" / "data" / "tiny" / "ckpts"


@dataclass(kw_only=True, slots=True)
class Client:
    """Runs `ovi-ray` with its own configuration and journal."""

    folder: Path
    environment: dict[str, str]
    step_s: float = 0.0
    """Seconds that a worker sleeps in each denoising step."""
    to: str = "here"
    targets: dict[str, Any] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        """The output folder of every job."""
        return self.folder / "out"

    @property
    def log(self) -> Path:
        """The folder of the workers' hooks."""
        return self.folder / "hooks"

    def write_job(self, *, clips: int, **keys: Any) -> Path:
        """A job file with so many clips, distinct by their prompts, and the given keys."""
        self.folder.mkdir(exist_ok=True)
        write_prompts(
            self.folder / "prompts.csv", *({"text_prompt": f"A fox runs {n}. Audio: rain"} for n in range(clips))
        )
        content = {
            "text_prompt": "prompts.csv",
            "ckpt_dir": str(CKPTS),
            "output_dir": str(self.out),
            "sample_steps": 2,
            "dtype": "float32",
            "video_frame_height_width": [64, 64],
            "slg_layer": 1,
            "resources": {"device": "cpu", "workers": 2},
            "policies": {"checkpoint_s": 0},
        }
        path = self.folder / "night.yaml"
        path.write_text(yaml.safe_dump(content | keys))
        return path

    def __call__(self, *arguments: object, code: int = 0) -> str:
        """The standard output of a command. What it said is in `said`."""
        config = self.folder / "config" / "ovi-ray"
        config.mkdir(parents=True, exist_ok=True)
        (config / "targets.yaml").write_text(yaml.safe_dump(self.targets))
        done = ovi_ray(*arguments, code=code, environment=self._environment())
        (self.folder / "said").write_text(done.stderr)
        return done.stdout

    @property
    def said(self) -> str:
        """The messages of the last command."""
        return (self.folder / "said").read_text()

    def submit(self, job: Path, *options: object) -> dict[str, Any]:
        """Submit a job; its state after that."""
        return json.loads(self("submit", job, "--to", self.to, "--json", *options))

    def status(self, job_id: str) -> dict[str, Any]:
        """The state of a job."""
        return json.loads(self("status", job_id, "--json"))

    def wait(self, job_id: str, *, code: int = 0) -> dict[str, Any]:
        """The state of a job at its end, which has this exit code."""
        return json.loads(self("wait", job_id, "--json", code=code))

    def rows(self) -> list[dict[str, Any]]:
        """The results in the output folder."""
        return result_rows(self.out)

    def hold_steps(self) -> None:
        """From now on each worker waits after a denoising step, until `step` or `release_steps`."""
        self._hold.parent.mkdir(parents=True, exist_ok=True)
        self._hold.touch()

    def step(self) -> None:
        """Let every worker that waits make one step."""
        for mark in self.log.glob("*.held"):
            mark.unlink(missing_ok=True)

    def release_steps(self) -> None:
        """Workers wait no more."""
        self._hold.unlink()

    @property
    def _hold(self) -> Path:
        return self.log / "hold.Denoise"

    def steps(self) -> int:
        """Denoising steps that all workers have made."""
        return sum(path.stat().st_size for path in self.log.glob("*.steps"))

    def _environment(self) -> Mapping[str, str]:
        hooks = hooked_environment(self.log, step_s=self.step_s)
        homes = {"XDG_CONFIG_HOME": str(self.folder / "config"), "XDG_STATE_HOME": str(self.folder / "state")}
        return {**os.environ, **hooks, **homes, "OMP_NUM_THREADS": "1", **self.environment}
