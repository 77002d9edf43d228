"""A denoise on two devices: the latents are those of one, and a partner that is lost costs nothing but time.

The partner is a process of its own, which is given one denoise after the other.
"""

import json
import select
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from ovi import OviPipeline
from ovi.config import Component, SamplingParams
from ovi.errors import DenoiseStopped
from ovi.kernels import KernelPlan
from ovi.kernels.types import EAGER_PLAN
from ovi.sampling.partner import RemoteNegativePass
from ovi.types import PromptEmbeds
from tests.support.waiting import wait_until

PARAMS = SamplingParams(video_frame_height_width=(64, 64), sample_steps=4, slg_layer=1)


def open_pipeline(tiny_dir, dtype=torch.float32):
    return OviPipeline.from_pretrained(tiny_dir, device="cpu", dtype=dtype)


def as_embeds(rows):
    return PromptEmbeds(positive=rows[0], video_negative=rows[1], audio_negative=rows[2])


def given():
    """A clip's texts and first frame."""
    numbers = torch.Generator().manual_seed(1)
    return [torch.randn(5, 24, generator=numbers) for _ in range(3)], torch.randn(48, 1, 4, 4, generator=numbers)


class Partner:
    """The second process, which answers each line of JSON, a denoise to assist, with a line of its outcome."""

    def __init__(self, tiny_dir):
        command = [sys.executable, "-m", __name__, str(tiny_dir)]
        self.process = subprocess.Popen(
            command, cwd=Path(__file__).parents[3], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def assists(self, folder, **options):
        """Begins to assist, and has called."""
        self.process.stdin.write(json.dumps({"folder": str(folder), **options}) + "\n")
        self.process.stdin.flush()
        wait_until(
            (folder / "caller").exists,
            give_up=lambda: f"it ended: {self.outcome()}" if select.select([self.process.stdout], [], [], 0)[0] else "",
        )

    def outcome(self):
        """The steps it computed, or the name of the error that it ended with."""
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def partner(tiny_dir):
    partner = Partner(tiny_dir)
    yield partner
    partner.process.kill()
    partner.process.wait()


@pytest.fixture(scope="module")
def pipe(tiny_dir):
    return open_pipeline(tiny_dir)


@pytest.fixture(scope="module")
def embeds():
    return as_embeds(given()[0])


@pytest.fixture(scope="module")
def alone(pipe, embeds):
    return pipe.denoise(embeds, PARAMS)


def assert_equal(latents, expected):
    assert torch.equal(latents.video, expected.video)
    assert torch.equal(latents.audio, expected.audio)


@contextmanager
def leading(folder, patience_s=600.0):  # on a busy machine
    remote = RemoteNegativePass(folder, patience_s=patience_s)
    try:
        yield remote
    finally:
        remote.close()


def test_two_processes_denoise_a_clip_to_the_latents_of_one(tiny_dir, tmp_path, embeds, partner):
    pipe, frame = open_pipeline(tiny_dir, torch.bfloat16), given()[1]
    partner.assists(tmp_path, dtype="bfloat16", has_frame=True)
    with leading(tmp_path) as remote:
        latents = pipe.denoise(embeds, PARAMS, first_frame=frame, partner=remote)
    assert (remote.steps, partner.outcome()) == (4, 4)
    assert_equal(latents, pipe.denoise(embeds, PARAMS, first_frame=frame))


def test_a_partner_may_come_and_go_in_the_middle(pipe, embeds, alone, tmp_path, partner):
    def on_step(done, total):
        if done == 1:
            partner.assists(tmp_path)
        if done == 3:
            (tmp_path / "stop").touch()

    with leading(tmp_path) as remote:
        latents = pipe.denoise(embeds, PARAMS, partner=remote, on_step=on_step)
    assert (remote.steps, partner.outcome()) == (2, 2)
    assert remote.lost
    assert_equal(latents, alone)


def test_a_denoise_that_is_stopped_goes_on_with_the_same_partner(pipe, embeds, alone, tmp_path, partner):
    partner.assists(tmp_path)
    asked = iter([False, False, True])
    with leading(tmp_path) as remote:
        with pytest.raises(DenoiseStopped) as stopped:
            pipe.denoise(embeds, PARAMS, partner=remote, should_stop=lambda: next(asked))
        latents = pipe.denoise(embeds, PARAMS, partner=remote, state=stopped.value.state)
    assert (remote.steps, partner.outcome()) == (4, 4)
    assert_equal(latents, alone)


def test_a_partner_whose_numbers_are_not_finite_is_at_fault_and_the_leader_goes_on(
    pipe, embeds, alone, tmp_path, partner
):
    partner.assists(tmp_path, is_broken=True)
    with leading(tmp_path) as remote:
        latents = pipe.denoise(embeds, PARAMS, partner=remote)
    assert (remote.steps, partner.outcome()) == (0, "NonFiniteError")
    assert remote.lost
    assert_equal(latents, alone)


def test_a_partner_that_would_get_other_numbers_is_refused(pipe, embeds, alone, tmp_path, partner):
    partner.assists(tmp_path, dtype="bfloat16")
    with leading(tmp_path) as remote:
        latents = pipe.denoise(embeds, PARAMS, partner=remote)
    assert (remote.steps, partner.outcome()) == (0, "PartnerUnavailable")
    assert "bfloat16" in remote.lost
    assert_equal(latents, alone)


class Told(Exception):
    """Carries what a partner was told, before anything is computed."""


class Listening:
    def expect(self, signature):
        raise Told(signature)


def test_devices_whose_trials_chose_other_kernels_are_not_to_share_a_denoise(tiny_dir):
    texts, _ = given()
    told = []
    for plan in (EAGER_PLAN, KernelPlan(residual_norm=True), KernelPlan(norm_silu=True)):
        pipe = open_pipeline(tiny_dir)
        pipe._kernel_plan = plan  # as a GPU's trials chose it
        with pytest.raises(Told) as error:
            pipe.denoise(as_embeds(texts), PARAMS, partner=Listening())
        told.append(str(error.value))
    assert told[0] != told[1]
    assert told[0] == told[2]  # a kernel of the decoder


def test_a_partner_that_takes_too_long_is_not_asked_again(pipe, embeds, alone, tmp_path, partner):
    partner.assists(tmp_path, is_frozen=True)
    with leading(tmp_path, patience_s=0.2) as remote:
        latents = pipe.denoise(embeds, PARAMS, partner=remote)
    assert remote.steps == 0
    assert remote.lost
    assert_equal(latents, alone)
    (tmp_path / "stop").touch()
    assert partner.outcome() in (0, "PartnerUnavailable")


def test_a_leader_that_ends_abruptly_ends_its_partner(pipe, embeds, tmp_path, partner):
    partner.assists(tmp_path)

    def die(done, total):
        raise KeyboardInterrupt

    remote = RemoteNegativePass(tmp_path, patience_s=600.0)
    with pytest.raises(KeyboardInterrupt):
        pipe.denoise(embeds, PARAMS, partner=remote, on_step=die)
    del remote  # as when its process is gone, and its sockets with it
    assert partner.outcome() == "PartnerUnavailable"


def test_a_partner_whose_leader_never_comes_stops_when_it_is_asked(tmp_path, partner):
    partner.assists(tmp_path)
    (tmp_path / "stop").touch()
    assert partner.outcome() == 0


def test_a_partner_that_leaves_before_the_first_step_is_not_waited_for(pipe, embeds, alone, tmp_path, partner):
    folder = tmp_path / "meeting"
    partner.assists(folder)
    with leading(folder) as remote:
        (folder / "stop").touch()
        assert partner.outcome() == 0
        shutil.rmtree(folder)  # as its worker does
        latents = pipe.denoise(embeds, PARAMS, partner=remote)
    assert remote.steps == 0
    assert_equal(latents, alone)


def test_a_leader_that_ended_before_its_partner_came_lets_it_go(tmp_path, partner):
    folder = tmp_path / "meeting"
    partner.assists(folder)
    shutil.rmtree(folder)
    assert partner.outcome() == 0


def test_a_partner_that_dies_in_the_middle_of_a_step_costs_that_step_alone(pipe, embeds, alone, tmp_path, partner):
    partner.assists(tmp_path)  # the last test with this process

    def on_step(done, total):
        if done == 2:
            partner.process.kill()
            partner.process.wait()

    with leading(tmp_path) as remote:
        latents = pipe.denoise(embeds, PARAMS, partner=remote, on_step=on_step)
    assert remote.steps == 2
    assert remote.lost
    assert_equal(latents, alone)


def assist(tiny_dir, folder, *, dtype="float32", has_frame=False, is_broken=False, is_frozen=False):
    """The part of a denoise that the second process does."""
    rows, frame = given()
    pipeline = open_pipeline(tiny_dir, getattr(torch, dtype))
    pipeline.load([Component.TRANSFORMER])
    if is_broken:
        for weight in pipeline._components[Component.TRANSFORMER].parameters():
            torch.nn.init.constant_(weight, float("nan"))
    stop = Path(folder) / "stop"
    if is_frozen:
        pipeline._components[Component.TRANSFORMER].register_forward_pre_hook(lambda *_: freeze(stop))
    first_frame = frame if has_frame else None
    return pipeline.assist(as_embeds(rows), PARAMS, Path(folder), first_frame=first_frame, should_stop=stop.exists)


def freeze(stop):
    wait_until(stop.exists)


def main(tiny_dir):
    for line in sys.stdin:
        try:
            outcome = assist(tiny_dir, **json.loads(line))
        except Exception as error:
            outcome = type(error).__name__
        print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])
