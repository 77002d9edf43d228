"""Denoising with lossy shortcuts on the tiny model: what they compute, what is measured, and when a clip goes on exactly."""

import itertools
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save

from ovi import OviPipeline
from ovi.attention import AttentionBackend
from ovi.attention.types import SDPA_PLAN
from ovi.config import SamplingParams
from ovi.errors import DenoiseStopped
from ovi.models.feed_forward import Fp8Products
from ovi.models.fusion import FusionTransformer
from ovi.quality import Combination, Fp8FeedForward, GuidanceReuse, Loss, LowBitAttention, ShortcutName, StepSkipping
from ovi.sampling.denoise import DenoiseState, denoise, initial_noise, start
from ovi.sampling.guidance import PassNumerics
from ovi.sampling.lossy import LossyPolicy
from ovi.types import PromptEmbeds

STEPS = 12
PARAMS = SamplingParams(video_frame_height_width=(64, 64), sample_steps=STEPS, slg_layer=1, shift=1.0)
ANY = Loss(video=1e9, audio=1e9)
EXACT = PassNumerics(attention=SDPA_PLAN)


def policy(*shortcuts, bound=ANY, low_bit=EXACT):
    return LossyPolicy(combination=Combination(shortcuts=shortcuts, bound=bound), exact=EXACT, low_bit=low_bit)


def skipping(**changes):
    usual = {"tolerance": ANY, "most_in_a_row": 2, "computed_first": 0.25, "audit_every": 100}
    return StepSkipping(**usual | changes)


@pytest.fixture(scope="module")
def pipe(tiny_dir):
    return OviPipeline.from_pretrained(tiny_dir, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def run(pipe):
    """Denoise the same noise with a policy; returns the latents and, for each step, the passes that the model ran."""
    positive, video_negative, audio_negative = pipe.encode_text(["a fox in the snow", "blur", "noise"])
    embeds = PromptEmbeds(positive=positive, video_negative=video_negative, audio_negative=audio_negative)
    transformer = pipe._require("transformer", FusionTransformer)

    def denoised(policy=None, *, state=None, first_frame=None, **options):
        passes, counts = itertools.count(1), []
        handle = transformer.register_forward_pre_hook(lambda *_: counts.append(next(passes)))
        steps = []
        with torch.inference_mode():
            try:
                latents = denoise(
                    transformer,
                    state or start(initial_noise(pipe.spec, 4, 4, (48, 20), seed=7)),
                    embeds,
                    PARAMS,
                    policy=policy,
                    first_frame=first_frame,
                    on_step=lambda *_: steps.append(len(counts)),
                    **options,
                )
            finally:
                handle.remove()
        return latents, [after - before for before, after in itertools.pairwise([0, *steps])]

    return denoised


@pytest.fixture(scope="module")
def exact(run):
    return run()


def differs(latents, other):
    return not torch.equal(latents.video, other.video) and not torch.equal(latents.audio, other.audio)


def test_an_exact_clip_runs_both_passes_of_each_step_and_has_no_loss(exact):
    latents, passes = exact
    assert passes == [2] * STEPS
    assert latents.loss is None


def test_a_policy_without_shortcuts_gives_the_same_numbers_as_none(run, exact):
    latents, _ = run(policy())
    assert torch.equal(latents.video, exact[0].video)
    assert torch.equal(latents.audio, exact[0].audio)
    assert latents.loss.lossy_steps == 0


def test_reuse_of_the_guidance_difference_leaves_out_negative_passes_but_for_the_audited_steps(run, exact):
    latents, passes = run(policy(GuidanceReuse(after=0.5, audit_every=4)))
    assert passes == [2] * 6 + [2, 1, 1, 1, 2, 1]
    assert (latents.loss.lossy_steps, latents.loss.audits) == (4, 2)
    assert dict(latents.loss.shortcuts) == {"guidance_reuse": 4}
    assert latents.loss.passes == sum(passes)
    assert differs(latents, exact[0])


def test_a_skipped_step_runs_no_pass_and_goes_on_with_the_kept_velocity(run, exact):
    latents, passes = run(policy(skipping()))
    # The first skip, at step 4 of 12, is audited; then two in a row are skipped, and one is computed. The last step is too.
    assert passes == [2, 2, 2, 2, 0, 0, 2, 0, 0, 2, 0, 2]
    assert dict(latents.loss.shortcuts) == {"step_skipping": 5}
    assert differs(latents, exact[0])


def test_audio_alone_prevents_that_a_step_is_skipped(run):
    _, passes = run(policy(skipping(tolerance=Loss(video=1e9, audio=0.0))))
    assert passes == [2] * STEPS


def test_a_loss_beyond_the_bound_lets_the_clip_go_on_exactly_from_the_step_that_measured_it(run, exact):
    latents, passes = run(policy(GuidanceReuse(after=0.5, audit_every=2), bound=Loss(video=1e-9, audio=1e9)))
    assert latents.loss.exact_from_step == 7
    assert latents.loss.video_loss > 1e-9
    assert passes == [2] * STEPS
    assert torch.equal(latents.video, exact[0].video)  # the audited step took the exact velocity, and it was the first


def test_the_loss_of_audio_alone_lets_the_clip_go_on_exactly(run):
    latents, _ = run(policy(GuidanceReuse(after=0.5, audit_every=2), bound=Loss(video=1e9, audio=1e-9)))
    assert latents.loss.exact_from_step == 7


def test_the_measured_loss_is_the_relative_error_of_the_velocities(run, pipe):
    """Of a single audited step: with the difference of the step before, compared with both passes from the same state."""
    found = []

    class Recording(LossyPolicy):
        def step(self, passes, state, *, step, steps):
            velocity, after = super().step(passes, state, step=step, steps=steps)
            if after.audits and not found:
                approximate = passes.guided_by(state.difference, EXACT)
                found.extend((a, e) for a, e in zip(approximate, velocity, strict=True))
            return velocity, after

    recording = Recording(
        combination=policy(GuidanceReuse(after=0.9, audit_every=100)).combination, exact=EXACT, low_bit=EXACT
    )
    latents, _ = run(recording)
    errors = [float((approximate - right).norm() / right.norm()) for approximate, right in found]
    assert [latents.loss.video_loss, latents.loss.audio_loss] == pytest.approx(errors, rel=1e-5)


def test_products_in_8_bit_floats_cost_as_many_passes_and_their_loss_is_small(run, exact):
    low_bit = PassNumerics(attention=SDPA_PLAN, fp8=Fp8Products(format=torch.float8_e4m3fn))
    latents, passes = run(policy(Fp8FeedForward(audit_every=6), low_bit=low_bit))
    assert passes == [4, 2, 2, 2, 2, 2] * 2
    assert 0 < latents.loss.video_loss < 0.1
    assert differs(latents, exact[0])


def test_shortcuts_together_keep_the_exact_passes_apart_from_the_others(run):
    low_bit = PassNumerics(attention=SDPA_PLAN, fp8=Fp8Products(format=torch.float8_e4m3fn))
    shortcuts = (GuidanceReuse(after=0.5, audit_every=100), Fp8FeedForward(audit_every=100))
    latents, passes = run(policy(*shortcuts, low_bit=low_bit))
    assert passes == [4, 2, 2, 2, 2, 2, 3, 1, 1, 1, 1, 1]
    assert dict(latents.loss.shortcuts) == {"fp8_feed_forward": 10, "guidance_reuse": 5}


def test_a_given_first_frame_is_not_part_of_the_measured_loss(run, pipe, first_frame_path):
    first_frame = pipe.encode_first_frame(first_frame_path, (64, 64))
    seen = []

    class Recording(LossyPolicy):
        def step(self, passes, state, *, step, steps):
            seen.append(passes.generated(passes.sample[0]).shape[1])
            return super().step(passes, state, step=step, steps=steps)

    recording = Recording(combination=policy(skipping()).combination, exact=EXACT, low_bit=EXACT)
    latents, _ = run(recording, first_frame=first_frame)
    assert set(seen) == {2}  # of three latent frames
    assert torch.equal(latents.video[:, :1], first_frame)


COMBINED = (
    skipping(tolerance=Loss(video=0.6, audio=0.6), audit_every=3),
    GuidanceReuse(after=0.4, audit_every=3),
    Fp8FeedForward(audit_every=5),
)


def test_a_lossy_clip_that_is_stopped_at_every_step_continues_from_files_bit_for_bit(run):
    combined = policy(*COMBINED, low_bit=PassNumerics(attention=SDPA_PLAN, fp8=Fp8Products(format=torch.float8_e4m3fn)))
    whole, _ = run(combined)
    state, latents = None, None
    while latents is None:
        asked = itertools.count()
        try:
            latents, _ = run(combined, state=state, should_stop=lambda asked=asked: next(asked) == 1)
        except DenoiseStopped as stopped:
            state = DenoiseState.from_tensors(load(save(stopped.state.tensors())))
    assert state.step == STEPS - 1
    assert torch.equal(latents.video, whole.video)
    assert torch.equal(latents.audio, whole.audio)
    assert latents.loss == whole.loss
    assert set(latents.loss.shortcuts) == {"step_skipping", "guidance_reuse", "fp8_feed_forward"}


def test_a_clip_that_went_on_exactly_does_so_after_a_stop_too(run):
    strict = policy(GuidanceReuse(after=0.25, audit_every=2), bound=Loss(video=1e-9, audio=1e-9))
    done = []
    with pytest.raises(DenoiseStopped) as stopped:
        run(strict, should_stop=lambda: len(done) == 6 or done.append(1))
    state = DenoiseState.from_tensors(load(save(stopped.value.state.tensors())))
    latents, passes = run(strict, state=state)
    assert latents.loss.exact_from_step == 4
    assert passes == [2] * 6


def test_the_state_of_an_exact_clip_has_no_tensors_of_shortcuts(run):
    with pytest.raises(DenoiseStopped) as stopped:
        run(should_stop=lambda: True)
    assert not [name for name in stopped.value.state.tensors() if name.startswith("lossy")]


# -- what a pipeline makes of a quality ----------------------------------------------------------------------------


def test_a_pipeline_leaves_out_what_its_device_has_not_and_says_why(pipe):
    fast = pipe.lossy_policy("fast", (48, 3, 4, 4), 13)
    names = [shortcut.name for shortcut in fast.combination.shortcuts]
    assert ShortcutName.LOW_BIT_ATTENTION not in names
    assert "sdpa was asked for" in fast.left_out[ShortcutName.LOW_BIT_ATTENTION]
    assert pipe.lossy_policy("exact", (48, 3, 4, 4), 13) is None


def test_a_quality_is_a_parameter_of_a_clip_and_its_loss_comes_with_the_latents(pipe):
    rows = pipe.encode_text(["a fox in the snow", "blur", "noise"])
    embeds = PromptEmbeds(positive=rows[0], video_negative=rows[1], audio_negative=rows[2])
    small = {"video_frame_height_width": (64, 64), "sample_steps": 4, "slg_layer": 1}
    high = pipe.denoise(embeds, SamplingParams(**small, quality="high"))
    assert high.loss.audits == 1
    assert pipe.denoise(embeds, SamplingParams(**small)).loss is None


def test_low_bit_attention_runs_at_lossy_steps_alone_and_its_backend_is_reported(run):
    """With another exact kernel in the place of one in 8 bits, which no CPU has."""
    low_bit = PassNumerics(attention=replace(SDPA_PLAN, video_self=AttentionBackend.SDPA_MATH))
    latents, passes = run(policy(LowBitAttention(audit_every=6), low_bit=low_bit))
    assert passes == [4, 2, 2, 2, 2, 2] * 2
    assert latents.loss.low_bit_attention == "sdpa_math"
    assert dict(latents.loss.shortcuts) == {"low_bit_attention": 10}
    assert latents.loss.video_loss < 1e-4


def test_auto_looks_for_a_low_bit_backend_and_says_why_there_is_none(tiny_dir):
    pipe = OviPipeline.from_pretrained(tiny_dir, device="cpu", attention_backend=AttentionBackend.AUTO)
    reason = pipe.lossy_policy("fast", (48, 3, 4, 4), 13).left_out[ShortcutName.LOW_BIT_ATTENTION]
    assert "sage: it runs on NVIDIA GPUs only" in reason
    assert "flash_attn_3_fp8" in reason
