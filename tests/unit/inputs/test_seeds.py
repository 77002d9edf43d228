"""Seeds of rows that set none: they follow what is rendered, whatever the list around it looks like."""

import json
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ovi.config import MAX_SEED, Architecture
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.inputs.manifest import build_manifest
from ovi_ray.inputs.seeds import OFFSET_BITS, seed_offset
from tests.support.jobs import write_prompts
from tests.support.lists import manifest_of, problems_of

quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(tmp_path, *rows):
    return write_prompts(tmp_path / "prompts.csv", *({"text_prompt": "", "seed": "", **row} for row in rows))


def clips(path, *names, **options):
    table = manifest_of(path, **options).table
    return table.select(names).to_pylist()


def seeds(path, **options):
    return [clip["seed"] for clip in clips(path, "seed", **options)]


def ids(path, **options):
    return [clip["clip_id"] for clip in clips(path, "clip_id", **options)]


def fox_dog_cat(tmp_path, *more):
    return write(tmp_path, {"text_prompt": "A fox"}, {"text_prompt": "A dog"}, {"text_prompt": "A cat"}, *more)


@quick
@given(
    rows=st.lists(
        st.tuples(st.sampled_from(["A fox", "A dog", "A cat"]), st.sampled_from(["", "3", "5"])), min_size=1, max_size=8
    ),
    shuffle=st.randoms(use_true_random=False),
    added=st.sampled_from(["An owl", "A fox"]),
)
def test_sorting_and_inserting_and_deleting_change_no_other_clip(tmp_path, rows, shuffle: random.Random, added):
    def ids_of(rows):
        return ids(write(tmp_path, *({"text_prompt": text, "shift": shift} for text, shift in rows)))

    before = ids_of(rows)
    assert len(set(before)) == len(rows)
    assert set(ids_of(shuffle.sample(rows, len(rows)))) == set(before)
    place = shuffle.randint(0, len(rows))
    assert len(set(ids_of([*rows[:place], (added, "4"), *rows[place:]])) - set(before)) == 1
    gone = shuffle.randrange(len(rows))
    if kept := [*rows[:gone], *rows[gone + 1 :]]:
        assert set(ids_of(kept)) < set(before)


def test_rows_that_are_alike_are_variations_and_the_same_ones_however_far_apart(tmp_path):
    near = seeds(write(tmp_path, {"text_prompt": "A fox"}, {"text_prompt": "A  fox"}, {"text_prompt": "A dog"}))
    apart = seeds(write(tmp_path, {"text_prompt": "A fox"}, {"text_prompt": "A dog"}, {"text_prompt": "A fox"}))
    assert len(set(near)) == 3
    assert set(near) == set(apart)


def test_other_parameters_start_from_the_same_noise(tmp_path):
    rows = [{"text_prompt": "A fox", "sample_steps": steps} for steps in ("10", "20")]
    assert len(set(seeds(write(tmp_path, *rows)))) == 1


def test_repeats_have_consecutive_seeds_and_the_jobs_seed_is_added(tmp_path):
    path = fox_dog_cat(tmp_path)
    first = seeds(path, seed=0)
    assert seeds(path, seed=7, each_example_n_times=2) == [seed + 7 + n for seed in first for n in (0, 1)]
    assert all(0 <= seed < 2**OFFSET_BITS for seed in first)


def test_a_row_may_set_its_own_seed_which_repeats_count_on(tmp_path):
    path = write(tmp_path, {"text_prompt": "A fox", "seed": str(MAX_SEED - 1)})
    assert seeds(path, each_example_n_times=2) == [MAX_SEED - 1, MAX_SEED]
    (problem,) = problems_of(path, each_example_n_times=3)
    assert (problem.row, problem.field, problem.value) == (1, "seed", str(MAX_SEED - 1))


def test_a_seed_of_the_job_that_leaves_no_room_is_refused_for_every_row(tmp_path):
    problems = problems_of(fox_dog_cat(tmp_path), seed=MAX_SEED)
    assert {(problem.row, problem.field) for problem in problems} == {(1, "seed"), (2, "seed"), (3, "seed")}


def test_images_count_by_content_so_that_they_may_be_renamed_and_moved(tmp_path):
    for name, colour in (("a.png", "red"), ("moved/b.png", "red"), ("c.png", "blue")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 64), colour).save(tmp_path / name)
    a, b, c, none = (
        seeds(write(tmp_path, {"text_prompt": "A fox", "image_path": name}))[0]
        for name in ("a.png", "moved/b.png", "c.png", "")
    )
    assert a == b
    assert len({a, c, none}) == 3


@pytest.mark.parametrize("rows", [1, 2])
def test_every_row_of_a_list_derives_its_seed_even_the_only_one(tmp_path, rows):
    """A list may grow: its first row must not change then."""
    only = seeds(write(tmp_path, {"text_prompt": "A fox"}))[0]
    assert seeds(write(tmp_path, *[{"text_prompt": "A fox"}, {"text_prompt": "A dog"}][:rows]))[0] == only != 100


def test_the_offset_of_a_clip_never_changes_between_releases():
    assert seed_offset("prompt", "A fox", None, 0) == 416_860_715_146
    assert seed_offset("key", "shot é 7") == 340_184_133_340


# -- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["key", "id"])
def test_with_a_key_the_prompt_may_be_rewritten_and_the_noise_stays(tmp_path, name):
    before, after = (
        clips(write(tmp_path, {"text_prompt": text, name: " shot 7 "}), "seed", "key", "clip_id")[0]
        for text in ("A fox", "A red fox")
    )
    assert before["seed"] == after["seed"]
    assert before["key"] == after["key"] == "shot 7"
    assert before["clip_id"] != after["clip_id"]


def test_rows_with_keys_differ_however_alike_they_are_and_blank_ones_have_none(tmp_path):
    rows = [{"text_prompt": "A fox", "key": key} for key in ("a", "b", "", "")]
    found = clips(write(tmp_path, *rows), "seed", "key", "clip_id")
    assert [clip["key"] for clip in found] == ["a", "b", None, None]
    assert len({clip["clip_id"] for clip in found}) == 4


def test_a_number_is_the_same_key_in_every_kind_of_file(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"text_prompt": "A fox", "id": key}) for key in (7, 8.0, "9")))
    in_csv = write(tmp_path, *({"text_prompt": "A fox", "id": key} for key in ("7", "8", "9")))
    assert clips(path, "seed", "key") == clips(in_csv, "seed", "key")


def test_a_key_of_several_rows_is_refused_by_the_name_that_the_list_has_for_it(tmp_path):
    rows = [{"text_prompt": "A fox", "id": key} for key in ("a", "b", "a", "a")]
    problems = problems_of(write(tmp_path, *rows), sweep={"shift": [3, 5]})
    assert [(problem.row, problem.field, problem.value) for problem in problems] == [(3, "id", "'a'"), (4, "id", "'a'")]


def test_two_columns_of_keys_are_refused(tmp_path):
    (problem,) = problems_of(write(tmp_path, {"text_prompt": "A fox", "id": "a", "key": "b"}))
    assert "key" in problem.expected


# -- seeds that are taken over ---------------------------------------------------------------------------------------


def kept_ids(path, before, **options):
    job = JobSpec.from_options(prompts=path, ckpt_dir=path.parent, output_dir=path.parent / "out", **options)
    made = build_manifest(job, Architecture(), weights=lambda _: "w", numerics="n", kept=before.table)
    return made.table.column("clip_id").to_pylist()


def test_seeds_of_an_earlier_manifest_stay_with_their_clips_wherever_the_rows_are_now(tmp_path):
    old = write(
        tmp_path,
        *({"text_prompt": text, "seed": seed} for text, seed in zip("abba", ("1", "3", "5", "7"), strict=True)),
    )
    before = manifest_of(old, each_example_n_times=2)
    new = write(tmp_path, *({"text_prompt": text} for text in "caabb"))
    after = kept_ids(new, before, each_example_n_times=2)
    assert set(after[2:]) == set(before.table.column("clip_id").to_pylist())
    assert after[:2] == ids(new, each_example_n_times=2)[:2]  # the new row derives its own


def test_a_seed_that_a_row_sets_is_not_taken_by_another_row(tmp_path):
    before = manifest_of(write(tmp_path, {"text_prompt": "a", "seed": "7"}, {"text_prompt": "a", "seed": "8"}))
    new = write(tmp_path, {"text_prompt": "a"}, {"text_prompt": "a", "seed": "7"})
    assert kept_ids(new, before) == before.table.column("clip_id").to_pylist()[::-1]
