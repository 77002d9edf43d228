"""Prompts that are longer than the text encoder: counted before anything is encoded, and told."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from ovi.config import Architecture
from ovi.prompts import clean
from ovi.weights.tokenizer import count_long, kept_part, load_tokenizer, most_tokens
from ovi_ray.inputs.job_spec import BatchSpec
from ovi_ray.inputs.manifest import build_manifest
from ovi_ray.inputs.prompt_lengths import TextLimit, text_limit
from ovi_ray.storage.paths import to_location

LIMIT = 48  # of the tiny checkpoint
WORDS = "She walks slowly over the misty valley and "
ENDED = f"{WORDS * 3}says <S>Good morning.<E> <AUDCAP>birdsong<ENDAUDCAP>"


@pytest.fixture(scope="module")
def tokenizer(tiny_dir):
    return load_tokenizer(tiny_dir, "720x720_5s", truncates=False)


@pytest.fixture
def notes_of(tmp_path, tiny_dir):
    def notes_of(rows, limit=None, **options):
        (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        job = BatchSpec.from_options(prompts=tmp_path / "p.jsonl", **options)
        limit = limit or text_limit(to_location(tiny_dir), job.model_name)
        manifest = build_manifest(job, Architecture(), weights=str, numerics="n", limit=limit)
        return manifest.notes

    return notes_of


def test_a_prompt_that_is_too_long_is_told_with_its_row_tokens_and_limit(notes_of, tokenizer):
    rows = [{"text_prompt": "A fox"}, {"text_prompt": ENDED}]
    (note,) = notes_of(rows, video_negative_prompt="", audio_negative_prompt="")
    tokens = len(tokenizer.encode(ENDED))
    assert tokens > LIMIT
    for words in ("row 2 has a prompt", f"{tokens} tokens", f"first {LIMIT} tokens", "speech and the audio tag"):
        assert words in note


def test_the_tag_that_the_model_does_not_know_is_counted_as_it_is_rewritten(notes_of, tokenizer):
    text = "x" * 37 + ". Audio: rain"
    assert len(tokenizer.encode(text)) <= LIMIT < len(tokenizer.encode(f"{'x' * 37}. <AUDCAP>rain<ENDAUDCAP>"))
    notes = notes_of([{"text_prompt": text}], video_negative_prompt="", audio_negative_prompt="")
    assert any(note.startswith("row 1 has a prompt of") for note in notes)


def test_both_negative_prompts_are_counted_each_by_itself(notes_of):
    rows = [{"text_prompt": "A fox"}, {"text_prompt": "A dog", "audio_negative_prompt": "y " * 40}]
    notes = notes_of(rows, video_negative_prompt="x " * 40, audio_negative_prompt="")
    assert [note.partition(" that is")[0].partition(" of ")[0] for note in notes] == [
        "rows 1 (81 tokens) and 2 (81 tokens) have a video_negative_prompt",
        "row 2 has an audio_negative_prompt",
    ]


def test_the_rows_of_one_kind_share_a_note(notes_of):
    notes = notes_of(
        [{"text_prompt": f"{number} {ENDED}"} for number in range(1_200)],
        video_negative_prompt="",
        audio_negative_prompt="",
        each_example_n_times=2,
    )
    assert len(notes) == 1
    assert "and 1,197 more have" in notes[0]


def test_texts_that_cannot_be_too_long_load_no_tokenizer(notes_of):
    def never():
        raise AssertionError("the tokenizer was loaded")

    assert notes_of([{"text_prompt": "A fox"}], limit=TextLimit(tokens=512, tokenizer=never)) == ()


def test_without_a_tokenizer_only_what_is_very_likely_too_long_is_told(notes_of):
    limit = TextLimit(tokens=512, tokenizer=None)
    (note,) = notes_of([{"text_prompt": "x" * 1000}, {"text_prompt": "walks" * 400}], limit=limit)
    assert note.startswith("row 2 may have")
    assert "--ckpt-dir" in note


def test_a_folder_without_a_tokenizer_has_the_published_limit(tmp_path):
    limit = text_limit(to_location(tmp_path), "720x720_5s")
    assert (limit.tokens, limit.tokenizer) == (512, None)


# -- counting ----------------------------------------------------------------------------------------------------------

messy = st.text(max_size=60) | st.lists(st.sampled_from(["</s>", "<pad>", "a", "é", "▁", " ", "ﷺ", "<S>"])).map("".join)


@given(text=messy)
def test_no_text_has_more_tokens_than_its_bound(tokenizer, text):
    assert len(tokenizer.encode(clean(text))) <= most_tokens(clean(text))


@given(texts=st.lists(messy, max_size=5), limit=st.integers(2, 40))
def test_words_are_counted_as_the_texts_that_they_are_in(tokenizer, texts, limit):
    texts = [clean(text) for text in texts]
    exact = {text: len(tokenizer.encode(text)) for text in texts}
    assert count_long(tokenizer, texts, limit) == {text: count for text, count in exact.items() if count > limit}


def test_a_tokenizer_that_does_not_split_at_spaces_sees_whole_texts():
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("▁", -1.0), ("a▁a", -1.0)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    assert count_long(tokenizer, ["a a"], 2) == {"a a": 3}  # the space, "a a", and the end token


@given(text=st.text(st.characters(categories=["L", "P"], max_codepoint=0x17F), min_size=60, max_size=80))
def test_what_is_kept_is_what_a_truncating_tokenizer_reads(tokenizer, tiny_dir, text):
    text = clean(text)
    if len(tokenizer.encode(text)) > LIMIT:
        truncated = load_tokenizer(tiny_dir, "720x720_5s").encode(text)
        assert kept_part(tokenizer, text, LIMIT) == text[: truncated.offsets[LIMIT - 2][1]]
