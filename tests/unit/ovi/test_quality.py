"""The decisions of lossy shortcuts, from plain numbers."""

import math

import pytest

from ovi.quality import (
    COMBINATIONS,
    Combination,
    Fp8FeedForward,
    GuidanceReuse,
    Loss,
    Quality,
    ShortcutName,
    StepSkipping,
    StepView,
    relative_error,
)

STEPS = 20


def skipping(**changes):
    usual = {
        "tolerance": Loss(video=0.1, audio=0.1),
        "most_in_a_row": 2,
        "computed_first": 0.25,
        "audit_every": 4,
    }
    return StepSkipping(**usual | changes)


def view(step=10, *, change=None, **facts):
    return StepView(
        step=step, steps=STEPS, change=None if change is None else Loss(video=change[0], audio=change[1]), **facts
    )


@pytest.mark.parametrize(
    ("change", "skips"),
    [((0.05, 0.05), True), ((0.05, 0.2), False), ((0.2, 0.05), False), ((math.nan, 0.05), False), (None, False)],
)
def test_a_step_is_skipped_only_if_both_modalities_have_hardly_changed(change, skips):
    assert skipping().applies(view(change=change)) is skips


def test_the_first_steps_and_the_last_one_are_never_skipped():
    skipped = [step for step in range(STEPS) if skipping().applies(view(step, change=(0.0, 0.0)))]
    assert skipped == list(range(5, STEPS - 1))


def test_a_run_of_skipped_steps_is_limited():
    allowed = [n for n in range(4) if skipping(most_in_a_row=2).applies(view(change=(0.0, 0.0), skipped_in_a_row=n))]
    assert allowed == [0, 1]


def test_the_guidance_difference_is_reused_after_its_share_of_the_steps_and_never_before_there_is_one():
    reuse = GuidanceReuse(after=0.5, audit_every=8)
    assert [step for step in range(STEPS) if reuse.applies(view(step, has_difference=True))] == list(range(10, STEPS))
    assert not reuse.applies(view(15))


def test_a_skipped_step_takes_no_other_shortcut():
    both = Combination(shortcuts=(skipping(), Fp8FeedForward(audit_every=5)), bound=Loss(video=1, audio=1))
    assert both.used_at(view(change=(0.0, 0.0))) == {ShortcutName.STEP_SKIPPING}
    assert both.used_at(view()) == {ShortcutName.FP8_FEED_FORWARD}


def test_the_first_use_of_a_shortcut_and_then_one_in_so_many_are_audited():
    both = Combination(
        shortcuts=(GuidanceReuse(after=0, audit_every=3), Fp8FeedForward(audit_every=5)), bound=Loss(video=1, audio=1)
    )
    reuse, fp8 = ShortcutName.GUIDANCE_REUSE, ShortcutName.FP8_FEED_FORWARD
    audited = [n for n in range(10) if both.is_audited({reuse, fp8}, {reuse: n, fp8: n})]
    assert audited == [0, 3, 5, 6, 9]
    assert both.is_audited({reuse}, {fp8: 1})


@pytest.mark.parametrize(
    ("loss", "within"), [((0.1, 0.2), True), ((0.11, 0.1), False), ((0.1, 0.21), False), ((0.1, math.nan), False)]
)
def test_a_loss_must_keep_to_the_bound_in_both_modalities(loss, within):
    assert Loss(video=loss[0], audio=loss[1]).is_within(Loss(video=0.1, audio=0.2)) is within


def test_expected_passes_count_the_negative_passes_that_are_left_out_and_the_audits():
    assert COMBINATIONS[Quality.EXACT].expected_passes(50) == 100
    reuse = Combination(shortcuts=(GuidanceReuse(after=0.5, audit_every=5),), bound=Loss(video=1, audio=1))
    assert reuse.expected_passes(20) == 20 + 10 + 2  # two of the last ten steps run both passes
    fp8 = Combination(shortcuts=(Fp8FeedForward(audit_every=10),), bound=Loss(video=1, audio=1))
    assert fp8.expected_passes(20) == 40 + 4  # two audits run both passes again


def test_each_combination_has_an_identity_of_its_own_and_other_bounds_make_another():
    identities = {combination.identity for combination in COMBINATIONS.values()}
    assert len(identities) == len(Quality)
    high = COMBINATIONS[Quality.HIGH]
    assert high.identity == "guidance_reuse after=0.5 audit_every=8; bound video=0.1 audio=0.05"
    assert Combination(shortcuts=high.shortcuts, bound=Loss(video=0.2, audio=0.05)).identity != high.identity


def test_only_fast_computes_in_fewer_bits_or_skips_steps():
    names = {quality: {s.name for s in COMBINATIONS[quality].shortcuts} for quality in Quality}
    assert names[Quality.EXACT] == set()
    assert names[Quality.HIGH] == {ShortcutName.GUIDANCE_REUSE}
    assert names[Quality.FAST] == set(ShortcutName)


@pytest.mark.parametrize(("distance", "norm", "error"), [(1, 2, 0.5), (0, 0, 0), (1, 0, math.inf)])
def test_a_relative_error_is_a_number_even_where_the_exact_velocity_is_zero(distance, norm, error):
    assert relative_error(distance, norm) == error
